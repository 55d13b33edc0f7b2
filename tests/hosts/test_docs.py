"""The scripts of docs/hosts.md, run as they stand there but for names of hosts and places, on loopback."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import processes
import pytest
import yaml

from mtljax import checkpoint

DOCS = pathlib.Path(__file__).parents[2] / 'docs' / 'hosts.md'
SHORT = '--steps 20 --checkpoint_every 10'
LONG = '--steps 100000 --checkpoint_every 10 --log_every 1'
# stands in for srun: two tasks, told of each other as SLURM does; SIGTERM goes to both, as `--signal` does it
SRUN = """#!/bin/bash
shift
for i in 0 1; do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=2 SLURM_STEP_NODELIST=127.0.0.1 "$@" & pids="$pids $!"
done
trap 'kill -TERM $pids' TERM
for pid in $pids; do wait $pid || wait $pid || code=$?; done
exit $code
"""


def blocks(language):
  return re.findall(rf'```{language}\n(.*?)```', DOCS.read_text(), re.DOTALL)


@pytest.fixture
def place(tmp_path):
  """(folder, environment): `mtljax` is on the path, and where stand-ins for programs go."""
  (tmp_path / 'bin').mkdir()
  path = f'{tmp_path / "bin"}:{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  port = processes.free_port()
  more = {'PATH': path, 'JAX_COORDINATOR_PORT': str(port), 'JAX_COORDINATOR_BIND_ADDRESS': f'127.0.0.1:{port}'}
  return tmp_path, processes.environment(1, **more, SLURM_JOB_ID='7')


def stand_in(folder, name, text):
  path = folder / 'bin' / name
  path.write_text(text)
  path.chmod(0o755)


def here(text, place, options, **names):
  """A script with places and hosts of this machine."""
  folder, environment = place
  port = environment['JAX_COORDINATOR_PORT']
  text = text.replace('mtljax train multi_digits', f'mtljax train multi_digits {options}').replace('12345', port)
  for name, value in {'/shared/runs': str(folder), '/runs': str(folder), **names}.items():
    text = text.replace(name, value)
  return text


def start(scripts, place, **more):
  folder, environment = place
  found = []
  for number, script in enumerate(scripts):
    with (folder / f'said.{number}').open('w') as file:
      options = dict(cwd=folder, env={**environment, **more}, stdout=file, stderr=subprocess.STDOUT)
      if isinstance(script, tuple):
        options['env'] = {**options['env'], **script[1]}
        script = script[0]
      found.append(subprocess.Popen(script, **options))
  return found


def wait(found, folder, codes):
  try:
    ended = [process.wait(processes.PATIENCE) for process in found]
  finally:
    for process in found:
      process.kill()
  assert ended == codes, '\n'.join(path.read_text() for path in folder.glob('said.*'))


def wait_for(path, found):
  end = time.monotonic() + processes.PATIENCE
  while not path.exists() and time.monotonic() < end and all(process.poll() is None for process in found):
    time.sleep(0.1)
  assert path.exists()


def sh(script):
  return ['bash', '-c', script]


@pytest.mark.slow
def test_by_hand(place):
  folder, _ = place
  (commands,) = [block for block in blocks('sh') if '--process_id 0' in block]
  lines = here(commands, place, SHORT, alpha='127.0.0.1').splitlines()
  wait(start([sh(f'exec {line}') for line in lines], place), folder, [0, 0])
  assert checkpoint.steps(folder / 'digits' / 'checkpoints')[0] == 20


@pytest.mark.slow
def test_slurm_goes_on_after_its_time_is_over(place):
  folder, _ = place
  stand_in(folder, 'srun', SRUN)
  stand_in(folder, 'scontrol', f'#!/bin/bash\necho "$@" >> {folder}/requeued\n')
  (script,) = [block for block in blocks('sh') if '#SBATCH' in block]
  found = start([sh(here(script, place, LONG))], place)
  wait_for(folder / 'digits' / 'checkpoints' / '10', found)
  srun = subprocess.run(['pgrep', '-P', str(found[0].pid)], capture_output=True, text=True, check=True).stdout.split()
  os.kill(int(srun[0]), signal.SIGTERM)
  wait(found, folder, [0])
  assert (folder / 'requeued').read_text() == 'requeue 7\n' and not (folder / 'digits' / 'result.json').exists()
  step = checkpoint.steps(folder / 'digits' / 'checkpoints')[0]
  wait(start([sh(here(script, place, f'--steps {step + 5}'))], place), folder, [0])
  assert (folder / 'requeued').read_text() == 'requeue 7\n' and (folder / 'digits' / 'result.json').exists()


@pytest.mark.slow
def test_slurm_ends_with_a_wrong_option(place):
  folder, _ = place
  stand_in(folder, 'srun', SRUN)
  (script,) = [block for block in blocks('sh') if '#SBATCH' in block]
  wait(start([sh(here(script, place, '--balancer no_such'))], place), folder, [2])


def manifest():
  service, job = yaml.safe_load_all(*blocks('yaml'))
  return service, job


def test_the_pods_of_the_job_have_the_names_that_the_command_says():
  service, job = manifest()
  spec = job['spec']
  assert spec['completionMode'] == 'Indexed' and spec['completions'] == spec['parallelism'] == 2
  assert service['spec']['selector'] == {'job-name': job['metadata']['name']}
  (container,) = spec['template']['spec']['containers']
  host = f'{job["metadata"]["name"]}-0.{spec["template"]["spec"]["subdomain"]}'
  assert spec['template']['spec']['subdomain'] == service['metadata']['name']
  assert f'--coordinator {host}:' in container['args'][0]


@pytest.mark.slow
def test_a_pod_that_is_evicted_is_no_success(place):
  folder, _ = place
  (container,) = manifest()[1]['spec']['template']['spec']['containers']
  command = lambda options: [
    (
      [
        *container['command'],
        *(here(text, place, options, **{'digits-0.digits': '127.0.0.1'}) for text in container['args']),
      ],
      {'JOB_COMPLETION_INDEX': str(index)},
    )
    for index in range(2)
  ]
  found = start(command(LONG), place)
  wait_for(folder / 'digits' / 'checkpoints' / '10', found)
  found[1].send_signal(signal.SIGTERM)
  wait(found, folder, [1, 1])
  assert 'Stopped by SIGTERM' in (folder / 'said.0').read_text()
  step = checkpoint.steps(folder / 'digits' / 'checkpoints')[0]
  wait(start(command(f'--steps {step + 5}'), place), folder, [0, 0])
