import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tiny

import mtljax as mtl
from mtljax import checkpoint, cli, experiment, loop, rundir, runs, sharing, training
from mtljax.cli import COMMANDS, main

TRAIN = ('--steps', '12', '--eval_every', '6', '--checkpoint-every', '4', '--balancer', 'uncertainty')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('cli')
  tiny.write(path)
  (path / 'other').mkdir()
  (path / 'other' / 'config.json').write_text('{"hidden_size": 3}')
  return path


def call(capfd, *argv):
  """Exit code, what went to stdout, what went to stderr without the progress bars."""
  code = main(list(argv))
  out, err = capfd.readouterr()
  err = '\n'.join(
    line for line in re.split(r'[\r\n]', err) if line.strip() and 'it/s' not in line and '?it' not in line
  )
  assert 'Traceback' not in err
  return code, out, err


def table(text):
  lines = text.splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith('test'))
  return lines[start:]


@pytest.fixture(scope='module')
def undisturbed(folder):
  """A run from the console script, as a user starts it."""
  script = pathlib.Path(sys.executable).parent / 'mtljax'
  command = [str(script), 'train', 'tiny.py', *TRAIN, '--run-dir', 'runs/whole', '--width=6']
  done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return folder / 'runs' / 'whole', done


def test_train_shows_progress_and_prints_a_table(undisturbed):
  run_dir, done = undisturbed
  assert re.search(r'uncertainty: 100%.*12/12 .*kind [\d.]+ size [\d.]+', done.stderr)
  lines = table(done.stdout)
  assert lines[0].split() == ['test', 'accuracy', 'rmse', 'mae', 'loss'] and len({len(line) for line in lines}) == 1
  result = rundir.read_json(run_dir / 'result.json')
  assert lines[2].split() == ['kind', f'{result["test"]["kind"]["accuracy"]:.4f}', '–', '–', lines[2].split()[-1]]
  assert result['steps'] == 12 and result['balancer'] == 'uncertainty'
  config = rundir.read_json(run_dir / 'config.json')
  assert config['config']['width'] == 6 and config['config']['steps'] == 12 and config['learning_rate'] == 1e-2
  assert config['source'].endswith('tiny.py') and config['mtljax'] == mtl.__version__


def test_evaluate_prints_the_same_table(undisturbed, capfd):
  run_dir, done = undisturbed
  code, out, err = call(capfd, 'evaluate', str(run_dir))
  assert code == 0 and table(out) == table(done.stdout) and err == ''
  code, out, _ = call(capfd, 'evaluate', str(run_dir), '--checkpoint', 'best')
  assert code == 0 and f'step {checkpoint.best_step(run_dir / "checkpoints")} in' in out


KILL = """
import os, signal, sys
from mtljax import cli
from mtljax.runs import Run
step = Run.step
def killing(self, state, index):
  if index == 10:
    os.kill(os.getpid(), signal.SIGKILL)
  return step(self, state, index)
Run.step = killing
cli.main(sys.argv[1:])
"""


def test_kill_and_resume_end_with_the_same_bits(folder, undisturbed, capfd):
  run_dir = folder / 'runs' / 'killed'
  argv = ['train', str(folder / 'tiny.py'), *TRAIN, '--run_dir', str(run_dir), '--width', '6']
  done = subprocess.run([sys.executable, '-c', KILL, *argv], capture_output=True, text=True)
  assert done.returncode == -signal.SIGKILL and not (run_dir / 'result.json').exists()
  code, out, err = call(capfd, 'train', '--resume', str(run_dir))
  assert code == 0, err
  assert re.search('steps [68] to 12', out)  # the checkpoint of step 8 was being written
  assert table(out) == table(undisturbed[1].stdout)
  digests = [rundir.read_json(path / 'result.json')['params_sha256'] for path in (run_dir, undisturbed[0])]
  assert digests[0] == digests[1]
  assert (run_dir / 'metrics.jsonl').read_text() == (undisturbed[0] / 'metrics.jsonl').read_text()
  assert checkpoint.steps(run_dir / 'checkpoints') == checkpoint.steps(undisturbed[0] / 'checkpoints')


