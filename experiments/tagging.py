r"""Entities in posts, and the case of their words guessed from lower-cased text; parts of speech by option.

  mtljax train experiments/tagging.py --data_dir DIR
  mtljax compare experiments/tagging.py --balancers equal,uncertainty --seeds 3 --steps 800 \
    --learning_rates 5e-3,1e-2 --data_dir DIR
  mtljax train experiments/tagging.py --pos_file en_ewt-ud-train.conllu --max_length 200 --data_dir DIR

The first command took 33 s on two cores and printed F1 of 0.1620 for entities and 0.6072 for casing (seed 0). The
second took 7.5 min of wall time on two busy cores (11 min of processor time) and printed

  method           entities F1        casing F1        Δm [%]  rank  time/equal  steps  rate
  -----------  ---------------  ---------------  ------------  ----  ----------  -----  ----
  single-task  0.1668 ± 0.0072  0.6288 ± 0.0231         +0.00     –        1.75    800  0.01
  equal        0.1643 ± 0.0069  0.6112 ± 0.0271  -2.12 ± 1.36  1.00        1.00    800  0.01
  uncertainty  0.1632 ± 0.0119  0.6095 ± 0.0263  -2.60 ± 3.92  2.00        0.99    800  0.01

F1 of entities is that of whole spans, F1 of casing that of words that are not lower-cased. A logistic regression on
words in a window has a span F1 of 0.09; all rows are above by more than four times the standard error that such a test
set leaves (0.015). Giving every word its most frequent case in training finds casing with an F1 of 0.29. Multi-task
nets lose: `equal` is behind single-task nets in both means, casing more than entities, and its Δm is below 0 by more
than its interval. What they save is time and half of the parameters. The larger of the two rates won in every row.
The third command was tried on small made-up treebanks only.

The trunk reads lower-cased words, whole and in parts of up to three characters, so the case of a word is not to be read
off, only guessed from what it is and where it stands; words without a letter that has a case (12, :-) are left out of
that task. The heads of entities and parts of speech read the case of a word and of its neighbours beside the trunk's
features: to them it is no label. With `--pos_file` the sentences of a CoNLL-U file are a part of the data: they have no
entities, and those of WNUT-17 no parts of speech.

Data: WNUT-17, https://github.com/leondz/emerging_entities_17 (wnut17train.conll, emerging.dev.conll,
emerging.test.annotated; TFDS has none), or jsonl files of it, in `--data_dir` or in wnut17_ner within it. Treebanks in
CoNLL-U are at https://universaldependencies.org. `mtljax.data.tagged.read` reads tags of the same kind.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtljax as mtl
from mtljax.data import tagged
from mtljax.data.transforms import text

SHAPES = ('lower', 'Capitalised', 'UPPER', 'mixed', 'none')  # the last is no label
WINDOW = 2  # how many neighbours' shapes are read on either side


@dataclasses.dataclass(frozen=True)
class Config:
  """Recipe of the experiment.

  Attributes:
    architecture: what is shared, and how: a name of `mtljax list` or a call such as 'cross_stitch(own=0.8)'.
    trunk: 'gru', 'lstm' (both ways) or 'transformer'.
    features: of a word's embedding, and as many of the mean of its parts'.
    width: of the trunk.
    depth: its layers.
    hidden: width of the layer within every head.
    min_count: how often a word must occur in the training sentences, or a part in their different words.
    parts: most parts of a word that are read, the longest first.
    max_length: most words of a sentence; a longer one is an error.
    dropout: rate, in trunk and heads.
    entity_weight: of words in entities in their loss, where the others weigh 1.
    word_dropout: share of the words that a step does not know, and of the parts that it does not see.
    pos_file: CoNLL-U with parts of speech, a third task; its last fifth is for validation and testing.
    learning_rate: of Adam at the start, trunk and heads; it falls to 0 with the cosine of the step.
    steps: how many batches are learned from.
    batch_size: sentences per step.
    data_dir: folder with wnut17_ner, or that folder.
  """

  architecture: str = 'hard'
  trunk: Literal['gru', 'lstm', 'transformer'] = 'gru'
  features: int = 32
  width: int = 128
  depth: int = 1
  hidden: int = 64
  min_count: int = 2
  parts: int = 24
  max_length: int = 105
  dropout: float = 0.3
  entity_weight: float = 4.0
  word_dropout: float = 0.4
  pos_file: str = ''
  learning_rate: float = 1e-2
  steps: int = 800
  batch_size: int = 32
  data_dir: str = '~/.cache/mtljax'


class Words(nn.Module):
  """A word's own embedding beside the mean of its parts'."""

  words: int
  parts: int
  features: int

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """{'x': int[B, N], 'parts': int[B, N, P], 'mask': bool[B, N]} -> {'x': f[B, N, 2 features], 'mask'}."""
    parts = inputs['parts']
    bag = mtl.trunks.EmbeddingBag(self.parts, self.features)(parts.reshape(-1, parts.shape[-1]))
    whole = nn.Embed(self.words, self.features, embedding_init=nn.initializers.normal(0.3))(inputs['x'])
    return {'x': jnp.concatenate([whole, bag.reshape(whole.shape)], axis=-1), 'mask': inputs['mask']}


class Trunk(nn.Module):
  """Words, then layers that read the sentence; both give the `stages` that some architectures need."""

  words: nn.Module
  layers: nn.Module

  @property
  def stages(self) -> dict[str, nn.Module]:
    return {'words': self.words, **self.layers.stages}

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    return self.layers(self.words(inputs, train), train)


class Shaped(nn.Module):
  """A head that reads the shapes of a word and its neighbours beside the features."""

  head: nn.Module

  @nn.compact
  def __call__(self, features, inputs, train: bool = False):
    """{'x': f[B, N, C], 'mask'} and {'shapes': int[B, N], ...} -> outputs of the head."""
    shapes, length = inputs['shapes'], inputs['shapes'].shape[1]
    around = jnp.pad(shapes, ((0, 0), (WINDOW, WINDOW)))
    near = jnp.stack([around[:, i : i + length] for i in range(2 * WINDOW + 1)], axis=-1)
    read = jax.nn.one_hot(near, 1 + len(SHAPES)).reshape(*shapes.shape, -1)
    return self.head({**features, 'x': jnp.concatenate([features['x'], read], axis=-1)}, train)


def shape(word: str) -> int:
  """The place in `SHAPES` of how a word is written.

  >>> [SHAPES[shape(word)] for word in ('a', '#Tag', 'USA', 'iPhone', 'McX', 'I', ':-)')]
  ['lower', 'Capitalised', 'UPPER', 'mixed', 'mixed', 'Capitalised', 'none']
  """
  upper = [c != c.lower() for c in word if c.lower() != c.upper()]
  if not upper:
    return SHAPES.index('none')
  if not any(upper):
    return SHAPES.index('lower')
  if upper[0] and not any(upper[1:]):
    return SHAPES.index('Capitalised')
  return SHAPES.index('UPPER' if all(upper) else 'mixed')


def cased(found: tagged.Tagged) -> tagged.Tagged:
  """The sentences with a further task 'casing': the shape of every word that has one."""
  shapes = [np.array([shape(word) for word in words], np.int32) for words in found.words]
  there = [row != SHAPES.index('none') for row in shapes]
  labels = [np.where(m, row, 0).astype(np.int32) for row, m in zip(shapes, there)]
  return dataclasses.replace(
    found,
    labels={**found.labels, 'casing': labels},
    mask={**found.mask, 'casing': there},
    tags={**found.tags, 'casing': SHAPES[:-1]},
  )


def pooled(parts: Sequence[tagged.Tagged]) -> tagged.Tagged:
  """All sentences, each with the tags that it has."""
  tags = {task: names for part in parts for task, names in part.tags.items()}
  labels, mask = {task: [] for task in tags}, {task: [] for task in tags}
  for part in parts:
    for task in tags:
      labels[task] += part.labels.get(task) or [np.zeros(len(words), np.int32) for words in part.words]
      mask[task] += part.mask.get(task) or [np.zeros(len(words), bool) for words in part.words]
  return tagged.Tagged([words for part in parts for words in part.words], labels, mask, tags)


def load(config: Config) -> dict[str, tagged.Tagged]:
  """{split: sentences with 'entities', 'casing' and, of a `pos_file`, 'pos'}."""
  splits = {split: [part] for split, part in tagged.wnut17(config.data_dir, max_length=config.max_length).items()}
  if config.pos_file:
    found = tagged.read(config.pos_file, {'pos': 'upos'}, layout='conllu', max_length=config.max_length)
    rows = np.split(np.arange(len(found.words)), [len(found.words) * 8 // 10, len(found.words) * 9 // 10])
    for split, part in zip(splits, rows, strict=True):
      splits[split].append(found.take(part))
  splits = {split: cased(pooled(parts)) for split, parts in splits.items()}
  for split, found in splits.items():
    for task, rows in found.mask.items():
      if not any(row.any() for row in rows):
        raise mtl.InputError(
          f'task {task!r}: found no label in {len(rows)} sentences of the split {split!r}, expected some.'
        )
  return splits


class Reader:
  """What is read of sentences, with the words and the parts of words that training has."""

  def __init__(self, config: Config, train: tagged.Tagged):
    self.most = config.parts
    self.words = text.words(train.sentences, pattern=text.BLANKS, min_count=config.min_count)
    spelled = sorted({self._spelled(word) for words in train.words for word in words})
    self.parts = text.words(spelled, pattern=r'\S', ngrams=3, min_count=config.min_count)

  def __call__(self, found: tagged.Tagged, max_length: int | None = None) -> Mapping[str, np.ndarray]:
    """{'x': int32[N, L], 'mask': bool[N, L], 'parts': int32[N, L, P], 'shapes': int32[N, L]}, shapes from 1."""
    inputs = dict(text.pad([self.words.encode(sentence) for sentence in found.sentences], max_length))
    inputs['shapes'] = text.pad([[1 + shape(word) for word in words] for words in found.words], max_length)['x']
    inputs['parts'], known = np.zeros((*inputs['x'].shape, self.most), np.int32), {}
    for i, words in enumerate(found.words):
      for j, word in enumerate(words):
        if word not in known:
          known[word] = self.parts.encode(self._spelled(word))[: -self.most - 1 : -1]
        inputs['parts'][i, j, : len(known[word])] = known[word]
    return inputs

  @staticmethod
  def _spelled(word: str) -> str:
    return f'<{word.lower()}>'


def drop_words(rate: float):
  """A transform of batches: every word is unknown, and every part of a word hidden, with probability `rate`."""

  def transform(key, batch):
    inputs, keys = batch['inputs'], jax.random.split(key)
    hidden = lambda key, x, value: jnp.where(jax.random.bernoulli(key, rate, x.shape), value, x)
    words = jnp.where(inputs['mask'], hidden(keys[0], inputs['x'], text.UNK), text.PAD)
    return {**batch, 'inputs': {**inputs, 'x': words, 'parts': hidden(keys[1], inputs['parts'], text.PAD)}}

  return transform


def weighted(outputs, labels, *, weights):
  """Cross-entropy f[B, N], times the weight of each label f[C]."""
  return mtl.losses.softmax_cross_entropy(outputs, labels) * jnp.asarray(weights, outputs.dtype)[labels]


def layers(config: Config) -> nn.Module:
  """What reads a sentence."""
  if config.trunk == 'transformer':
    return mtl.trunks.Transformer(config.width, depth=config.depth, dropout=config.dropout)
  if config.trunk in ('gru', 'lstm'):
    hidden, options = (config.width // 2,) * config.depth, dict(bidirectional=True, dropout=config.dropout)
    return mtl.trunks.Recurrent(hidden, config.trunk, **options)
  raise mtl.InputError(f"trunk: found {config.trunk!r}, expected 'gru', 'lstm' or 'transformer'.")


def build(config: Config) -> mtl.Experiment:
  """Data, tasks, model and optimiser."""
  mtl.experiment.check_ranges(config, depth=1, parts=1, entity_weight=0, word_dropout=(0, 1))
  splits = load(config)
  tags, reader = splits['train'].tags, Reader(config, splits['train'])
  examples = {split: found.examples(reader(found)) for split, found in splits.items()}
  accuracy = mtl.metrics.accuracy()
  metrics = {
    'entities': {'F1': mtl.metrics.span_f1(tags['entities']), 'token F1': mtl.metrics.token_f1(), 'accuracy': accuracy},
    'casing': {'F1': mtl.metrics.token_f1(SHAPES.index('lower')), 'accuracy': accuracy},
    'pos': {'accuracy': accuracy},
  }
  loss = mtl.losses.softmax_cross_entropy
  weights = [1.0 if tag == 'O' else config.entity_weight for tag in tags['entities']]
  losses = {'entities': functools.partial(weighted, weights=weights), 'casing': loss, 'pos': loss}
  tasks = tuple(mtl.Task(task, losses[task], metrics=metrics[task]) for task in tags)
  options = dict(hidden=(config.hidden,), dropout=config.dropout)
  heads = {task: mtl.heads.tagging(len(names), **options) for task, names in tags.items()}
  heads = {task: head if task == 'casing' else Shaped(head) for task, head in heads.items()}
  trunk = Trunk(Words(reader.words.size, reader.parts.size, config.features), layers(config))

  def optimizer(learning_rate, names):
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, config.steps))
    return mtl.task_optimizer(shared=adam, tasks={name: adam for name in names})

  return mtl.Experiment(
    name='tagging',
    model=mtl.sharing.parse(config.architecture)(trunk, heads),
    tasks=tasks,
    train=mtl.data.Batches(examples['train'], config.batch_size, transform=drop_words(config.word_dropout)),
    val=mtl.data.eval_batches(examples['val'], 256),
    test=mtl.data.eval_batches(examples['test'], 256),
    optimizer=optimizer,
  )
