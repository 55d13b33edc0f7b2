"""Speech recognition and translation in one network: `experiments/speech_translation.py` on made-up files."""

import dataclasses

import numpy as np
import pytest

import mtljax as mtl
from mtljax import cli, runs
from mtljax import experiment as experiment_lib
from mtljax.data import spoken_digits

translation = experiment_lib.load('speech_translation')

RATE = 8000
WORDS = {
  'en': ('a', 'dog', 'cat', 'runs', 'sleeps', 'here', 'there', 'now'),
  'de': ('ein', 'hund', 'katze', 'rennt', 'schläft', 'hier', 'dort', 'jetzt'),
  'fr': ('un', 'chien', 'chat', 'court', 'dort', 'ici', 'là', 'maintenant'),
}
SENTENCES = {'train': 40, 'val': 6, 'test_2016_flickr': 5}
SMALL = dict(
  width=8, vocabulary=60, strings=24, eval_strings=3, max_digits=3, mels=12, batch_size=4, val_sentences=4, steps=3
)


def write(folder, languages=('en', 'de', 'fr')):
  """Files as those of Multi30k and of the two sets of recordings, with tones for words."""
  import soundfile

  draw = np.random.default_rng(0)
  for name in ('multi30k', 'fsdd', 'yesno'):
    (folder / name).mkdir()
  for split, count in SENTENCES.items():
    rows = [draw.integers(8, size=draw.integers(2, 7)) for _ in range(count)]
    for language in languages:
      lines = [' '.join(WORDS[language][i] for i in row) for row in rows]
      (folder / 'multi30k' / f'{split}.{language}').write_text('\n'.join(lines) + '\n', encoding='utf-8')

  def tone(path, pitches):
    parts = [np.sin(2 * np.pi * pitch * np.arange(1600) / RATE) / 2 for pitch in pitches]
    soundfile.write(path, np.concatenate(parts) + draw.normal(scale=0.01, size=1600 * len(parts)), RATE)

  for digit in range(3):
    for recording in (0, 5, 10, 11):
      tone(folder / 'fsdd' / f'{digit}_ann_{recording}.wav', [400 + 700 * digit])
  for name in ('0_0_1', '0_1_1', '0_1_0', '1_0_0', '1_1_0'):
    tone(folder / 'yesno' / f'{name}.wav', [500 if said == '1' else 2000 for said in name.split('_')])
  return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write(tmp_path_factory.mktemp('speech_translation'))


def build(folder, **changes):
  return translation.build(translation.Config(data_dir=str(folder), **{**SMALL, **changes}))


def test_train_prints_error_rates_and_what_the_run_says(folder, tmp_path, capsys):
  options = [f'--{name}={value}' for name, value in SMALL.items()]
  place = tmp_path / 'run'
  argv = ['train', 'speech_translation', *options, f'--data_dir={folder}', f'--run_dir={place}']
  assert cli.main(argv) == 0
  header, *rows = capsys.readouterr().out.split('\ntest')[1].splitlines()
  assert header.split() == ['wer', 'cer', 'bleu', 'chrf', 'loss']
  values = {row.split()[0]: row.split()[1:] for row in rows[1:3]}
  assert [value == '–' for value in values['digits']] == [False, False, True, True, False]
  assert [value == '–' for value in values['de']] == [True, True, False, False, False]
  translation.main([str(place), '--count', '2'])
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == ['digits', 'found', 'digits', 'found', 'de', 'found', 'de', 'found']
  said = (folder / 'multi30k' / 'test_2016_flickr.de').read_text(encoding='utf-8').splitlines()
  assert lines[4].split(maxsplit=2)[2] == said[0]
  assert set(lines[0].split()[2:]) <= set(spoken_digits.WORDS[:3])


def test_every_language_is_a_task(folder):
  experiment = build(folder, languages=('de', 'fr'), recordings=('digits', 'yesno'), augment=True)
  assert [task.name for task in experiment.tasks] == ['digits', 'yesno', 'de', 'fr']
  batch = experiment.train(0, 0)
  assert {name: len(part['labels']) for name, part in batch.items()} == dict.fromkeys(batch, 4)
  np.testing.assert_array_equal(batch['yesno']['labels'][:, 3:], 0)
  assert experiment.test[0]['yesno']['mask'].sum() == 2
  # The key of a batch is that of its step: what is masked is the same again.
  np.testing.assert_array_equal(batch['digits']['inputs']['x'], experiment.train(0, 0)['digits']['inputs']['x'])
  run = runs.Run(experiment_lib.subset(experiment, ['fr']), experiment_lib.Options(steps=1))
  assert run.names == ('fr',)


