r"""Recognition of spoken digits and translation of captions in one network: convolutions and embeddings as stems, CTC
and attention decoders as heads, one trunk for sequences between them.

  mtljax train experiments/speech_translation.py --data_dir DIR
  python experiments/speech_translation.py runs/speech_translation/equal-seed0
  mtljax compare experiments/speech_translation.py --balancers equal --seeds 3 --steps 500 --learning_rates 4e-3 \
    --data_dir DIR
  mtljax compare experiments/speech_translation.py --balancers equal,uncertainty --seeds 3 --steps 300 \
    --learning_rates 2e-3,4e-3 --data_dir DIR

The second command prints what the run of the first says of test recordings and sentences. The third took 13 min on two
cores that other work shared (9 min of processor time) and printed

  method            digits wer           de bleu         Δm [%]  rank  time/equal  steps   rate
  -----------  ---------------  ----------------  -------------  ----  ----------  -----  -----
  single-task  0.0286 ± 0.0079  12.5772 ± 1.3209          +0.00     –        1.01    500  0.004
  equal        0.0293 ± 0.0043  12.0869 ± 1.0441  -3.56 ± 14.08  1.00        1.00    500  0.004

The fourth, which chose that rate for every row, took 31 min on a machine short of memory (16 min of processor time):

  method            digits wer          de bleu          Δm [%]  rank  time/equal  steps   rate
  -----------  ---------------  ---------------  --------------  ----  ----------  -----  -----
  single-task  0.0473 ± 0.0172  7.7854 ± 6.0681           +0.00     –        1.01    300  0.004
  equal        0.0539 ± 0.0170  7.4574 ± 5.1360   -9.19 ± 29.93  1.00        1.00    300  0.004
  uncertainty  0.0556 ± 0.0066  7.2226 ± 4.6597  -12.67 ± 35.75  2.00        1.02    300  0.004

The best constant answer to the test strings, 'two two', has a WER of 0.895; translation word for word (IBM model 1,
8000 pairs) has a BLEU of 6.7 on lower-cased words. After 500 steps, less than an epoch, both are far behind; after 300
the BLEU is not above it by two standard errors. One trunk for both tasks is no gain here: alone they are better in all
means, within the intervals.

Options make more tasks of it (`--languages de fr`, `--recordings digits yesno`), another trunk (`--trunk transformer`),
a wider search (`--beam 4`), masks on the speech (`--augment`).

Data, in the folder `--data_dir` or in folders multi30k, fsdd and yesno within it:
- Multi30k, https://github.com/multi30k/dataset, data/task1/raw: {train,val,test_2016_flickr}.{en,de,fr}.gz. Sentences
  are lower-cased, and so are the references of BLEU and chrF.
- Free Spoken Digit Dataset, https://github.com/Jakobovski/free-spoken-digit-dataset (TFDS `spoken_digit`): recordings.
- yesno, https://www.openslr.org/1, waves_yesno.tar.gz, only for `--recordings yesno`.
"""

import argparse
import dataclasses
import functools
import pathlib
from typing import Literal

import flax.linen as nn
import numpy as np
import optax

import mtljax as mtl
from mtljax import arrays, checkpoint, rundir, runs
from mtljax import experiment as experiment_lib
from mtljax.data import clips, parallel_text, spoken_digits, yesno
from mtljax.data.transforms import speech, text
from mtljax.trunks.speech import Subsample

TEXT = {'train': 'train', 'val': 'val', 'test': 'test_2016_flickr'}  # splits of Multi30k
MASKED = 20  # frames of 0.01 s, half a spoken digit


@dataclasses.dataclass(frozen=True)
class Config:
  """Recipe of the experiment.

  Attributes:
    architecture: what is shared, and how: a name of `mtljax list` or a call such as 'mmoe(num_experts=2)'.
    trunk: 'recurrent' (GRUs both ways) or 'transformer', and the decoders' kind too.
    languages: that English is translated into: 'de', 'fr'; a task each.
    recordings: what is recognised: 'digits' (English, strings of digits), 'yesno' (Hebrew); a task each.
    width: of the trunk and the decoders.
    depth: layers of the trunk.
    vocabulary: byte pairs of every language.
    dropout: rate, in trunk and decoders.
    label_smoothing: of the translations.
    beam: hypotheses kept by the search for a translation; 1 is greedy.
    max_length: most tokens of a sentence, on either side, to learn from; all are tested on.
    val_sentences: how many are for validation.
    strings: of digits to draw for learning; those that take longer than `max_seconds` are left out.
    eval_strings: of digits for validation, and as many for testing, of any length.
    max_digits: of a string; the least is 2.
    max_seconds: of a string to learn from.
    mels: bands of a frame of speech.
    augment: masks bands and times of the speech to learn from (SpecAugment).
    recognition_weight: of the losses of recognition, which are sums over a recording, beside means over tokens.
    learning_rate: of Adam at its largest; it rises for a tenth of the steps and falls to 0 with the cosine.
    steps: how many batches are learned from.
    batch_size: examples of every task per step.
    data_dir: folder with multi30k, fsdd and yesno.
  """

  architecture: str = 'hard'
  trunk: Literal['recurrent', 'transformer'] = 'recurrent'
  languages: tuple[str, ...] = ('de',)
  recordings: tuple[str, ...] = ('digits',)
  width: int = 128
  depth: int = 1
  vocabulary: int = 2000
  dropout: float = 0.1
  label_smoothing: float = 0.1
  beam: int = 1
  max_length: int = 24
  val_sentences: int = 300
  strings: int = 4000
  eval_strings: int = 500
  max_digits: int = 5
  max_seconds: float = 2.5
  mels: int = 32
  augment: bool = False
  recognition_weight: float = 0.2
  learning_rate: float = 4e-3
  steps: int = 500
  batch_size: int = 32
  data_dir: str = '~/.cache/mtljax'


