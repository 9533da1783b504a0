"""Other estimates of Ember's second moment, each with O(V + D) numbers: what might be better where the full one is.

Each is an `optax` transformation of tables with two axes: gradients in, directions without a learning rate out. Below, r is the
average of a token's mean square, and c a profile over the features that averages to one: v_ij = r_i c_j.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ember_optax import EmberDimensionNumbers, token_tables

_TINY = float(jnp.finfo(jnp.float32).tiny)


class VariantState(NamedTuple):
    """Steps taken, and for each table what the variant keeps."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    kept: Any


class _Kept(NamedTuple):
    """Averages of one table: for each token (V, 1), for each feature or class and feature, and occurrences (V, 1)."""

    token: jax.Array
    feature: jax.Array
    occurrences: jax.Array


def scale_by_power(power: float = 0.5, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    r"""Ember with a flatter profile, :math:`c_j^{power}`: 1 is Ember, 0 is row-wise RMSProp."""

    def step(g, kept, count):
        token, feature = _average(kept.token, _over_features(g), b2), _average(kept.feature, _over_tokens(g), b2)
        v = token / (1 - b2**count) * (feature / jnp.maximum(jnp.mean(feature), _TINY)) ** power
        return v, kept._replace(token=token, feature=feature)

    return _scale_by(step, eps)


def scale_by_equal_rows(b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    r"""The profile is the mean of rows divided by their own mean square, so that rare tokens count as much as frequent ones.

    .. math:: c_j \leftarrow b_2 c_j + (1 - b_2)\,\mathrm{mean}_{i\ active}\, g_{ij}^2 / \mathrm{mean}_k\, g_{ik}^2
    """

    def step(g, kept, count):
        of_rows = _over_features(g)
        active = of_rows > 0
        unit = jnp.where(active, g * g / jnp.where(active, of_rows, 1), 0)
        profile = jnp.sum(unit, 0, keepdims=True) / jnp.maximum(jnp.sum(active), 1)
        token, feature = _average(kept.token, of_rows, b2), _average(kept.feature, profile, b2)
        v = token / (1 - b2**count) * feature / jnp.maximum(jnp.mean(feature), _TINY)
        return v, kept._replace(token=token, feature=feature)

    return _scale_by(step, eps)


def scale_by_classes(classes: float = 8, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """A profile for each class of tokens: equal parts of the tokens in the order of r, made anew in each step."""
    number = int(classes)

    def step(g, kept, count):
        token = _average(kept.token, _over_features(g), b2)
        place = jnp.argsort(jnp.argsort(token[:, 0]))
        is_in = jax.nn.one_hot(place * number // token.shape[0], number)  # (V, K)
        sums = (is_in.T @ (g * g)) / jnp.maximum(jnp.sum(is_in, 0)[:, None], 1)
        feature = _average(kept.feature, sums, b2)
        profiles = feature / jnp.maximum(jnp.mean(feature, 1, keepdims=True), _TINY)
        return token / (1 - b2**count) * (is_in @ profiles), kept._replace(token=token, feature=feature)

    return _scale_by(step, eps, number)


def scale_by_occurrence(b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """The average of a token forgets when the token occurs and not in every step. Its bias correction counts occurrences.

    The share of steps in which a token occurs multiplies the result, so that a step of a rare token is as long as Ember's.
    """

    def step(g, kept, count):
        of_rows = _over_features(g)
        active = of_rows > 0
        occurrences = kept.occurrences + active
        token = jnp.where(active, _average(kept.token, of_rows, b2), kept.token)
        feature = _average(kept.feature, _over_tokens(g), b2)
        of_occurrence = token / jnp.maximum(1 - b2**occurrences, 1e-7)
        v = of_occurrence * (occurrences / count) * feature / jnp.maximum(jnp.mean(feature), _TINY)
        return v, kept._replace(token=token, feature=feature, occurrences=occurrences)

    return _scale_by(step, eps)


def _average(old: jax.Array, new: jax.Array, b2: float) -> jax.Array:
    return b2 * old + (1 - b2) * new


def _over_features(g: jax.Array) -> jax.Array:
    return jnp.mean(g * g, 1, keepdims=True)


def _over_tokens(g: jax.Array) -> jax.Array:
    return jnp.mean(g * g, 0, keepdims=True)


def _scale_by(step: Callable[..., tuple[jax.Array, _Kept]], eps: float, profiles: int = 1) -> optax.GradientTransformation:
    """`step(g, kept, count)` of a (V, D) table returns its second moment and what is kept."""

    def init_fn(params):
        def of_table(p: jax.Array, numbers: EmberDimensionNumbers) -> _Kept:
            tokens, features = p.shape[numbers.token_axis], p.shape[1 - numbers.token_axis]
            return _Kept(jnp.zeros((tokens, 1)), jnp.zeros((profiles, features)), jnp.zeros((tokens, 1)))

        return VariantState(jnp.zeros((), jnp.int32), jax.tree.map(of_table, params, token_tables(params)))

    def update_fn(updates, state, params=None):
        del params
        count = state.count + 1

        def of_table(g: jax.Array, numbers: EmberDimensionNumbers, kept: _Kept) -> tuple[jax.Array, _Kept]:
            turned = g if numbers.token_axis == 0 else g.T
            v, kept = step(turned, kept, count)
            update = turned / (jnp.sqrt(v) + eps)
            return update if numbers.token_axis == 0 else update.T, kept

        leaves, treedef = jax.tree.flatten(updates)
        numbers = treedef.flatten_up_to(token_tables(updates))
        found = [of_table(*each) for each in zip(leaves, numbers, treedef.flatten_up_to(state.kept), strict=True)]
        return treedef.unflatten([u for u, _ in found]), VariantState(count, treedef.unflatten([k for _, k in found]))

    return optax.GradientTransformation(init_fn, update_fn)