def test_resume_extends(folder, capfd, tmp_path):
  argv = ('train', str(folder / 'tiny.py'), '--run_dir', str(tmp_path / 'run'), '--steps', '3')
  assert call(capfd, *argv)[0] == 0
  code, out, _ = call(capfd, 'train', '--resume', str(tmp_path / 'run'), '--steps', '5')
  assert code == 0 and 'steps: 3 becomes 5; a schedule that depends on steps changes with it.' in out
  assert rundir.read_json(tmp_path / 'run' / 'result.json')['steps'] == 5
  assert rundir.read_json(tmp_path / 'run' / 'config.json')['config']['steps'] == 5
  code, _, err = call(capfd, 'train', '--resume', str(tmp_path / 'run'), '--steps', '4')
  assert code == 2 and 'steps: found 4, expected at least 5' in err


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--seed', '3'], '--seed: found 3, expected 0, as the run in'),
    (['--balancer=equal'], '--balancer: found equal, expected uncertainty'),
    (['--width', '7'], '--width: found 7, expected 6'),
    (['--overwrite'], '--overwrite: found together with --resume'),
    (['--run_dir', 'elsewhere'], '--run_dir: found elsewhere, expected'),
  ],
)
def test_resume_keeps_what_the_run_was_started_with(undisturbed, capfd, argv, message):
  code, _, err = call(capfd, 'train', '--resume', str(undisturbed[0]), *argv)
  assert code == 2 and message in err and len(err.splitlines()) == 1


def test_no_option_takes_nan(folder, capfd, tmp_path):
  argv = ('train', str(folder / 'tiny.py'), '--rate_of_labels', 'nan', '--run_dir', str(tmp_path / 'run'))
  code, _, err = call(capfd, *argv)
  assert code == 2 and err == 'mtljax train: rate_of_labels: found nan, expected a number.'
  assert not (tmp_path / 'run').exists()


def test_sigterm_is_a_clean_stop(folder, capfd, tmp_path, monkeypatch):
  step = runs.Run.step

  def stopping(self, state, index):
    if index == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    return step(self, state, index)

  monkeypatch.setattr(runs.Run, 'step', stopping)
  run_dir = tmp_path / 'run'
  code, out, err = call(capfd, 'train', str(folder / 'tiny.py'), *TRAIN, '--run_dir', str(run_dir))
  assert code == 0 and f'mtljax train --resume {run_dir}' in out and checkpoint.steps(run_dir / 'checkpoints') == [5, 4]


def test_nan_is_one_sentence_and_exit_code_1(folder, capfd, tmp_path):
  argv = ('train', str(folder / 'tiny.py'), '--bad_row', '5', '--steps', '12', '--run_dir', str(tmp_path / 'run'))
  code, _, err = call(capfd, *argv, '--checkpoint_every', '1')
  assert code == 1
  said = err.splitlines()[-1]
  where = r'(The last good checkpoint is .*/run/checkpoints/\d+|There is no checkpoint yet)'
  assert re.fullmatch(rf"mtljax train: The loss of task 'size' became nan at step \d+\. {where}\.", said)


def test_compare(folder, capfd, tmp_path):
  run_dir = tmp_path / 'run'
  argv = ('--balancers', 'equal', '--seeds', '2', '--learning_rates', '1e-7,1e-2', '--steps', '4')
  code, out, _ = call(capfd, 'compare', str(folder / 'tiny.py'), *argv, '--run-dir', str(run_dir))
  assert code == 0
  lines = out.splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith('method'))
  assert [line.split()[0] for line in lines[start + 2 :]] == ['single-task', 'equal'] and '±' in lines[start + 2]
  saved = json.loads((run_dir / 'compare.json').read_text())
  assert saved['seeds'] == [0, 1] and saved['learning_rates'] == [1e-7, 1e-2] and saved['steps'] == 4
  assert saved['config']['steps'] == 4 and saved['source'].endswith('tiny.py')
  assert {path.name for path in run_dir.iterdir()} == {'compare.json', 'compare.csv', 'compare.png'}


