"""The problem of two functions in `experiments/toy_two_objectives.py`."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtljax as mtl
from mtljax import experiment as experiment_lib
from mtljax import runs

toy = experiment_lib.load('toy_two_objectives')
pytestmark = pytest.mark.usefixtures('x64')


def ends(call, **config):
  return toy.trajectories(mtl.balancing.parse(call), toy.Config(**config))[-1]


@pytest.mark.parametrize(
  'theta, first, second',
  [
    ((9.0, 9.0), 7.943950, 6.691496),  # tanh 4.5 (log 7 + 6), tanh 4.5 (log 2 + 6)
    ((0.0, -1.0), -6.751532, -6.751532),  # tanh .5 (5.39 - 20), the axis of symmetry
    ((7.0, -8.0), -19.986586, -0.399732),  # tanh 4 (-20), tanh 4 (19.6 - 20)
    ((9.0, 0.0), 0.0, 0.0),  # neither half plane
  ],
)
def test_functions_by_hand(theta, first, second):
  np.testing.assert_allclose(toy.objective(jnp.array(theta)), first, atol=1e-6)
  np.testing.assert_allclose(toy.objective(jnp.array(theta), mirrored=True), second, atol=1e-6)


def test_the_valley_has_a_floor():
  bottom = jnp.array([2 * math.tanh(5.0) - 7, 5.0])
  value, gradient = jax.value_and_grad(toy.objective)(bottom)
  np.testing.assert_allclose(value, math.tanh(2.5) * (math.log(5e-6) + 6), rtol=1e-9)
  assert gradient[0] == 0 and gradient[1] < 0


def test_no_descent_from_the_pareto_set():
  front = toy.pareto_set(15)
  first = jax.vmap(jax.grad(toy.objective))(front)
  second = jax.vmap(jax.grad(lambda theta: toy.objective(theta, mirrored=True)))(front)
  share = (7 + front[:, :1]) / 14
  np.testing.assert_allclose(share * first + (1 - share) * second, 0, atol=1e-12)
  assert (np.abs(first[1:-1, 0]) > 0.1).all()  # opposite, not both zero
  np.testing.assert_allclose(front[7], [0, -8.3552], atol=2e-4)  # the line that the papers draw


def test_distance_from_the_pareto_set():
  end = toy.pareto_set()[-1]
  points = np.stack([end, end + [3.0, 4.0], end + [2.0, 0.0], [0.0, -8.3551 + 1.5]])
  np.testing.assert_allclose(toy.pareto_distance(points), [0, math.hypot(3, 4), 2, 1.5], atol=1e-3)


def test_losses_are_positive():
  side = np.linspace(-12, 12, 97)
  grid = np.stack(np.meshgrid(side, side), axis=-1)
  assert toy.objective(grid).min() > toy.LOWER + 0.9


def test_equal_is_adam_on_the_sum():
  config = toy.Config(steps=250, learning_rate=1e-2)
  path = toy.trajectories(mtl.balancing.equal(), config)
  assert path.shape == (4, 5, 2)  # 0, 100, 200 and 250 steps
  np.testing.assert_array_equal(path[0], toy.STARTS)

  def total(theta):
    return (0.1 * toy.objective(theta) + toy.objective(theta, mirrored=True)).sum()

  theta, adam = jnp.array(toy.STARTS), optax.adam(1e-2)

  def step(_, carry):
    theta, state = carry
    updates, state = adam.update(jax.grad(total)(theta), state)
    return theta + updates, state

  state = adam.init(theta)
  for place, count in ((1, 100), (2, 100), (3, 50)):
    theta, state = jax.lax.fori_loop(0, count, step, (theta, state))
    np.testing.assert_allclose(path[place], theta, atol=1e-9)


@pytest.mark.parametrize('call, least, most', [('nash_mtl', 0, 1e-6), ('imtl_g', 0, 1e-6), ('equal', 1, 20)])
def test_only_some_methods_see_the_scale(call, least, most, monkeypatch):
  """At unit speed: the length of IMTL-G's direction changes with the scale, which Adam would remember."""

  def at_unit_speed(config, build=toy.build):
    optimizer = lambda rate, names: optax.chain(optax.normalize_by_update_norm(eps=0), optax.sgd(rate))
    return dataclasses.replace(build(config), optimizer=optimizer)

  monkeypatch.setattr(toy, 'build', at_unit_speed)
  tenth, one = (ends(call, scale=scale, steps=150, learning_rate=0.03) for scale in (0.1, 1.0))
  apart = np.linalg.norm(tenth - one, axis=-1)
  assert least <= apart.max() <= most, apart


