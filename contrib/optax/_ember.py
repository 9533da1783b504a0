"""Ember, for token embeddings and language-model heads.

An implementation of Ember, the optimizer of "Token Geometry"
(https://arxiv.org/abs/2607.01455).
"""

import functools
from typing import Any, Callable, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp
from optax._src import base
from optax._src import combine
from optax._src import numerics
from optax._src import transform
import optax.tree


class EmberDimensionNumbers(NamedTuple):
  """Which axis of a table is the vocabulary. All other axes count as features.

  The axis is 0 for tables of shape (V, D), and 1 for heads of shape (D, V).
  """

  token_axis: int = 0


class ScaleByEmberState(NamedTuple):
  """State of :func:`optax.contrib.scale_by_ember`."""

  count: jax.Array  # shape=(), dtype=jnp.int32
  nu_token: base.Updates  # one number for each token of a table
  nu_feature: base.Updates  # one number for each feature of a table


def _axes(
    ndim: int, dimension_numbers: EmberDimensionNumbers
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The token axes and the feature axes of a leaf."""
  if ndim > 1:
    tokens = (dimension_numbers.token_axis % ndim,)
  else:
    tokens = tuple(range(ndim))
  return tokens, tuple(axis for axis in range(ndim) if axis not in tokens)


def _mean_square(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return jnp.mean(numerics.abs_sq(x.astype(dtype)), axis=axes)


def _precondition(
    g: jax.Array,
    nu_token: jax.Array,
    nu_feature: jax.Array,
    bias_correction: jax.Array,
    eps: jax.typing.ArrayLike,
    dimension_numbers: EmberDimensionNumbers,
) -> jax.Array:
  """The gradient of one table divided by the root of its second moment."""
  token_axes, feature_axes = _axes(g.ndim, dimension_numbers)
  if not feature_axes:
    root = jnp.sqrt(nu_token / bias_correction)
  else:
    # Roots are taken before the quotient: nu_token / mean underflows in float32
    # if the gradients of two tokens differ by a factor of 1e19.
    tiny = jnp.finfo(jnp.float32).tiny
    scale = jnp.sqrt(jnp.maximum(jnp.mean(nu_feature), tiny))
    root_of_tokens = jnp.expand_dims(jnp.sqrt(nu_token) / scale, feature_axes)
    root_of_features = jnp.sqrt(nu_feature / bias_correction)
    root = root_of_tokens * jnp.expand_dims(root_of_features, token_axes)
  denominator = root + eps
  # A silent token has a gradient of zero, and with eps=0 also a root of zero.
  safe = jnp.where(denominator > 0, denominator, 1)
  return jnp.where(denominator > 0, g / safe, 0).astype(g.dtype)


def scale_by_ember(
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    dimension_numbers: EmberDimensionNumbers = EmberDimensionNumbers(),
) -> base.GradientTransformation:
  r"""Scale updates by a second moment that is factored by token and feature.

  See :func:`optax.contrib.ember` for more details.

  Args:
    b2: Decay rate of both averages.
    eps: Term added to the denominator after the root.
    dimension_numbers: The axis of the tokens, for all leaves. Every number of a
      vector counts as a token, so there the method is RMSProp.

  Returns:
    A :class:`optax.GradientTransformation` object.
  """

  def over_features(x):
    return _mean_square(x, _axes(x.ndim, dimension_numbers)[1])

  def over_tokens(x):
    return _mean_square(x, _axes(x.ndim, dimension_numbers)[0])

  def init_fn(params):
    # The statistics of zeros have the shapes, dtypes and shardings of those of
    # the updates.
    zeros = optax.tree.zeros_like(params)
    return ScaleByEmberState(
        count=jnp.zeros([], jnp.int32),
        nu_token=jax.tree.map(over_features, zeros),
        nu_feature=jax.tree.map(over_tokens, zeros),
    )

  def update_fn(updates, state, params=None):
    del params

    def average(moment, statistic):
      return (b2 * moment + (1 - b2) * statistic).astype(moment.dtype)

    nu_token = jax.tree.map(
        lambda g, nu: average(nu, over_features(g)), updates, state.nu_token
    )
    nu_feature = jax.tree.map(
        lambda g, nu: average(nu, over_tokens(g)), updates, state.nu_feature
    )
    count = numerics.safe_increment(state.count)
    precondition = functools.partial(
        _precondition,
        bias_correction=(1 - b2**count).astype(jnp.float32),
        eps=eps,
        dimension_numbers=dimension_numbers,
    )
    updates = jax.tree.map(precondition, updates, nu_token, nu_feature)
    return updates, ScaleByEmberState(count, nu_token, nu_feature)

  return base.GradientTransformation(init_fn, update_fn)


def ember(
    learning_rate: base.ScalarOrSchedule,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Optional[Union[Any, Callable[[base.Params], Any]]] = None,
    *,
    dimension_numbers: EmberDimensionNumbers = EmberDimensionNumbers(),
) -> base.GradientTransformationExtraArgs:
  r"""The Ember optimizer, for token embeddings and language-model heads.

  Ember has no first moment, and its second moment is a number for each token
  times a profile over the features. For a table of V tokens and D features the
  state has V + D numbers, where the one of Adam has 2VD.

  Let :math:`\alpha` be the learning rate and :math:`g_t` the gradient of a
  table, of shape (V, D). Then

  .. math::

    \begin{align*}
      r_t &\leftarrow \beta_2 r_{t-1}
        + (1 - \beta_2)\, \text{mean}_j\, g_{t,ij}^2 \\
      c_t &\leftarrow \beta_2 c_{t-1}
        + (1 - \beta_2)\, \text{mean}_i\, g_{t,ij}^2 \\
      \hat{v}_t &\leftarrow
        \frac{r_t c_t^\top}{\text{mean}(c_t) (1 - \beta_2^t)} \\
      \theta_t &\leftarrow \theta_{t-1} - \alpha \left( \frac{g_t}
        {\sqrt{\hat{v}_t} + \varepsilon} + \lambda \theta_{t-1} \right)
    \end{align*}

  where :math:`r_t` has a number for each token, :math:`c_t` one for each
  feature, and :math:`\lambda` is the weight decay.

  Args:
    learning_rate: A global scaling factor, either fixed or evolving along
      iterations with a scheduler, see :func:`optax.scale_by_learning_rate`.
    b2: Decay rate of both averages.
    eps: Term added to the denominator after the root.
    weight_decay: Strength of the decoupled weight decay.
    mask: A tree with same structure as (or a prefix of) the params pytree, or a
      callable that returns such a tree given the params. The leaves should be
      booleans, `True` for leaves whose weights decay.
    dimension_numbers: The axis of the tokens in all leaves. The default is for
      tables of shape (V, D); for heads of shape (D, V) pass
      `EmberDimensionNumbers(token_axis=1)`.

  Returns:
    The corresponding :class:`optax.GradientTransformationExtraArgs`.

  Examples:
    >>> import optax
    >>> from optax import contrib
    >>> import jax.numpy as jnp
    >>> params = {'embedding': jnp.ones((8, 4)), 'kernel': jnp.ones((4, 4))}
    >>> labels = {'embedding': 'table', 'kernel': 'other'}
    >>> solver = optax.partition(
    ...     {'table': contrib.ember(1e-2), 'other': optax.adamw(1e-3)}, labels)
    >>> state = solver.init(params)
    >>> updates, state = solver.update(params, state, params)
    >>> params = optax.apply_updates(params, updates)
    >>> print(f"{params['embedding'][0, 0]:.2f}")
    0.99

  References:
    `Token Geometry <https://arxiv.org/abs/2607.01455>`_, 2026

  .. note::
    A row without a gradient does not move. The first step of a token that was
    silent for long is up to :math:`1/\sqrt{1 - \beta_2}` times the learning
    rate. Tables usually want about ten times the learning rate of the other
    parameters.

  .. seealso::
    :func:`optax.scale_by_factored_rms` has the same second moment with another
    decay, and clips its updates.
  """
  return combine.chain(
      scale_by_ember(b2, eps, dimension_numbers=dimension_numbers),
      transform.add_decayed_weights(weight_decay, mask),
      transform.scale_by_learning_rate(learning_rate),
  )