@pytest.mark.parametrize(
  'text, balancers',
  [
    ('equal,mgda', ['equal', 'mgda']),
    ('constant(weights=[1.0, 2.0]), cagrad(c=0.2)', ['constant(weights=[1.0, 2.0])', 'cagrad(c=0.2)']),
    ('ema(constant(weights=(1, 2)), decay=0.9),pcgrad', ['ema(constant(weights=(1, 2)), decay=0.9)', 'pcgrad']),
  ],
)
def test_balancers_are_split_at_their_commas(folder, capfd, monkeypatch, text, balancers):
  plans = []
  monkeypatch.setattr(cli, 'compare', lambda experiment, plan, **_: plans.append(plan))
  code, _, _ = call(capfd, 'compare', str(folder / 'tiny.py'), '--balancers', text)
  assert code == 0 and plans[0].balancers == balancers and plans[0].seeds == (0, 1, 2) and plans[0].steps == 40


def test_architectures_are_variants(folder, capfd, monkeypatch):
  source = tiny.SOURCE.replace('  width: int = 8\n', "  width: int = 8\n  architecture: str = 'hard'\n", 1)
  source = source.replace('mtl.sharing.hard(', 'mtl.sharing.parse(config.architecture)(')
  given = []
  monkeypatch.setattr(cli, 'compare', lambda experiment, plan, variants, **_: given.append((experiment, variants)))
  path = tiny.write(folder, 'several', source)
  code, _, _ = call(capfd, 'compare', str(path), '--architectures', 'mmoe(num_experts=3), hard,mmoe(num_experts=3)')
  assert code == 0
  experiment, variants = given[0]
  assert list(variants) == ['mmoe(num_experts=3)', 'hard']
  assert all(variant.train is experiment.train and variant.test is experiment.test for variant in variants.values())
  code, out, _ = call(capfd, 'compare', str(path), '--architectures', 'soft,all', '--width', '4')
  assert code == 0 and list(given[1][1])[0] == 'soft'
  assert set(given[1][1]) == set(sharing.ARCHITECTURES) - {'adashare'}
  assert out.startswith("left out, adashare: adashare stages: none of ['layer_0'] keeps the shape")
  code, _, said = call(capfd, 'compare', str(path), '--architectures', 'adashare', '--width', '4')
  assert code == 2 and said.startswith("mtljax compare: adashare stages: none of ['layer_0'] keeps the shape")

  # A trunk without stages is refused while the model is built.
  path = tiny.write(folder, 'stageless', source.replace('mtl.trunks.MLP((config.width,))', 'nn.Dense(config.width)'))
  code, out, _ = call(capfd, 'compare', str(path), '--architectures', 'all')
  assert code == 0 and 'left out, cross_stitch: stages: found Dense(' in out
  assert {'hard', 'mmoe', 'lora', 'soft'} <= set(given[2][1]) and not {'cross_stitch', 'ple'} & set(given[2][1])


def never(*args, **kwargs):
  raise AssertionError('trained')


