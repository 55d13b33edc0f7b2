r"""Word embeddings by skip-gram, shared by classifiers of sentiment, subjectivity and the type of a question.

  mtljax train experiments/text_embeddings.py --data_dir DIR
  mtljax compare experiments/text_embeddings.py --balancers equal,uncertainty --seeds 3 --steps 250 \
    --learning_rates 3e-3,5e-3 --data_dir DIR

The second command took 7 min on two cores that other work shared (3 min of processor time) and printed, beside
a column of steps,

  method       sentiment accuracy  subjectivity accuracy  question accuracy        Δm [%]  rank  time/equal         rate
  -----------  ------------------  ---------------------  -----------------  ------------  ----  ----------  -----------
  single-task     0.7987 ± 0.0072        0.9340 ± 0.0115    0.8847 ± 0.0125         +0.00     –        1.28  0.005/0.003
  equal           0.7962 ± 0.0193        0.9323 ± 0.0123    0.8840 ± 0.0179  -0.19 ± 0.65  1.67        1.00        0.005
  uncertainty     0.7997 ± 0.0170        0.9337 ± 0.0066    0.8760 ± 0.0050  -0.30 ± 0.75  1.33        0.94        0.003

Embeddings of one's own are as good as shared ones: Δm is 0 within its interval, with one table in place of three.
Logistic regressions on bags of words have 0.789, 0.898 and 0.842: subjectivity and questions are above by more than
twice the standard error of such test sets (0.009 and 0.015), sentiment (0.012) is not. Logistic regressions on up to
three words in a row, with or without weights of rarity, do not get beyond 0.80 there.

The embeddings first learn from all training texts, without labels, which words are neighbours; then every task's
classifier, logistic, reads the mean of its text's embeddings beside its words and words in a row. Single-task training
has embeddings of its own for each task, from the same start.

Data: text_cls in `--data_dir`, one row a text: the movie reviews and the subjectivity data of Pang & Lee,
https://www.cs.cornell.edu/people/pabo/movie-review-data, and the questions of TREC,
https://cogcomp.seas.upenn.edu/Data/QA/QC (TFDS `trec`); texts alone of customer reviews and AG's news
(TFDS `ag_news_subset`). `mtljax.data.labelled_text.read` reads files of the same kind.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtljax as mtl
from mtljax.data import labelled_text
from mtljax.data.transforms import text

SETS = {'sentiment': 'mr_sentiment', 'subjectivity': 'subj_subjectivity', 'question': 'trec_question'}
UNLABELLED = ('cr_product_sentiment', 'ag_news_topic')  # beside the tasks' own training texts


@dataclasses.dataclass(frozen=True)
class Config:
  """Recipe of the experiment.

  Attributes:
    architecture: what is shared, and how: a name of `mtljax list` or a call such as 'mmoe(num_experts=3)'.
    features: width of the embeddings.
    ngrams: up to so many words in a row have a weight of their own in every classifier.
    min_count: how often a word, or words in a row, must occur in the training texts.
    max_length: most words of a text that are read, and half of the most that have weights, words in a row among them.
    skip_gram_steps: batches of pairs of words that the embeddings learn from before the tasks do; 0 starts at random.
    word_dropout: share of words that a step does not see.
    learning_rate: of Adam for the embeddings at the start; it falls to 0 with the cosine of the step.
    head_rate: of Adam for the classifiers, as a multiple of it.
    steps: how many batches are learned from.
    batch_size: texts of every task per step.
    data_dir: folder with text_cls, or that folder.
  """

  architecture: str = 'hard'
  features: int = 128
  ngrams: int = 2
  min_count: int = 5
  max_length: int = 50
  skip_gram_steps: int = 2000
  word_dropout: float = 0.3
  learning_rate: float = 5e-3
  head_rate: float = 10.0
  steps: int = 250
  batch_size: int = 128
  data_dir: str = '~/.cache/mtljax'


def pairs(sentences: list[list[int]], window: int = 5, keep: float = 1e-3, seed: int = 0):
  """Words and their neighbours, int32[N] each, up to `window` places apart, frequent words thinned out.

  A word of share p of all words stays with probability sqrt(keep / p).
  """
  random = np.random.default_rng(seed)
  words = np.concatenate([np.asarray(s, np.int32) for s in sentences])
  of = np.repeat(np.arange(len(sentences)), [len(s) for s in sentences])
  share = np.bincount(words) / len(words)
  stays = random.random(len(words)) < np.sqrt(keep / share[words])
  words, of = words[stays], of[stays]
  reach = random.integers(1, window + 1, len(words))
  centers, neighbours = [], []
  for d in range(1, window + 1):
    near = of[d:] == of[:-d]
    left, right = (words[:-d], words[d:], reach[:-d] >= d), (words[d:], words[:-d], reach[d:] >= d)
    for center, neighbour, within in (left, right):
      centers.append(center[near & within])
      neighbours.append(neighbour[near & within])
  return np.concatenate(centers), np.concatenate(neighbours)


def skip_gram(
  sentences, size: int, features: int, steps: int, batch_size: int = 4096, negatives: int = 5, seed: int = 0
):
  """Embeddings f[size, features] that tell a word's neighbours from words drawn with p(word) ~ count^0.75.

  Reference: Mikolov et al., Distributed Representations of Words and Phrases and their Compositionality (2013),
  https://arxiv.org/abs/1310.4546. Departs from it: batches and Adam, whose rate falls to 0.
  """
  centers, neighbours = map(jnp.asarray, pairs(sentences, seed=seed))
  share = jnp.cumsum(jnp.bincount(neighbours, length=size) ** 0.75)
  optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

  def loss(tables, center, others):
    logits = jnp.einsum('bd,bnd->bn', tables['in'][center], tables['out'][others])
    labels = jnp.broadcast_to(jnp.arange(others.shape[1])[None] == 0, logits.shape).astype(logits.dtype)
    return optax.losses.sigmoid_binary_cross_entropy(logits, labels).sum(axis=1).mean()

  def step(carry, key):
    tables, state = carry
    row_key, other_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (batch_size,), 0, len(centers))
    drawn = jnp.searchsorted(share, jax.random.uniform(other_key, (batch_size, negatives)) * share[-1])
    others = jnp.concatenate([neighbours[rows][:, None], drawn], axis=1)
    grads = jax.grad(loss)(tables, centers[rows], others)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(tables, updates), state), None

  @jax.jit
  def run(key):
    init_key, step_key = jax.random.split(key)
    table = jax.random.uniform(init_key, (size, features), minval=-0.5, maxval=0.5) / features
    tables = {'in': table, 'out': jnp.zeros((size, features))}
    (tables, _), _ = jax.lax.scan(step, (tables, optimizer.init(tables)), jax.random.split(step_key, steps))
    return tables['in']

  return np.asarray(run(jax.random.key(seed)))


class Logistic(nn.Module):
  """Logits that are linear in the features and in the words, and words in a row, of a text.

  Attributes:
    classes: number of logits.
    vocabulary: number of tokens, words in a row among them.
  """

  classes: int
  vocabulary: int

  @nn.compact
  def __call__(self, features, inputs, train: bool = False):
    """f[B, C] and {'tokens': int[B, N], 'weights': f[B, N], ...} -> f[B, classes]."""
    table = nn.Embed(self.vocabulary, self.classes, embedding_init=nn.initializers.zeros, name='tokens')
    return nn.Dense(self.classes)(features) + jnp.einsum('bn,bnc->bc', inputs['weights'], table(inputs['tokens']))


class Reader:
  """What is read of texts: their words, and how much which of the training texts' tokens weigh.

  A token that n of N texts have weighs log((1 + N) / (1 + n)) + 1; the squares of a text's weights add up to 1.
  """

  def __init__(self, config: Config, words: text.Words, texts: list[str]):
    self.words, self.most = words, config.max_length
    self.tokens = text.words(texts, pattern=text.BLANKS, ngrams=config.ngrams, min_count=config.min_count)
    counts = np.zeros(self.tokens.size)
    for t in texts:
      counts[sorted(set(self.tokens.encode(t)))] += 1
    self.rarity = np.where(counts > 0, np.log((1 + len(texts)) / (1 + counts)) + 1, 0)
    self.rarity[text.UNK] = 0

  def __call__(self, texts: list[str]) -> Mapping[str, np.ndarray]:
    """{'x': int32[N, L], 'mask': bool[N, L], 'tokens': int32[N, M], 'weights': f32[N, M]}."""
    inputs = text.pad([self.words.encode(t) for t in texts], self.most, cut=True)
    tokens = text.pad([sorted(set(self.tokens.encode(t))) for t in texts], 2 * self.most, cut=True)
    weights = np.where(tokens['mask'], self.rarity[tokens['x']], 0)
    weights /= np.maximum(np.sqrt(np.sum(weights**2, axis=1, keepdims=True)), 1e-6)
    return {**inputs, 'tokens': tokens['x'], 'weights': weights.astype(np.float32)}


def drop_words(rate: float):
  """A transform of batches: every word and token of a text is hidden with probability `rate`."""

  def transform(key, batch):
    def hidden(name, part):
      inputs, keys = part['inputs'], jax.random.split(mtl.arrays.name_key(key, name))
      stays = lambda key, x: jax.random.bernoulli(key, 1 - rate, x.shape)
      mask = inputs['mask'] & stays(keys[0], inputs['mask'])
      weights = jnp.where(stays(keys[1], inputs['weights']), inputs['weights'], 0)
      return {**part, 'inputs': {**inputs, 'mask': mask, 'weights': weights}}

    return {name: hidden(name, part) for name, part in batch.items()}

  return transform


def build(config: Config) -> mtl.Experiment:
  """Data, embeddings, tasks, model and optimiser."""
  mtl.experiment.check_ranges(config, features=1, skip_gram_steps=0, word_dropout=(0, 1), head_rate=0)
  loaded = labelled_text.text_cls(config.data_dir, {**SETS, **{name: name for name in UNLABELLED}})
  texts = [t for parts in loaded.values() for t in parts['train'].texts]
  own = [t for task in SETS for t in loaded[task]['train'].texts]
  words = text.words(texts, pattern=text.BLANKS, min_count=config.min_count)
  reader, table = Reader(config, words, own), None
  if config.skip_gram_steps:
    sentences = [words.encode(t) for t in texts]
    table = mtl.trunks.pretrained(skip_gram(sentences, words.size, config.features, config.skip_gram_steps))

  def part(split, task):
    found = loaded[task][split]
    return {'inputs': reader(found.texts), 'labels': found.labels[task]}

  splits = {split: {task: part(split, task) for task in SETS} for split in ('train', 'val', 'test')}
  metrics = {'accuracy': mtl.metrics.accuracy()}
  tasks = tuple(mtl.Task(task, mtl.losses.softmax_cross_entropy, metrics=metrics) for task in SETS)
  trunk = mtl.trunks.EmbeddingBag(words.size, config.features, table=table)
  heads = {task: Logistic(len(loaded[task]['train'].classes[task]), reader.tokens.size) for task in SETS}

  def optimizer(learning_rate, names):
    adam = lambda rate: optax.adam(optax.cosine_decay_schedule(rate, config.steps))
    heads = adam(config.head_rate * learning_rate)
    return mtl.task_optimizer(shared=adam(learning_rate), tasks={name: heads for name in names})

  return mtl.Experiment(
    name='text_embeddings',
    model=mtl.sharing.parse(config.architecture)(trunk, heads),
    tasks=tasks,
    train=mtl.data.Batches(splits['train'], config.batch_size, transform=drop_words(config.word_dropout)),
    val=mtl.data.eval_batches(splits['val'], 500),
    test=mtl.data.eval_batches(splits['test'], 500),
    optimizer=optimizer,
  )
