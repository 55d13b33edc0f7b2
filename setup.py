"""Packaging of mtljax; tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'mtljax' / 'version.py').read_text())[1]

setup(
  name='mtljax',
  version=VERSION,
  description='Deep multi-task learning in JAX: one trunk, many heads, every balancing method, one compiled step',
  long_description=(ROOT / 'README.md').read_text() if (ROOT / 'README.md').exists() else '',
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11',
  packages=[*find_packages(include=['mtljax', 'mtljax.*']), 'mtljax.experiments'],
  package_dir={'mtljax.experiments': 'experiments'},  # the wheel brings the experiments along
  package_data={'mtljax': ['py.typed']},
  install_requires=[
    'jax>=0.10.2',
    'flax>=0.12.8',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'numpy>=2.4',
    'tensorflow-datasets>=4.9.10',
    'array_record>=0.8.6',
    'importlib_resources>=7.0',
    'grain>=0.2.18',
    'google-metrax>=0.2.4',
    'scikit-learn>=1.9',
    'tyro>=1.0',
    'tqdm>=4.70',
    'matplotlib>=3.11',
    'pillow>=12.0',
    'soundfile>=0.14',
    'soxr>=1.0',
    'sentencepiece>=0.2.1',
    'jiwer>=4.0',
    'sacrebleu>=2.6',
  ],
  extras_require={
    'test': [
      'pytest>=8.0',
      'pytest-xdist>=3.6',
      'chex>=0.1.90',
      'scipy>=1.13',
      'librosa>=0.11',
      'scikit-image>=0.26',
      'ipython>=8.20',
      'nbformat>=5.10',
      'ruff>=0.8',
    ],
    'notebooks': ['nbformat>=5.10', 'nbconvert>=7.16', 'ipykernel>=6.29'],
    'tensorboard': ['tensorboardX>=2.6.5'],
    'bench': ['torch>=2.3', 'torchjd[full]>=0.18'],
    'cuda': ['jax[cuda13]>=0.10.2'],
    'tpu': ['jax[tpu]>=0.10.2'],
  },
  entry_points={'console_scripts': ['mtljax=mtljax.cli:main']},
)
