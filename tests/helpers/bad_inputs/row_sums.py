"""Sums of compact gradients, and ids of the parts of a table."""

import jax.numpy as jnp

from bad_inputs.examples import IDS, PARAMS, TABLE, TOKEN_IDS, WTE, D
from ember_optax import EmberDimensionNumbers, row_sparse

STACKED, STACKED_IDS = {"wte": jnp.ones((3, 2, D)), "b": jnp.ones((3, D))}, {"wte": jnp.ones((3, 2), int)}


def total(params):
    return jnp.sum(row_sparse.lookup(params["wte"], IDS))


ALONG_1 = EmberDimensionNumbers(1)


def micro(grads, token_ids, params=WTE, tables="auto"):
    return lambda: row_sparse.mean_over_micro_batches(grads, token_ids, params, tables=tables)


def duplicates(updates, token_ids, params=WTE):
    return lambda: row_sparse.sum_over_duplicates(updates, token_ids, params)


def local(mesh_axes, token_ids=TOKEN_IDS, params=PARAMS):
    return lambda: row_sparse.local_token_ids(token_ids, params, mesh_axes)


BAD = {
    "micro-batches of a (D, V) head, rows first": (
        micro({"head": jnp.ones((6, 5, 6))}, {"head": jnp.zeros((6, 5), jnp.int32)}, {"head": jnp.ones((6, 7))}, ALONG_1),
        ValueError,
        r"'head' has shape \(5, 6\), but with ids of shape \(5,\) and a table of shape \(6, 7\) it must have shape \(6, 5\)",
    ),
    "micro-batches without parameters": (micro(STACKED, STACKED_IDS, None), ValueError, r"token_ids need the parameters: call"),
    "micro-batches with other ids": (
        micro(STACKED, {"wte": jnp.ones((2, 2), int)}),
        ValueError,
        r"gradients of micro-batches must be stacked",
    ),
    "micro-batches of leaves": (
        lambda: row_sparse.mean_over_micro_batches(row_sparse.value_and_grad(total)(WTE, {"wte": IDS})[1], {}),
        TypeError,
        r"gradient of 'wte' is no array: pass the arrays that row_sparse.split returns",
    ),
    "no micro-batches": (micro({"b": jnp.ones((0, 4))}, None), ValueError, r"shapes .*'b': \(0, 4\).*stack them"),
    "micro-batches that differ": (micro({**STACKED, "b": TABLE}, STACKED_IDS), ValueError, r"shapes .*'b': \(6, 4\).*stack them"),
    "micro-batches of numbers": (micro({**STACKED, "b": 3.0}, STACKED_IDS), ValueError, r"shapes .*'b': \(\).*stack them"),
    "micro-batches of text": (micro({**STACKED, "b": "x"}, STACKED_IDS), TypeError, r"gradient of 'b' is 'x' .*not an array"),
    "micro-batches of integers": (micro({"b": jnp.ones((3, 4), int)}, None), TypeError, r"gradient of 'b' .* int32, .*: convert"),
    "micro-batches of nothing": (micro({}, STACKED_IDS), ValueError, r"^grads has no array in it, got {} .*: pass the tree"),
    "micro-batches and ids swapped": (micro(STACKED_IDS, STACKED), TypeError, r"token_ids of 'b' must .*float32: pass"),
    "ids of no micro-batch": (micro(STACKED, {"nope": IDS}), ValueError, r"token_ids names \['nope'\], but .*; correct"),
    "duplicates of another shape": (
        duplicates({"wte": jnp.ones((3, D))}, {"wte": jnp.arange(4)}),
        ValueError,
        r"'wte' has shape \(3, 4\), but with ids of shape \(4,\) and a table of shape \(6, 4\) it must have shape \(4, 4\)",
    ),
    "duplicates without parameters": (
        duplicates({"wte": jnp.ones((3, D))}, {"wte": jnp.arange(3)}, None),
        ValueError,
        r"token_ids need the parameters",
    ),
    "duplicates of text": (duplicates({"wte": "x"}, None), TypeError, r"update of 'wte' is 'x' of type str, not an array"),
    "duplicates of nothing": (duplicates({}, TOKEN_IDS), ValueError, r"^updates has no array in it, got {} .*: pass the tree"),
    "local ids outside of shard_map": (
        local("fsdp"),
        ValueError,
        r"mesh_axes names 'fsdp', which is no mesh axis .* Name an axis",
    ),
    "local ids of no axis": (local(()), ValueError, r"mesh_axes must name each .*, got \(\); pass"),
    "local ids of an axis twice": (local(("a", "a")), ValueError, r"mesh_axes must name each .*, got \('a', 'a'\); pass"),
    "local ids of None": (local(None), TypeError, r"mesh_axes must be a mesh axis name .* got None; pass"),
    "local ids of a number": (local(3), TypeError, r"mesh_axes must be a mesh axis name .* got 3; pass"),
    "local ids of the parameters": (
        local("fsdp", PARAMS, TOKEN_IDS),
        (TypeError, ValueError),
        r"(mesh_axes names 'fsdp'|token_ids)",
    ),
}
GOOD = {}
