"""Trunks (flax linen modules) and the layers they are made of."""

from mtljax.trunks._sequence import pretrained
from mtljax.trunks.batch_norm import BatchNorm
from mtljax.trunks.conv import Conv, max_pool
from mtljax.trunks.decoders import RecurrentDecoder, TransformerDecoder
from mtljax.trunks.dense_prediction import DilatedResNet
from mtljax.trunks.embedding_bag import EmbeddingBag
from mtljax.trunks.lenet import LeNet
from mtljax.trunks.mlp import MLP
from mtljax.trunks.recurrent import Recurrent
from mtljax.trunks.resnet import ResNet, resnet18, resnet34, resnet50
from mtljax.trunks.seq2seq import Seq2Seq, Source
from mtljax.trunks.speech import Conformer
from mtljax.trunks.transformer import Transformer

__all__ = [
  'Conformer',
  'DilatedResNet',
  'EmbeddingBag',
  'Recurrent',
  'Transformer',
  'pretrained',
  'RecurrentDecoder',
  'Seq2Seq',
  'Source',
  'TransformerDecoder',
  'MLP',
  'BatchNorm',
  'Conv',
  'LeNet',
  'ResNet',
  'max_pool',
  'resnet18',
  'resnet34',
  'resnet50',
]