@pytest.mark.parametrize('architecture', ['hard', 'mmoe(num_experts=2)', 'cross_stitch', 'lora'])
@pytest.mark.parametrize('trunk', ['recurrent', 'transformer'])
def test_trunks_and_architectures(folder, trunk, architecture):
  experiment_lib.check_model(build(folder, trunk=trunk, architecture=architecture))


def test_only_one_kind_of_task(folder):
  assert [task.name for task in build(folder, languages=()).tasks] == ['digits']
  assert [task.name for task in build(folder, recordings=()).tasks] == ['de']


def test_long_examples_are_for_testing_only(folder):
  whole, short = build(folder), build(folder, max_length=6, max_seconds=0.5)
  for task, leaf in (('digits', 'x'), ('de', 'targets')):
    lengths = [part.examples[task]['inputs'][leaf].shape[:2] for part in (whole.train, short.train)]
    assert lengths[1][0] < lengths[0][0] and lengths[1][1] < lengths[0][1]
    assert whole.test[0][task]['inputs'][leaf].shape == short.test[0][task]['inputs'][leaf].shape
  assert short.train.examples['digits']['labels'].shape[1] == 2  # tones of 0.2 s


BAD = {
  'languages': (dict(languages=('cs',)), r'has no train\.cs or train\.cs\.gz'),
  'recordings': (dict(recordings=('digit',)), r"recordings: .*unknown \['digit'\]"),
  'trunk': (dict(trunk='lstm'), "trunk: found 'lstm', expected 'transformer' or 'recurrent'"),
  'architecture': (dict(architecture='mmo'), "architecture: .*'mmo'"),
  'max_length': (dict(max_length=1), "max_length: found 1, expected more: no sentence of task 'de' is as short"),
  'max_seconds': (dict(max_seconds=0.1), "max_seconds: found 0.1, expected more: no string of 'digits' is as short"),
  'vocabulary': (dict(vocabulary=5000), 'bpe: size is 5000, which does not fit 40 sentences'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_options_are_named(folder, name):
  changes, message = BAD[name]
  with pytest.raises(mtl.InputError, match=message):
    build(folder, **changes)


def rate(folder):
  import soundfile

  soundfile.write(folder / 'fsdd' / '1_ann_10.wav', np.zeros(1600), 16000)


def missing(folder):
  (folder / 'multi30k' / 'val.de').unlink()


def counts(folder):
  with (folder / 'multi30k' / 'train.de').open('a', encoding='utf-8') as file:
    file.write('noch einer\n')


def empty(folder):
  path = folder / 'multi30k' / 'train.de'
  first, _, *rest = path.read_text(encoding='utf-8').split('\n')
  path.write_text('\n'.join([first, '', *rest]), encoding='utf-8')


def damaged(folder):
  path = folder / 'fsdd' / '2_ann_5.wav'
  path.write_bytes(b'RIFF' + path.read_bytes()[100:])


@pytest.mark.parametrize(
  'spoil, message',
  [
    (rate, r'1_ann_10\.wav.*16000.*8000|1_ann_10\.wav.*8000.*16000'),
    (missing, r'has no val\.de or val\.de\.gz'),
    (counts, r'train\.de: found 41 sentences, expected 40, as in .*train\.en'),
    (empty, r'train\.de, line 2: found nothing, expected a sentence'),
    (damaged, r'2_ann_5\.wav'),
  ],
)
def test_bad_files_are_named(tmp_path, spoil, message):
  folder = write(tmp_path, languages=('en', 'de'))
  spoil(folder)
  with pytest.raises(mtl.InputError, match=message):
    build(folder)


@pytest.mark.data
def test_the_real_files(data_dir):
  config = translation.Config(data_dir=str(data_dir), languages=('de', 'fr'), recordings=('digits', 'yesno'))
  experiment = translation.build(dataclasses.replace(config, strings=100, eval_strings=20))
  sizes = {name: len(part['labels']) for name, part in experiment.train.examples.items()}
  assert sizes['de'] > 24_000 and sizes['fr'] > 22_000 and 60 < sizes['digits'] <= 100 and sizes['yesno'] == 32
  assert sum(int(batch['yesno']['mask'].sum()) for batch in experiment.test) == 29
  assert sum(int(batch['de']['mask'].any(axis=1).sum()) for batch in experiment.test) == 1000
  run = runs.Run(experiment, experiment_lib.Options(steps=2))
  _, info = run.step(run.init(), 0)
  assert np.isfinite(np.asarray(info.losses)).all()
