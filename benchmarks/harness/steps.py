"""Steps that the programs measure: `step((params, opt_state), *given)` returns such a pair again, so that it can be donated."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from ember_optax import row_sparse, state_shardings

Step = Callable[..., Any]


def carry(tx: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """What a step takes and returns, at its beginning."""
    return params, tx.init(params)


def abstract_carry(tx: optax.GradientTransformation, params: Any, shardings: Any) -> tuple[Any, Any]:
    """The carry for parameters with these shardings, the state's as `state_shardings` has them; and all shardings."""
    shardings = (shardings, state_shardings(tx, params, shardings))

    def abstract(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(abstract, jax.eval_shape(lambda params: carry(tx, params), params), shardings), shardings


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, which may be abstract."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_per_device(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of an abstract array's part on one device."""
    part = jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    return part.size * part.dtype.itemsize


def optimizer_step(tx: optax.GradientTransformation) -> Step:
    """`step(carry, grads)`."""

    def step(carry, grads):
        params, opt_state = carry
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def train_step(tx: optax.GradientTransformation, loss_fn: Callable[..., jax.Array], grad_shardings: Any = None) -> Step:
    """`step(carry, *batch)`: forward pass, backward pass and update; the gradients held to their shardings, if given."""

    def step(carry, *batch):
        grads = jax.grad(loss_fn)(carry[0], *batch)
        if grad_shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, grad_shardings)
        return optimizer_step(tx)(carry, grads)

    return step


def row_sparse_optimizer_step(tx: optax.GradientTransformationExtraArgs) -> Step:
    """`step(carry, grads, token_ids)`, the gradients compact."""

    def step(carry, grads, token_ids):
        params, opt_state = carry
        updates, opt_state = tx.update(grads, opt_state, params, token_ids=token_ids)
        return row_sparse.apply_updates(params, updates, token_ids), opt_state

    return step


def row_sparse_train_step(
    tx: optax.GradientTransformationExtraArgs,
    loss_fn: Callable[..., jax.Array],
    looked_up: Callable[..., Any],
    heads: Sequence[str] = (),
) -> Step:
    """`step(carry, *batch)`, where `looked_up(*batch)` are the ids that the row-sparse tables look up; `heads` are fused."""

    def step(carry, *batch):
        _, grads = row_sparse.value_and_grad(loss_fn, heads=heads)(carry[0], looked_up(*batch), *batch)
        return optimizer_step(tx)(carry, grads)

    return step
