"""Bad input at construction and at trace time, and balancers from text."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from balancing_asserts import aggregate

from mtljax import balancing as b
from mtljax.base import LEVELS, Balancer, InputError

J = jnp.array([[1.0, 0.0], [-1.0, 1.0]])


def update_modo(statistic):
  balancer = b.modo()
  more = dict(losses=jnp.ones(2), present=jnp.ones(2, bool), key=jax.random.key(0), step=0)
  return balancer.update(statistic, balancer.init(J), **more)


BAD = {  # a call -> what its error names
  'cagrad c': (lambda: b.cagrad(c=-0.1), 'cagrad: c is -0.1'),
  'cagrad rescale': (lambda: b.cagrad(rescale=3), 'rescale is 3'),
  'cagrad text': (lambda: b.cagrad(c='high'), "c is 'high'"),
  'cagrad nan': (lambda: b.cagrad(c=float('nan')), 'c is nan'),
  'fairgrad': (lambda: b.fairgrad(alpha=0.0), 'fairgrad: alpha is 0.0'),
  'mgda': (lambda: b.mgda(normalize='l1'), "normalize is 'l1'"),
  'aligned_mtl': (lambda: b.aligned_mtl(scale_mode='max'), "scale_mode is 'max'"),
  'preference negative': (lambda: b.upgrad(preference=(1.0, -1.0)), 'upgrad: preference'),
  'preference zero': (lambda: b.dualproj(preference=(0.0, 0.0)), 'dualproj: preference'),
  'preference number': (lambda: b.config(preference=1.0), 'config: preference'),
  'regularization': (lambda: b.upgrad(regularization=-1.0), 'regularization is -1.0'),
  'nash_mtl norm': (lambda: b.nash_mtl(max_norm=0.0), 'max_norm is 0.0'),
  'nash_mtl every': (lambda: b.nash_mtl(update_every=0), 'update_every is 0'),
  'dwa steps': (lambda: b.dwa(steps_per_epoch=0), 'steps_per_epoch is 0'),
  'dwa fraction': (lambda: b.dwa(steps_per_epoch=1.5), 'steps_per_epoch is 1.5'),
  'dwa temperature': (lambda: b.dwa(steps_per_epoch=1, temperature=0.0), 'temperature is 0.0'),
  'famo': (lambda: b.famo(learning_rate=-1.0), 'learning_rate is -1.0'),
  'stch': (lambda: b.stch(mu=0.0), 'stch: mu is 0.0'),
  'graddrop': (lambda: b.graddrop(leak=1.5), 'leak is 1.5'),
  'gradvac': (lambda: b.gradvac(beta=-0.5), 'beta is -0.5'),
  'pcd': (lambda: b.pcd(primary=-1), 'primary is -1'),
  'krum': (lambda: b.krum(n_selected=0), 'n_selected is 0'),
  'pivrg': (lambda: b.pivrg(bound=1.0), 'bound is 1.0'),
  'conicgrad': (lambda: b.conicgrad(c=1.5), 'conicgrad: c is 1.5'),
  'modo': (lambda: b.modo(gamma=-1.0), 'modo: gamma is -1.0'),
  'modo rho': (lambda: b.modo(rho='small'), "modo: rho is 'small'"),
  'sdmgrad lam': (lambda: b.sdmgrad(lam=-0.1), 'sdmgrad: lam is -0.1'),
  'sdmgrad steps': (lambda: b.sdmgrad(steps=0), 'sdmgrad: steps is 0'),
  'sdmgrad rate': (lambda: b.sdmgrad(learning_rate=float('inf')), 'learning_rate is inf'),
  'sdmgrad momentum': (lambda: b.sdmgrad(momentum=1.0), 'momentum is 1.0'),
  'auto_lambda': (lambda: b.auto_lambda(inner_lr=0.0), 'auto_lambda: inner_lr is 0.0'),
  'auto_lambda primary': (lambda: b.auto_lambda(primary=(1.0, -1.0)), r'auto_lambda: primary is \(1.0, -1.0\)'),
  'auto_lambda initial': (lambda: b.auto_lambda(initial=None), 'initial is None'),
  'moml': (lambda: b.moml(inner_lr=-1.0), 'moml: inner_lr is -1.0'),
  'forum': (lambda: b.forum(rho=0.0), 'forum: rho is 0.0'),
  'forum rate': (lambda: b.forum(inner_lr=0.0), 'forum: inner_lr is 0.0'),
  'forum steps': (lambda: b.forum(inner_steps=2.5), 'forum: inner_steps is 2.5'),
  'forum decay': (lambda: b.forum(decay=-1.0), 'forum: decay is -1.0'),
  'cagrad tuple': (lambda: b.cagrad(c=(0.1, 0.2)), r'cagrad: c is \(0.1, 0.2\)'),
  'fairgrad array': (lambda: b.fairgrad(alpha=np.ones(2)), 'fairgrad: alpha is array'),
  'modo tuple': (lambda: b.modo(gamma=(0.1, 0.2)), r'modo: gamma is \(0.1, 0.2\), expected a number >= 0'),
  'auto_lambda tuple': (lambda: b.auto_lambda(inner_lr=(1.0, 2.0)), 'auto_lambda: inner_lr is'),
  'auto_lambda initials': (lambda: b.auto_lambda(initial=jnp.ones(2)), 'auto_lambda: initial is'),
  'moml list': (lambda: b.moml(inner_lr=[0.1]), r'moml: inner_lr is \[0.1\]'),
  'moco array': (lambda: b.moco(rho=jnp.zeros(1)), 'moco: rho is'),
  'sdmgrad counts': (lambda: b.sdmgrad(steps=(2,)), r'sdmgrad: steps is \(2,\), expected a whole number'),
  'auto_lambda optimizer': (lambda: b.auto_lambda(optimizer=3), 'auto_lambda: optimizer is 3, expected None or an'),
  'moml optimizer': (lambda: b.moml(optimizer='adam'), "moml: optimizer is 'adam'"),
  'forum optimizer': (lambda: b.forum(optimizer=3), 'forum: optimizer is 3'),
  'gradnorm optimizer': (lambda: b.gradnorm(optimizer=3), 'gradnorm: optimizer is 3'),
  'uncertainty optimizer': (lambda: b.uncertainty(optimizer=3), 'uncertainty: optimizer is 3'),
  'imtl optimizer': (lambda: b.imtl(optimizer=3), 'imtl: optimizer is 3'),
  'imtl_l optimizer': (lambda: b.imtl_l(optimizer=3), 'imtl_l: optimizer is 3'),
  'ldc_mtl optimizer': (lambda: b.ldc_mtl(optimizer=3), 'ldc_mtl: optimizer is 3'),
  'constant': (lambda: b.constant((1.0, float('inf'))), 'constant: weights'),
  'ema level': (lambda: b.ema(b.graddrop()), "level 'jacobian'"),
  'normalized level': (lambda: b.normalized(b.equal()), "level 'losses'"),
  'ema of nothing': (lambda: b.ema(0.9), 'expected a Balancer'),
  'log_losses oracle': (lambda: b.log_losses(b.modo()), "log_losses: found a balancer of level 'oracle'"),
  'normalized oracle': (lambda: b.normalized(b.sdmgrad()), "normalized: found a balancer of level 'oracle'"),
  'ema oracle': (lambda: b.ema(b.auto_lambda()), "ema: found a balancer of level 'oracle'"),
  'every oracle': (lambda: b.every(b.moml()), "every: found a balancer of level 'oracle'"),
  'warmup oracle': (lambda: b.warmup(b.forum()), "warmup: found a balancer of level 'oracle'"),
  'every': (lambda: b.every(b.mgda(), k=0), 'k is 0'),
  'warmup': (lambda: b.warmup(b.mgda(), steps=-1), 'steps is -1'),
  'too many weights': (lambda: b.aggregate(b.constant((1.0, 2.0, 3.0)), J), r'constant: weights: found shape \(3,\)'),
  'too many preferences': (lambda: b.aggregate(b.upgrad((1.0, 1.0, 1.0)), J), r'preference: found shape \(3,\)'),
  'too many byzantine': (lambda: b.aggregate(b.krum(n_byzantine=3), J), 'n_byzantine is 3'),
  'primary beyond': (lambda: b.aggregate(b.pcd(primary=2), J), 'primary is 2'),
  'order': (lambda: b.aggregate(b.pcgrad(), J, order=np.zeros((3, 3), int)), r'order: found shape \(3, 3\)'),
  'uniform': (lambda: b.aggregate(b.graddrop(), J, uniform=np.zeros(3)), r'uniform: found shape \(3,\)'),
  'normal': (lambda: b.aggregate(b.rlw(), J, normal=np.zeros(3)), r'normal: found shape \(3,\)'),
  'losses': (lambda: b.aggregate(b.equal(), J, jnp.ones(3)), r'losses: found shape \(3,\), expected \(2,\)'),
  'present': (lambda: b.aggregate(b.equal(), J, present=jnp.ones(1, bool)), r'present: found shape \(1,\)'),
  'ragged': (lambda: b.aggregate(b.equal(), {'a': jnp.ones((2, 3)), 'b': jnp.ones((3, 3))}), 'expected leaves'),
  'no balancer': (lambda: b.aggregate('mgda', J), "found 'mgda', expected a Balancer"),
  'too many primaries': (lambda: b.aggregate(b.auto_lambda((1.0,) * 3), J), r'primary: found shape \(3,\)'),
  'level': (lambda: b.aggregate(Balancer(None, None, 'feature'), J), "level 'feature', expected one of.*'oracle'"),
  'no oracle': (lambda: update_modo(J), 'statistic: found ArrayImpl, expected a function at level oracle'),
  'statistic': (lambda: b.mgda().init(jnp.ones((2, 3))), r'found shape \(2, 3\), expected f\[T, T\]'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_named(name):
  call, message = BAD[name]
  with pytest.raises(InputError, match=message):
    call()


def test_a_traced_value_is_not_checked():
  """A sweep over a hyper-parameter is a vmap, compiled once."""
  sweep = jax.jit(jax.vmap(lambda c: b.aggregate(b.cagrad(c=c, rescale=0), 2 * jnp.eye(2)).direction))
  np.testing.assert_allclose(sweep(jnp.array([0.0, 0.4, 0.8])), [[1, 1], [1.4, 1.4], [1.8, 1.8]], rtol=1e-5)


def test_scalars_and_counts_of_other_types():
  """Arrays without axes are numbers, whole floats are counts, and what is meant task by task may be an array."""
  found = b.aggregate(b.sdmgrad(lam=np.float32(0.5), steps=2.0, learning_rate=jnp.array(0.1)), J).direction
  np.testing.assert_array_equal(found, b.aggregate(b.sdmgrad(lam=0.5, steps=2, learning_rate=0.1), J).direction)
  found, want = (b.aggregate(b.forum(inner_steps=steps), J).direction for steps in (np.float64(5), 5))
  np.testing.assert_array_equal(found, want)
  for balancer in (b.graddrop(leak=(0.5, 1.0)), b.constant(np.ones(2)), b.stch(reference=[0.0, 0.0]), b.krum(1.0, 1.0)):
    assert np.all(np.isfinite(b.aggregate(balancer, J).direction))


def test_names_and_signatures():
  assert list(b.METHODS) == [factory.__name__ for factory in b.METHODS.values()]
  assert set(b.METHODS) <= set(b.__all__) and len(set(b.__all__)) == len(b.__all__)
  for name, factory in b.METHODS.items():
    doc = inspect.getdoc(factory)
    assert doc and '>>>' in doc and 'Returns:' in doc, name
    for parameter in inspect.signature(factory).parameters:
      assert f'{parameter}' in doc, f'{name}: {parameter} is not in the docstring'


@pytest.mark.parametrize('name', b.METHODS)
def test_parse_needs_no_arguments(name):
  """Every method can be named on the command line; what it requires comes from the context or from the call."""
  text = {'constant': 'constant((1.0, 2.0))'}.get(name, name)
  if 'inner' in inspect.signature(b.METHODS[name]).parameters:
    text = f'{name}(mgda)'
  balancer = b.parse(text, steps_per_epoch=3)
  assert isinstance(balancer, Balancer) and balancer.level in LEVELS


PARSED = {  # text -> direction for J = diag(2, 4), losses (1, 2)
  ' equal ': (2, 4),
  'constant([0.5, -1])': (1, -4),
  "aligned_mtl(None, 'min')": (1, 1),
  'nash_mtl(max_norm=None)': (1, 1),
  'ema(log_losses(equal()), decay=0.9)': (2, 2),
  'normalized(krum(0, n_selected=2))': (0.5, 0.5),
  'modo(gamma=0.0)': (1, 2),
  'auto_lambda(primary=(1, 0), initial=0.5)': (1.0002, 2),
}


@pytest.mark.parametrize('text', PARSED)
def test_parse_reads_literals_and_balancers(text):
  J = jnp.diag(jnp.array([2.0, 4.0]))
  result = aggregate(b.parse(text), J, jnp.array([1.0, 2.0]))
  np.testing.assert_allclose(result.direction, PARSED[text], rtol=1e-5)


PARSE_ERRORS = {
  'cagard': "unknown method 'cagard'.*upgrad.*Did you mean 'cagrad'",
  'cagrad(d=1)': "cagrad: found unknown argument 'd'.*c, rescale",
  'equal(1)': 'equal: found 1 positional arguments, expected at most 0',
  'cagrad(0.1, c=0.2)': "cagrad: found argument 'c' twice",
  'cagrad(c=1+1j*2)': "cagrad: argument 'c' is",
  'cagrad(c=-1)': 'c is -1',
  'dwa': "dwa: argument 'steps_per_epoch' is missing",
  'cagrad(': 'expected a name or a call',
  'a.b()': 'expected a name or a call',
  '': 'expected a name or a call',
  'ema(nonsense())': "unknown method 'nonsense'",
  'cagrad(c=open("x"))': "unknown method 'open'",
  'cagrad(**{})': 'cagrad',
}


@pytest.mark.parametrize('text', PARSE_ERRORS)
def test_parse_errors(text):
  with pytest.raises(InputError, match=PARSE_ERRORS[text]):
    b.parse(text)
