"""Strict settings for every test: four virtual devices, no silent rank promotion, a compilation cache on disk."""

import gc
import importlib.metadata
import os
import pathlib
import tempfile

FLAGS = [
  f'--xla_force_host_platform_device_count={os.environ.get("MTLJAX_TEST_DEVICES", 4)}',
  '--xla_backend_optimization_level=0',  # most of the time goes into compiling nets that compute for milliseconds
  '--xla_cpu_parallel_codegen_split_count=1',
  # Without optimisation a product and a sum become one instruction here and two there (FMA), and what is computed twice
  # may differ from itself; the gradient of a maximum divides by the number of places that equal it. So no FMA.
  '--xla_cpu_max_isa=AVX',
]
if tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2])) < (0, 11):  # later ones do not know the flag
  FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'cuda' in os.environ['JAX_PLATFORMS']:
  FLAGS = [FLAGS[0], '--xla_gpu_autotune_level=0']
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # workers share the device
os.environ.setdefault('XLA_FLAGS', ' '.join(FLAGS))
os.environ.setdefault('MPLBACKEND', 'agg')
CACHE = pathlib.Path(os.environ.get('MTLJAX_TEST_CACHE', pathlib.Path(tempfile.gettempdir()) / 'mtljax-test-cache'))
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_finish():
  """Modules and tests stay to the end, as compiled programs do: looked through for garbage again and again in vain."""
  gc.freeze()
  gc.set_threshold(50_000, 20, 50)


def pytest_addoption(parser):
  parser.addoption('--data_dir', default=None, help='folder of data sets, for tests marked `data`')


@pytest.fixture
def data_dir(request):
  """Folder of the data sets that are not shipped."""
  folder = request.config.getoption('--data_dir')
  if folder is None:
    pytest.fail('tests marked `data` need --data_dir=DIR')
  return pathlib.Path(folder)


@pytest.fixture
def x64():
  """Double precision for one test."""
  with jax.enable_x64(True):
    yield