def test_methods_that_split_the_batch_find_the_same_in_every_part(monkeypatch):
  twelve = ends('modo', steps=50, learning_rate=0.01)
  monkeypatch.setattr(toy, 'ROWS', 3)
  three = ends('modo', steps=50, learning_rate=0.01)
  np.testing.assert_allclose(twelve, three, atol=1e-9)
  assert (np.linalg.norm(three - np.array(toy.STARTS), axis=-1) > 0.1).all()


def test_one_start_as_an_experiment():
  experiment = experiment_lib.build(toy, toy.Config(start=(9.0, -1.0)))
  run = runs.Run(experiment, experiment_lib.Options('equal', learning_rate=1e-3))
  state = run.init()
  for index in range(3):
    state, info = run.step(state, index)
  np.testing.assert_allclose(state.params['shared']['theta'], [9.0, -1.0], atol=4e-3)
  assert np.all(state.params['shared']['theta'] != jnp.array([9.0, -1.0]))
  found = run.evaluate(state, experiment.test)
  values = [float(toy.objective(state.params['shared']['theta'], mirrored=side)) for side in (False, True)]
  np.testing.assert_allclose(found['first']['above bound'], 0.1 * (values[0] + 21), rtol=1e-6)
  np.testing.assert_allclose(found['second']['loss'], values[1] + 21, rtol=1e-6)


def test_every_method_has_a_call():
  for name in mtl.balancing.METHODS:
    for call in toy.CALLS.get(name, (name,)):
      assert call.startswith(name) and mtl.balancing.parse(call).level
  assert set(toy.CALLS) | set(toy.NOT_FOR_TWO) <= set(mtl.balancing.METHODS)


def test_split_calls():
  text = 'equal, log_losses(cagrad(c=0.4, rescale=1)),constant((1.0, 2.0)) ,famo'
  assert toy.split_calls(text) == ['equal', 'log_losses(cagrad(c=0.4, rescale=1))', 'constant((1.0, 2.0))', 'famo']
  assert toy.split_calls('') == []


def test_table():
  path = np.zeros((2, 5, 2))
  path[-1] = toy.pareto_set()[[0, 700, 1400, 700, 700]]
  path[-1, 3] += [0.0, 0.11]
  path[-1, 4] += [-1e-9, 0.09]
  text = toy.table([('a', 'losses', path, 1.4), ('b', 'gramian', 'needs more', 0.0)]).splitlines()
  assert text[0].split() == 'method level Pareto -8.5,7.5 0,0 9,9 -7.5,-0.5 9,-1 time [s]'.split()
  assert text[2].split() == 'a losses 4/5 -7.00 0.00 7.00 (0.00) 0.00 1'.split()
  assert text[3:] == ['b: needs more']


def test_figure_has_a_labelled_panel_for_each_method():
  paths = {f'method {i}': np.cumsum(np.full((4, 5, 2), 0.1), axis=0) for i in range(9)}
  canvas = toy.figure(paths, 0.1)
  canvas.canvas.draw()
  panels = [axis for axis in canvas.axes if axis.get_title()]
  assert [axis.get_title() for axis in panels] == list(paths)
  assert [axis.get_ylabel() != '' for axis in panels] == [i % 7 == 0 for i in range(9)]
  assert [axis.get_xlabel() != '' for axis in panels] == [i >= 2 for i in range(9)]  # the lowest of each column
  assert all(axis.get_xlabel() in ('', r'$\theta_1$') and axis.get_ylabel() in ('', r'$\theta_2$') for axis in panels)
  texts = [text for text in canvas.findobj(lambda x: hasattr(x, 'get_fontsize')) if text.get_text()]
  assert texts and min(text.get_fontsize() for text in texts) >= 7 and 10 <= canvas.get_size_inches()[0] <= 12
  assert all('0/5' in [text.get_text() for text in axis.texts] for axis in panels)


def test_main_prints_the_table_and_draws(tmp_path, capsys):
  toy.main(['--methods', 'equal,krum', '--steps', '100', '--out', str(tmp_path / 'new')])
  printed = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in printed] == ['method', printed[1].split()[0], 'equal', 'krum:']
  assert (tmp_path / 'new' / 'toy_two_objectives.png').read_bytes()[1:4] == b'PNG'
  with pytest.raises(SystemExit):
    toy.main(['--methods', 'equa', '--out', str(tmp_path)])
  assert "unknown method 'equa'" in capsys.readouterr().err


def test_config_is_that_of_the_papers():
  assert dataclasses.astuple(toy.Config()) == (0.1, (-8.5, 7.5), 1e-3, 50_000)
