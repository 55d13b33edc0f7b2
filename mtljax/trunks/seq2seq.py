"""Encoder and decoder as one trunk, and the source of a batch that has target tokens too."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from mtljax.base import Array, InputError, PyTree
from mtljax.trunks.decoders import BoundDecoder, as_memory

EXPECTED = "a dictionary {'x': source, 'mask': bool[B, N] (optional), 'targets': int[B, L]}"


def source(inputs: PyTree) -> PyTree:
  """What a trunk reads of a task's inputs: {'x', 'mask'}, or the array x where there is no mask.

  >>> source({'x': 1, 'mask': 2, 'targets': 3}), source({'x': 1, 'targets': 3}), source(1)
  ({'x': 1, 'mask': 2}, 1, 1)
  """
  if not isinstance(inputs, Mapping):
    return inputs
  if 'x' not in inputs:
    raise InputError(f'inputs: found a dictionary with {sorted(inputs)}, expected {EXPECTED}.')
  return {name: inputs[name] for name in ('x', 'mask')} if inputs.get('mask') is not None else inputs['x']


def target_tokens(owner: str, inputs: PyTree, name: str = 'targets') -> Array:
  """The tokens that a decoder reads, `inputs[name]`, checked."""
  if not isinstance(inputs, Mapping) or name not in inputs:
    found = f'a dictionary with {sorted(inputs)}' if isinstance(inputs, Mapping) else type(inputs).__name__
    raise InputError(f'{owner}: inputs are {found}, expected {EXPECTED.replace("targets", name)}.')
  targets = jnp.asarray(inputs[name])
  if targets.ndim != 2 or not jnp.issubdtype(targets.dtype, jnp.integer):
    raise InputError(f'{owner}: inputs[{name!r}] are {targets.dtype}{list(targets.shape)}, expected int[B, L].')
  return targets


class Source(nn.Module):
  """Gives a trunk its part of inputs that have target tokens too: any trunk beside `heads.Decoder`.

  Attributes:
    trunk: one of `mtljax.trunks`, or any that is called as `trunk(x, train)`.
    stages: those of the trunk.

  >>> from mtljax import trunks
  >>> list(Source(trunks.MLP((8, 8))).stages)
  ['layer_0', 'layer_1']
  """

  trunk: nn.Module

  @property
  def stages(self) -> dict[str, nn.Module]:
    (name, first), *rest = self.trunk.stages.items()
    return {name: Source(first, parent=None), **dict(rest)}

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """{'x', 'mask'?, 'targets'?} or an array -> what the trunk makes of {'x', 'mask'}, or of x without a mask."""
    return self.trunk(source(inputs), train)


class Seq2Seq(nn.Module):
  """An encoder reads the source, a decoder the target tokens and what the encoder made: states of target tokens.

  The body of the decoder is shared by the tasks (translation into several languages, tags of what is said), and
  `heads.NextToken` adds a task's output layer; with `heads.Decoder` and the encoder as the trunk every task has a
  decoder of its own. Padding of either side has no influence; that of the targets belongs at the end.

  Attributes:
    encoder: a trunk, source -> features of a sequence, or pooled.
    decoder: `trunks.TransformerDecoder` or `trunks.RecurrentDecoder`.
    pad: the token that fills up the targets.
    stages: those of the encoder, then 'decoder'; modules which one after another are the trunk. The targets go along.

  References: Sutskever, Vinyals & Le, Sequence to Sequence Learning with Neural Networks (2014),
  https://arxiv.org/abs/1409.3215; Vaswani et al., Attention Is All You Need (2017), https://arxiv.org/abs/1706.03762;
  Johnson et al., Google's Multilingual Neural Machine Translation System (2017), https://arxiv.org/abs/1611.04558 (one
  decoder for many languages: let the first target token say which).
  """

  encoder: nn.Module
  decoder: nn.Module
  pad: int = 0

  @property
  def stages(self) -> dict[str, nn.Module]:
    stages = getattr(self.encoder, 'stages', {'encoder': self.encoder})
    stages = {name: _Keeping(stage, parent=None) for name, stage in stages.items()}
    return {**stages, 'decoder': _States(self.decoder, self.pad, parent=None)}

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """{'x': source, 'mask'?: bool[B, N], 'targets': int[B, L]} -> {'x': f[B, L, C], 'mask': bool[B, L], 'decoder'?}.

    State i has seen the targets 0 to i. Where nothing is trained, 'decoder' is a `BoundDecoder`, from which
    `heads.NextToken` decodes, and the targets may be left out, and with them 'x' and 'mask'.
    """
    return _states(self.decoder, self.pad, self.encoder(source(inputs), train), inputs, train)


def _states(decoder, pad, features, inputs, train):
  memory, mask = as_memory(features)
  found = {}
  if train or decoder.is_initializing() or (isinstance(inputs, Mapping) and 'targets' in inputs):
    targets = target_tokens('Seq2Seq', inputs)
    found = {'x': decoder(targets, memory, mask, train), 'mask': targets != pad}
  return found if train else {**found, 'decoder': BoundDecoder.of(decoder, memory, mask)}


class _Keeping(nn.Module):
  """A stage of the encoder, past which the targets go."""

  stage: nn.Module

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """{'x', 'mask'?, 'targets'} -> the same."""
    x = self.stage(source(inputs), train)
    kept = {'targets': inputs['targets']} if 'targets' in inputs else {}
    return {**(x if isinstance(x, Mapping) else {'x': x}), **kept}


class _States(nn.Module):
  """The decoder as the last stage."""

  decoder: nn.Module
  pad: int

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """{'x': memory, 'mask'?, 'targets'} -> what `Seq2Seq` gives."""
    return _states(self.decoder, self.pad, inputs, inputs, train)
