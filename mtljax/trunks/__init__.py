"""Trunks (flax linen modules) and the layers they are made of."""

from mtljax.trunks.batch_norm import BatchNorm
from mtljax.trunks.conv import Conv, max_pool
from mtljax.trunks.lenet import LeNet
from mtljax.trunks.mlp import MLP
from mtljax.trunks.resnet import ResNet, resnet18, resnet34, resnet50

__all__ = ['MLP', 'BatchNorm', 'Conv', 'LeNet', 'ResNet', 'max_pool', 'resnet18', 'resnet34', 'resnet50']
