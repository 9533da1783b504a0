"""`skipped_batches`, the number of batches that each table has skipped, and `check_skipped_batches`, which limits it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import numpy as np

from .._tree.find_states import ember_moments
from .._tree.inputs import checked_integer, shown


def skipped_batches(opt_state: Any) -> dict[str, int]:
    """The number of batches that each token table has skipped because their mean squared gradient was not finite.

    Only this number shows that a table skipped a batch. The function reads one integer of each table from the device, so it waits
    for the step that made the state.

    Args:
      opt_state: an optimizer state that contains Ember's, of any chain, mask or wrapper, outside `jax.jit`.

    Returns:
      A dictionary from the path of each table that Ember trains to its number. For stacked tables it is the sum over the stack.

    Raises:
      TypeError: the state is traced.
      ValueError: there is no `ScaleByEmberState` in the state.

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
      docs/recipes.md
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
    """Raises if a token table has skipped more than `at_most` batches. Call it about every hundred steps.

    Args:
      opt_state: as in `skipped_batches`.
      at_most: the number of skipped batches of a table that is allowed.
      since: the result of an earlier call. Only batches after that call count.

    Returns:
      `skipped_batches(opt_state)`. Pass it as `since` of the next call.

    Raises:
      FloatingPointError: a table has skipped more batches. The message names each such table and its number.
      TypeError: `at_most` is not an integer, `since` is not a dictionary, or the state is traced.
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
      docs/recipes.md
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