class Embedding(nn.Module):
  """Stem of text: a row for every token."""

  vocabulary: int
  features: int

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """{'x': int[B, N], 'mask', 'targets'} -> {'x': f[B, N, features], 'mask'}."""
    embed = nn.Embed(self.vocabulary, self.features, embedding_init=nn.initializers.normal(1.0))
    return {'x': embed(inputs['x']), 'mask': inputs['mask']}


class FrontEnd(nn.Module):
  """Stem of speech: convolutions that take every fourth frame, and a norm."""

  features: int
  channels: int = 16

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """{'x': f[B, N, mels], 'mask'} -> {'x': f[B, N / 4, features], 'mask'}."""
    found = Subsample(self.features, self.channels)(inputs, train)
    return {'x': nn.LayerNorm()(found['x']), 'mask': found['mask']}


def translation(config: Config):
  """({split: {language: examples}}, {language: tokeniser}, English among them)."""
  splits = {part: {} for part in TEXT}
  if not config.languages:
    return splits, {}
  names = tuple(dict.fromkeys(('en', *config.languages)))
  read = {part: parallel_text.multi30k(config.data_dir, name, names) for part, name in TEXT.items()}
  read['val'] = {language: found[: config.val_sentences] for language, found in read['val'].items()}
  tokens = {language: text.bpe(found, config.vocabulary, lower=True) for language, found in read['train'].items()}
  for part, found in read.items():
    limit = config.max_length if part == 'train' else None
    sources = [tokens['en'].encode(sentence) for sentence in found['en']]
    for language in config.languages:
      targets = [tokens[language].encode(sentence, bos=True, eos=True) for sentence in found[language]]
      splits[part][language] = _pairs(sources, targets, limit, language)
  return splits, tokens


def _pairs(sources, targets, limit, language):
  """Examples of a translation, those of at most `limit` tokens on either side."""
  pairs = [(x, y) for x, y in zip(sources, targets) if limit is None or max(len(x), len(y) - 1) <= limit]
  if not pairs:
    raise mtl.InputError(f'max_length: found {limit}, expected more: no sentence of task {language!r} is as short.')
  read, labels, mask = mtl.heads.shifted(text.pad([y for _, y in pairs])['x'])
  return {'inputs': {**text.pad([x for x, _ in pairs]), 'targets': read}, 'labels': labels, 'mask': mask}


def digits(config: Config) -> dict[str, clips.Clips]:
  """Strings of digits, of one speaker and one split each."""
  splits = {}
  for seed, (part, found) in enumerate(spoken_digits.load(config.data_dir).items()):
    count = config.strings if part == 'train' else config.eval_strings
    splits[part] = spoken_digits.strings(found, count, digits=(2, config.max_digits), seed=seed)
  train = splits['train']
  short = np.array([len(row) <= config.max_seconds * train.rate for row in train.rows])
  if not short.any():
    raise mtl.InputError(f"max_seconds: found {config.max_seconds}, expected more: no string of 'digits' is as short.")
  return {**splits, 'train': train.take(short)}


RECORDINGS = {'digits': digits, 'yesno': lambda config: yesno.load(config.data_dir)}


def recognition(config: Config):
  """({split: {task: examples}}, {task: tokeniser})."""
  arrays.check_names('recordings', config.recordings, RECORDINGS, all_of=False)
  splits, tokens = {part: {} for part in TEXT}, {}
  for task in config.recordings:
    found = RECORDINGS[task](config)
    tokens[task] = text.words(found['train'].columns['text'])
    for part, heard in found.items():
      if part == 'train' and len(heard) < config.batch_size:  # a batch needs as many
        heard = heard.take(np.arange(config.batch_size) % len(heard))
      splits[part][task] = clips.ctc_examples(_frames(heard, config.mels), tokens[task], subsample=4)
  return splits, tokens


def _frames(heard: clips.Clips, mels: int) -> clips.Clips:
  return heard.map(lambda audio: speech.standardise(speech.log_mel(audio, heard.rate, mels=mels)))


