"""`scan`: a loop in a loss function, for example over micro-batches, whose body may call the loss of a fused head."""

from collections.abc import Callable
from typing import Any

from .._fused_heads import scans
from .._tree.inputs import shown


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    *,
    reverse: bool = False,
    unroll: int | bool = 1,
) -> tuple[Any, Any]:
    """`jax.lax.scan`, whose body may call `losses.linear_softmax_cross_entropy` with a fused head.

    Use it in the loss function of `value_and_grad(loss_fn, heads=...)`, for example for a loop over micro-batches. The gradients
    of all steps are added before they are squared, so the step equals that of one large batch. For K steps with N tokens, K N
    (D + 3) numbers are kept of the head, and no gradient of V x D. Anywhere else it is `jax.lax.scan`, for example where the same
    loss function is evaluated.

    Put `jax.checkpoint` around `f`, so that of the rest of the model no more than the activations of one step are kept.

    Args:
      f: `f(carry, x)` returns the next carry and the output of this step. It calls the loss in every step, and not inside of
        `jax.lax.cond`.
      init: the first carry. Python numbers become strongly typed arrays.
      xs: arrays whose first axis is the steps.
      length: the number of steps, if there are no `xs`.
      reverse: as in `jax.lax.scan`.
      unroll: as in `jax.lax.scan`.

    Returns:
      The last carry, and the outputs of all steps.

    Raises:
      TypeError: `f` is not a function.
      ValueError: by `value_and_grad`, if the body calls the loss where it may run more or less often than once in each step.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> from ember_optax.losses import linear_softmax_cross_entropy
      >>> params = {"embed": {"embedding": jnp.ones((100, 4))}, "lm_head": {"kernel": jnp.ones((4, 100))}}
      >>> def loss_fn(params, batches):  # (micro-batches, batch, time + 1)
      ...     @jax.checkpoint
      ...     def add(total, ids):
      ...         hidden = params["embed"]["embedding"][ids[:, :-1]]
      ...         losses = linear_softmax_cross_entropy(hidden, params["lm_head"]["kernel"], ids[:, 1:], token_axis=1)
      ...         return total + losses.mean(), None
      ...     return row_sparse.scan(add, 0.0, batches)[0] / len(batches)
      >>> gradient = row_sparse.value_and_grad(loss_fn, heads="lm_head/kernel")
      >>> loss, grads = gradient(params, {}, jnp.zeros((8, 2, 5), jnp.int32))
      >>> print(f"{loss:.3f}")
      4.605

    References:
      docs/fused_head.md
    """
    if not callable(f):
        raise TypeError(f"f must be a function of the carry and of what a step gets, got {shown(f)}; pass the function.")
    return scans.scan(f, init, xs, length, reverse=reverse, unroll=unroll)
