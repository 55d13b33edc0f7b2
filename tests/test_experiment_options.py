"""Options of the shipped experiments that cannot be: said before any data are read."""

import dataclasses
import math
import pathlib

import pytest

from mtljax import experiment as experiment_lib
from mtljax.base import InputError

FOLDER = pathlib.Path(__file__).parents[1] / 'experiments'
OUT_OF_RANGE = {
  'molecules': {'weight_decay': (-1.0, math.inf)},
  'related_tasks': {'beta': (-1.0, math.inf), 'decay': (-1.0,), 'data_seed': (-1,)},
  'scene': {'stages': (0,), 'boundary_weight': (-1.0, math.inf)},
  'shared_kernel_svm': {'rank': (0,), 'C': (0.0, -1.0, math.inf), 'kernel_rate': (-1.0, math.inf)},
  'speech_translation': {'width': (0,), 'depth': (0, -1), 'val_sentences': (0, -1), 'recognition_weight': (-1.0,)},
  'tagging': {'depth': (0,), 'parts': (0, -1), 'entity_weight': (-1.0,), 'word_dropout': (-0.1, 1.0, math.inf)},
  'text_embeddings': {
    'features': (0,),
    'skip_gram_steps': (-1,),
    'word_dropout': (-0.1, 1.0),
    'head_rate': (-1.0, math.inf),
  },
}


@pytest.mark.parametrize('name', OUT_OF_RANGE)
def test_numbers_out_of_range_are_named(name, tmp_path):
  module = experiment_lib.load(str(FOLDER / f'{name}.py'))
  for option, values in OUT_OF_RANGE[name].items():
    for value in values:
      config = dataclasses.replace(module.Config(), **{option: value})
      with pytest.raises(InputError, match=f'{option}: found {value}, expected'):
        module.build(config)


def test_ranges_are_half_open_and_finite():
  @dataclasses.dataclass
  class Config:
    depth: int = 1
    share: float = 0.0
    sizes: tuple = (2, 3)

  experiment_lib.check_ranges(Config(), depth=1, share=(0, 1), sizes=2)
  for changed, limits, message in (
    ({'depth': 0}, {'depth': 1}, 'depth: found 0, expected a number >= 1'),
    ({'depth': math.inf}, {'depth': 1}, 'depth: found inf'),
    ({'share': 1.0}, {'share': (0, 1)}, 'share: found 1.0, expected a number of at least 0 and below 1'),
    ({'share': math.nan}, {'share': (0, 1)}, 'share: found nan'),
    ({'sizes': (2, 1)}, {'sizes': 2}, r'sizes: found \(2, 1\)'),
  ):
    with pytest.raises(InputError, match=message):
      experiment_lib.check_ranges(Config(**changed), **limits)