@pytest.mark.parametrize(
  'argv, message',
  [
    (['trian'], r"mtljax trian: command 'trian' is unknown \(did you mean 'train'\?\), expected one of \["),
    (['train'], r'mtljax train: experiment: found none, expected a \.py file or one of \['),
    (['train', 'nope.py'], r'experiment nope.py: found no such file, expected a \.py file or one of'),
    (['train', 'TINY', '--balancer', 'cagard'], r"unknown method 'cagard', expected one of .* Did you mean 'cagrad'\?"),
    (['train', 'TINY', '--balancer', 'cagrad(d=1)'], r"cagrad: found unknown argument 'd'"),
    (['train', 'TINY', '--widht', '3'], r"option '--widht' is unknown \(did you mean '--width'\?\)"),
    (['train', 'TINY', 'stray'], r"argument 'stray' is unknown"),
    (['train', 'TINY', '--steps', 'many'], r"Error parsing --steps: invalid literal for int\(\) .* 'many'"),
    (['train', 'TINY', '--steps', '0'], r'steps: found 0, expected a positive integer'),
    (
      ['train', 'TINY', '--mode', 'gpu'],
      r"invalid choice 'gpu' for argument '--mode'. Expected one of \('jit', 'pmap'",
    ),
    (['train', 'TINY', '--seed', '-1'], r'seed: found -1, expected an integer >= 0'),
    (['train', 'TINY', '--batch_size', '1000'], r'batch_size: found 1000, expected at most 96'),
    (['train', 'TINY', '--batch_size', '6', '--mode', 'shard_map'], r'divisible by 4 devices'),
    (['train', 'TINY', '--balancer', 'graddrop', '--at', 'features'], r'features'),
    (['train', 'TINY', '--run_dir', 'FOLDER'], r'run directory .*: found files of an earlier run, .*--overwrite'),
    (['train', 'TINY', '--run_dir', 'TINY/x'], r'run directory .*/x: cannot be written \(Not a directory\)'),
    (['train', '--resume', 'FOLDER'], r'found no config.json, expected the directory of a run'),
    (['train', '--resume', 'OTHER'], r'its config.json is not one of `mtljax train`'),
    (['evaluate', 'OTHER'], r'its config.json is not one of `mtljax train`'),
    (['compare', 'TINY', '--balancers', 'equal,nope'], r"unknown method 'nope'"),
    (['compare', 'TINY', '--seeds', '0'], r'seeds: found 0, expected a positive integer'),
    (['compare', 'TINY', '--learning_rates', 'fast'], r"learning_rates: found 'fast', expected numbers"),
    (['compare', 'TINY', '--learning_rate', '1'], r"option '--learning_rate' is unknown"),
    (['compare', 'TINY', '--architectures', 'all'], r'architectures: the Config of tiny has no field `architecture`'),
    (['compare'], r'mtljax compare: experiment: found none'),
    (['evaluate'], r'mtljax evaluate: run directory: found none'),
    (['evaluate', 'nowhere'], r'run directory nowhere: found no config.json'),
    (['draw'], r'mtljax draw: experiment: found none, expected a \.py file or one of'),
    (['draw', 'TINY', '--out', 'model.txt'], r"out: found 'model\.txt', expected a file that ends in one of \('\.png'"),
    (['draw', 'TINY', '--out', 'TINY/x.png'], r'out: .*tiny\.py/x\.png cannot be written'),
    (['draw', 'TINY', '--steps', '3'], r"option '--steps' is unknown"),
    (['list', 'balancers'], r"argument 'balancers' is unknown"),
  ],
)
def test_bad_input_is_one_sentence_before_training(folder, capfd, monkeypatch, argv, message):
  monkeypatch.setattr(training, 'fit', never)
  monkeypatch.setattr(loop, 'fit', never)
  monkeypatch.chdir(folder)
  places = {
    'TINY': str(folder / 'tiny.py'),
    'FOLDER': str(folder),
    'OTHER': str(folder / 'other'),
    'TINY/x': str(folder / 'tiny.py' / 'x'),
    'TINY/x.png': str(folder / 'tiny.py' / 'x.png'),
  }
  before = set(folder.rglob('*'))
  code, out, err = call(capfd, *(places.get(text, text) for text in argv))
  assert code == 2 and re.search(message, err), err
  assert len(err.splitlines()) == 1 and err.startswith(f'mtljax {argv[0]}: ') and out == ''
  assert {path for path in set(folder.rglob('*')) - before if '__pycache__' not in str(path)} == set()


@pytest.mark.parametrize('command', list(COMMANDS))
@pytest.mark.parametrize('with_experiment', [False, True])
def test_help_has_every_option_its_meaning_and_default(folder, capfd, monkeypatch, command, with_experiment):
  monkeypatch.setenv('COLUMNS', '200')
  takes_one = command in ('train', 'compare', 'draw')
  argv = [str(folder / 'tiny.py')] if with_experiment and takes_one else []
  code, out, err = call(capfd, command, *argv, '--help')
  assert code == 0 and err == ''
  text = ' '.join(re.sub(r'[│╭╮╰╯─]', ' ', out).split())
  options = experiment.fields(COMMANDS[command][0])
  own = experiment.fields(experiment.load(argv[0]).Config) if argv else {}
  trains = {field.name for field in dataclasses.fields(experiment.Options)}
  for name, (_, default, meaning) in {**own, **options}.items():
    if name in own and name not in options and name in trains:
      assert f'--{name} ' not in text  # `compare` has rates and seeds of its own
      continue
    default = own[name][1] if name in own and name in options else default
    assert f'--{name}' in text, name
    assert meaning.split('.')[0] in text, name
    if isinstance(default, int | float) and name != 'data_dir':
      assert re.search(rf'--{name}\b.*?\(default: {default}\)', text), name
  assert command == 'list' or 'default: ' in text


