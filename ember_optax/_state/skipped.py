"""How many batches each table has skipped, and an error when they are too many."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import numpy as np

from .._tree.inputs import checked_integer, shown
from .._tree.state import ember_moments


def skipped_batches(opt_state: Any) -> dict[str, int]:
    """How many batches each token table has skipped because their mean squared gradient was not finite.

    A table skips a batch without a trace: nothing but this number tells. It reads one integer of each table from the device, and
    so waits for the step that made the state.

    Args:
      opt_state: an optimizer state with Ember's in it, of any chain, mask or wrapper; not inside `jax.jit`.

    Returns:
      The number of each table that Ember trains, by path; of stacked tables the sum over the stack.

    Raises:
      TypeError: the state is traced.
      ValueError: there is no `ScaleByEmberState` in it.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import ember, skipped_batches
      >>> params = {"embed": {"embedding": jnp.ones((8, 4))}, "dense": {"kernel": jnp.ones((4, 4))}}
      >>> tx = ember(1e-2, optax.adamw(1e-3))
      >>> bad = {"embed": {"embedding": jnp.full((8, 4), jnp.nan)}, "dense": {"kernel": jnp.ones((4, 4))}}
      >>> _, opt_state = tx.update(bad, tx.init(params), params)
      >>> skipped_batches(opt_state)
      {'embed/embedding': 1}

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; docs/recipes.md
    """
    counts = {name: moments.total_notfinite for name, moments in ember_moments(opt_state).items()}
    if not counts:
        raise ValueError(
            f"opt_state has no ScaleByEmberState in it, got {shown(opt_state)}: pass the state of ember or scale_by_ember."
        )
    if traced := [name for name, count in counts.items() if isinstance(count, jax.core.Tracer)]:
        raise TypeError(
            f"opt_state is traced (total_notfinite of {traced[0]!r}), so its numbers are not known yet: call this outside of "
            f"jax.jit, or use optax.tree.get(opt_state, 'total_notfinite') there."
        )
    return {name: int(np.sum(np.asarray(count))) for name, count in counts.items()}


def check_skipped_batches(opt_state: Any, at_most: int = 0, since: Mapping[str, int] | None = None) -> dict[str, int]:
    """Raises where a token table has skipped more batches than that; call it every hundred steps or so.

    Args:
      opt_state: as in `skipped_batches`.
      at_most: so many are no error.
      since: what an earlier call returned: only those after it count.

    Returns:
      `skipped_batches(opt_state)`, for `since` of the next call.

    Raises:
      FloatingPointError: a table has skipped more; the message names each such table and its number.
      TypeError: `at_most` is no integer, `since` no dictionary, or the state is traced.
      ValueError: `at_most` is negative; there is no `ScaleByEmberState` in the state.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import check_skipped_batches, scale_by_ember
      >>> tx = scale_by_ember()
      >>> opt_state = tx.init({"wte": jnp.ones((8, 4))})
      >>> seen = check_skipped_batches(opt_state)
      >>> _, opt_state = tx.update({"wte": jnp.full((8, 4), jnp.inf)}, opt_state)
      >>> check_skipped_batches(opt_state, since=seen)
      Traceback (most recent call last):
      ...
      FloatingPointError: 1 batch more than at_most=0 was skipped by 'wte' (1): its gradient was not finite. ...

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; docs/recipes.md
    """
    allowed = checked_integer(at_most, "at_most", 5)
    if allowed < 0:
        raise ValueError(f"at_most must not be negative, got {allowed}; 0 allows no skipped batch.")
    if since is not None and not isinstance(since, Mapping):
        raise TypeError(f"since must be what an earlier call returned, got {shown(since)}; pass that dictionary or None.")
    counts = skipped_batches(opt_state)
    new = {name: count - (since or {}).get(name, 0) for name, count in counts.items()}
    if over := {name: count for name, count in new.items() if count > allowed}:
        most = max(over.values()) - allowed
        raise FloatingPointError(
            f"{most} batch{'es' if most > 1 else ''} more than at_most={allowed} {'were' if most > 1 else 'was'} skipped by "
            f"{', '.join(f'{name!r} ({count})' for name, count in over.items())}: its gradient was not finite. Look at the loss, "
            f"the data and the learning rate before that; with float16, at the loss scale."
        )
    return counts