def build(config: Config) -> mtl.Experiment:
  """Data, tasks, model and optimiser."""
  mtl.experiment.check_ranges(config, width=2, depth=1, val_sentences=1, recognition_weight=0)
  heard, words = recognition(config)
  written, tokens = translation(config)
  splits = {part: {**heard[part], **written[part]} for part in TEXT}
  tasks, heads, stems = [], {}, {}
  for name, t in words.items():
    metrics = {'wer': mtl.metrics.wer(t.decode), 'cer': mtl.metrics.cer(t.decode)}
    loss, weight = mtl.losses.ctc, config.recognition_weight
    tasks.append(mtl.Task(name, loss, weight, metrics=metrics, decode=mtl.heads.ctc_decode))
    heads[name], stems[name] = mtl.heads.ctc(t.size - 1), FrontEnd(config.width)
  smooth = functools.partial(mtl.losses.softmax_cross_entropy, label_smoothing=config.label_smoothing)
  for name in config.languages:
    t, longest = tokens[name], max(written[part][name]['labels'].shape[1] for part in ('val', 'test'))
    metrics = {'bleu': mtl.metrics.bleu(t.decode), 'chrf': mtl.metrics.chrf(t.decode)}
    tasks.append(mtl.Task(name, smooth, metrics=metrics, decode=mtl.heads.Search(longest, config.beam)))
    heads[name] = mtl.heads.Decoder(decoder(config, t.size))
    stems[name] = Embedding(tokens['en'].size, config.width)

  def optimizer(learning_rate, names):
    unit = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, config.steps // 10), config.steps + 1)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lambda step: learning_rate * unit(step), b2=0.98))
    return mtl.task_optimizer(shared=adam, tasks={name: adam for name in names})

  masked = speech.spec_augment(frequency_width=config.mels // 4, time_width=MASKED, tasks=config.recordings)
  return mtl.Experiment(
    name='speech_translation',
    model=mtl.sharing.parse(config.architecture)(trunk(config), heads, stems=stems),
    tasks=tuple(tasks),
    train=mtl.data.Batches(splits['train'], config.batch_size, transform=masked if config.augment else None),
    val=mtl.data.eval_batches(splits['val'], 100),
    test=mtl.data.eval_batches(splits['test'], 100),
    optimizer=optimizer,
  )


def trunk(config: Config) -> nn.Module:
  """What all tasks share."""
  if config.trunk == 'transformer':
    return mtl.trunks.Transformer(config.width, depth=config.depth, dropout=config.dropout)
  if config.trunk == 'recurrent':
    return mtl.trunks.Recurrent((config.width // 2,) * config.depth, bidirectional=True, dropout=config.dropout)
  raise mtl.InputError(f"trunk: found {config.trunk!r}, expected 'transformer' or 'recurrent'.")


def decoder(config: Config, vocabulary: int) -> nn.Module:
  """Of a language, of the trunk's kind."""
  if config.trunk == 'transformer':
    return mtl.trunks.TransformerDecoder(vocabulary, config.width, depth=1, dropout=config.dropout)
  return mtl.trunks.RecurrentDecoder(vocabulary, config.width, dropout=config.dropout)


def decoded(run_dir: pathlib.Path, count: int) -> dict[str, list[tuple[str, str]]]:
  """{task: [(what was to be said, what the run says)]} of the first test examples of a run of `mtljax train`."""
  stored = rundir.read_json(run_dir / 'config.json')
  experiment = build(experiment_lib.config_from_json(Config, stored['config']))
  names = [field.name for field in dataclasses.fields(experiment_lib.Options)]
  run = runs.Run(experiment, experiment_lib.Options(**{name: stored[name] for name in names}))
  state, _, _ = checkpoint.restore_latest(run_dir / 'checkpoints', run.abstract)
  model, shared, found = experiment.model, (state.params['shared'], state.model_state['shared']), {}
  for task in experiment.tasks:
    own = state.params['tasks'][task.name], state.model_state['tasks'][task.name]
    batch, how = experiment.test[0][task.name], dict(train=False, key=None)
    z, _ = model.stem(*own, batch['inputs'], task=task.name, **how)
    z, _ = model.trunk(*shared, z, tasks=(task.name,), **how)
    head = lambda inputs: model.head(*own, z, inputs=inputs, task=task.name, **how)[0]  # noqa: B023
    metric = next(iter(task.metrics.values()))  # its sums are the sentences
    pairs = zip(*metric.update(task.decode(head, batch['inputs']), batch['labels'], batch['mask']))
    found[task.name] = list(pairs)[:count]
  return found


def main(argv=None) -> None:
  """Prints what a run says."""
  parser = argparse.ArgumentParser(description='Prints what a run of `mtljax train` says of the first test examples.')
  parser.add_argument('run_dir', type=pathlib.Path, help='such as runs/speech_translation/equal-seed0')
  parser.add_argument('--count', type=int, default=5, help='examples of every task')
  options = parser.parse_args(argv)
  for task, pairs in decoded(options.run_dir, options.count).items():
    for said, found in pairs:
      print(f'{task:8} expected  {said}\n{"":8} found     {found}')


if __name__ == '__main__':
  main()