def test_fields_of_commands_have_a_meaning():
  for cls, _ in COMMANDS.values():
    assert all(text for _, _, text in experiment.fields(cls).values()), cls


def test_top_level(capfd):
  for argv in ([], ['--help'], ['-h']):
    code, out, _ = call(capfd, *argv)
    assert code == 0 and all(f'\n  {command} ' in out for command in COMMANDS)
  code, out, _ = call(capfd, '--version')
  assert (code, out) == (0, f'mtljax {mtl.__version__}\n')
  module = subprocess.run([sys.executable, '-m', 'mtljax', '--version'], capture_output=True, text=True, check=True)
  assert module.stdout == out


def test_list_names_everything(capfd):
  code, out, _ = call(capfd, 'list')
  assert code == 0
  listed = {line.split()[0] for line in out.splitlines() if line.startswith('  ')}
  assert listed == {*mtl.balancing.METHODS, *mtl.sharing.ARCHITECTURES, *experiment.shipped()}
  assert all(len(line.split()) > 2 for line in out.splitlines() if line.startswith('  '))


def test_draw(folder, capfd, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, out, err = call(capfd, 'draw', str(folder / 'tiny.py'), '--width', '5')
  assert code == 0 and err == ''
  lines = out.splitlines()
  assert lines[0] == 'tiny, forward pass of one example; drawn in runs/tiny/structure.png'
  assert [line.split()[:2] for line in lines[3:6]] == [['shared', '35'], ['kind', '12'], ['size', '6']]
  assert pathlib.Path('runs/tiny/structure.png').read_bytes().startswith(b'\x89PNG')
  assert call(capfd, 'draw', str(folder / 'tiny.py'), '--out=model.svg')[0] == 0
  assert 'runs' in os.listdir() and '<svg' in pathlib.Path('model.svg').read_text()


def test_default_places(tmp_path, capfd, monkeypatch):
  source = tiny.SOURCE.replace('width: int = 8', "width: int = 8\n  data_dir: str = 'nowhere'")
  path = tiny.write(tmp_path, source=source)
  runs = []
  monkeypatch.setattr(training, 'train', lambda experiment, options, place, **kwargs: runs.append((place, kwargs)))
  monkeypatch.setenv('MTLJAX_DATA_DIR', '~/of_the_environment')
  argv = ('train', str(path), '--balancer', 'constant(weights=[1.0, 2.0])', '--seed=2')
  assert call(capfd, *argv)[0] == 0
  monkeypatch.delenv('MTLJAX_DATA_DIR')
  assert call(capfd, *argv)[0] == 0
  assert call(capfd, *argv, '--data_dir', 'given', '--run_dir', 'here')[0] == 0
  assert [kwargs['config']['config']['data_dir'] for _, kwargs in runs] == [
    str(pathlib.Path.home() / 'of_the_environment'),
    'nowhere',
    'given',
  ]
  places = [str(place) for place, _ in runs]
  assert places == ['runs/tiny/constant_weights_1.0_2.0-seed2'] * 2 + ['here']


def test_a_damaged_checkpoint_is_a_warning(undisturbed, capfd, tmp_path):
  shutil.copytree(undisturbed[0], tmp_path / 'run')
  newest = tmp_path / 'run' / 'checkpoints' / '12' / 'manifest' / 'metadata'
  newest.write_text(newest.read_text()[:-9])
  with warnings.catch_warnings():
    warnings.simplefilter('default')
    code, out, err = call(capfd, 'evaluate', str(tmp_path / 'run'))
  assert code == 0 and err.startswith('warning: checkpoint ') and 'Taking the one before.' in err
  assert 'step 8 in' in out or 'step 6 in' in out
  assert np.isfinite(float(table(out)[2].split()[1]))
