"""Row-sparse steps: losses, compact updates and their ids."""

import jax
import jax.numpy as jnp

from bad_inputs.examples import (
    COMPACT,
    IDS,
    PARAMS,
    SCALE,
    TABLE,
    TOKEN_IDS,
    TX,
    WTE,
    D,
    V,
    a_function,
    each,
    row_slice,
    state,
)
from bad_inputs.lookups import TIED
from bad_inputs.steps import NO_TREES
from ember_optax import EmberDimensionNumbers, ember, row_sparse, scale_by_ember
from ember_optax.integrations import linen

FIVE = jnp.arange(5)


def loss(params):
    return params["embed"]["embedding"][IDS].sum() + params["dense"]["kernel"].sum()


def grad(loss_fn=loss, params=PARAMS, token_ids=TOKEN_IDS, **options):
    return lambda: row_sparse.value_and_grad(loss_fn, **options)(params, token_ids)


def of_table(use):
    return grad(lambda params: use(params["embed"]["embedding"]))


def apply(params=PARAMS, updates=COMPACT, token_ids=TOKEN_IDS, **options):
    return lambda: row_sparse.apply_updates(params, updates, token_ids, **options)


def with_kernel(leaf, tree=COMPACT):
    return {**tree, "dense": {"kernel": leaf}}


def micro(grads, token_ids):
    return lambda: row_sparse.mean_over_micro_batches(grads, token_ids)


def duplicates(updates, token_ids):
    return lambda: row_sparse.sum_over_duplicates(updates, token_ids)


def local(mesh_axes, token_ids=TOKEN_IDS, params=PARAMS):
    return lambda: row_sparse.local_token_ids(token_ids, params, mesh_axes)


def frozen(inner=TX, rows=TOKEN_IDS, params=PARAMS):
    return lambda: row_sparse.train_only_rows(inner, rows).init(params)


def frozen_update(updates=PARAMS, params=PARAMS, token_ids=None, of_state=state):
    return lambda: row_sparse.train_only_rows(TX, TOKEN_IDS).update(updates, of_state(), params, token_ids=token_ids)


def compact_update(grads=COMPACT, params=PARAMS, **ids):
    return lambda: TX.update(grads, state(), params, token_ids=TOKEN_IDS | ids)


STACKED, STACKED_IDS = {"wte": jnp.ones((3, 2, D)), "b": jnp.ones((3, D))}, {"wte": jnp.ones((3, 2), int)}

BAD = {
    f"params of {name}: {what}": (take(value), error, rf"^params must be a tree .*{got}: pass params")
    for name, take in {
        "value_and_grad": lambda value: grad(params=value),
        "apply_updates": apply,
        "local_token_ids": lambda value: local("fsdp", params=value),
        "train_only_rows": lambda value: frozen(params=value),
    }.items()
    for what, (value, error, got) in NO_TREES.items()
}
BAD |= {
    f"{argument} of {name}: {what}": (take(value), error, rf"^{argument} must be a tree .*{got}: pass {argument}")
    for (name, argument), take in {
        ("apply_updates", "updates"): lambda value: apply(updates=value),
        ("mean_over_micro_batches", "grads"): lambda value: micro(value, STACKED_IDS),
        ("sum_over_duplicates", "updates"): lambda value: duplicates(value, TOKEN_IDS),
    }.items()
    for what, (value, error, got) in NO_TREES.items()
}
BAD |= {
    f"inner of train_only_rows: {what}": (
        frozen(value),
        TypeError,
        rf"^inner must be an optax.GradientTransformation, got .* of type {name}: pass the transformation first",
    )
    for what, (value, name) in {
        "None": (None, "NoneType"),
        "a number": (3, "int"),
        "text": ("adam", "str"),
        "a function": (ember, "function"),
        "the rows": (TOKEN_IDS, "dict"),
    }.items()
}
BAD |= {
    f"loss_fn: {what}": (
        lambda value=value: row_sparse.value_and_grad(value),
        TypeError,
        rf"^loss_fn must be .*{got}; pass the func",
    )
    for what, (value, got) in {
        "None": (None, "got None of type NoneType"),
        "the parameters": (PARAMS, "of type dict"),
        "its value": (jnp.float32(1), "got Array.* of type ArrayImpl"),
    }.items()
}
BAD |= {
    f"loss of {what}": (
        grad(lambda _, value=value: value, has_aux=has_aux),
        TypeError,
        rf"^loss_fn must return a .*{got}.*; (average|return)",
    )
    for what, (value, has_aux, got) in {
        "None": (None, False, "got None of type NoneType"),
        "an integer": (3, False, "got 3 of type int"),
        "text": ("x", False, "got 'x' of type str"),
        "a vector": (jnp.ones(4), False, r"shape \(4,\)"),
        "a complex number": (jnp.complex64(1), False, r"got Array\(1"),
        "a pair": ((jnp.float32(1), 2), False, r"of type tuple"),
        "no pair": (jnp.float32(1), True, r"pair \(loss, aux\) with has_aux=True, got Array"),
    }.items()
}
BAD |= {
    f"has_aux of {value!r}": (grad(has_aux=value), TypeError, rf"^has_aux must be True or False, got {value!r} of type .*; pass")
    for value in ("yes", None, 3)
}
BAD |= {
    "no parameters at all": (grad(params={}), ValueError, r"^params has no array in it, got {} of type dict: pass the tree"),
    "a function in the parameters": (
        grad(params={**PARAMS, "f": a_function}),
        TypeError,
        r"parameter 'f' is <function .*not an array.*eqx\.filter",
    ),
    "integers in the parameters": (grad(params={**PARAMS, "i": IDS}), TypeError, r"parameter 'i' .* int32, .* floats: convert"),
    "params and ids swapped": (
        grad(params=TOKEN_IDS, token_ids=PARAMS),
        TypeError,
        r"token_ids of 'dense/kernel' .*float32: pass",
    ),
    "ids of nothing": (grad(token_ids=3), TypeError, r"token_ids must be a tree of arrays, got 3 of type int: pass token_ids"),
    "ids of no parameter": (grad(token_ids={"nope": IDS}), ValueError, r"token_ids names \['nope'\], but .*; correct the path"),
    "ids of a scalar": (grad(params={"a": jnp.float32(1)}, token_ids={"a": IDS}), ValueError, r"'a' of shape \(\).*Give its upd"),
    "ids of an empty table": (
        grad(params={"a": TABLE[:0]}, token_ids={"a": IDS}),
        ValueError,
        r"'a' of shape \(0, 4\), which is empty; remove",
    ),
    "axes of nothing": (grad(dimension_numbers=None), TypeError, r"dimension_numbers is None. Leave it out"),
    "axes in a list": (grad(dimension_numbers=["embed"]), TypeError, r"dimension_numbers holds the text 'embed'.*include="),
    "tied table": (
        of_table(lambda table: jnp.mean(table[IDS] @ table.T)),
        TypeError,
        rf"declared ids exist.*its transpose.*{TIED}",
    ),
    "table in a product": (
        of_table(lambda table: jnp.sum(jnp.ones(V) @ table)),
        TypeError,
        rf"of the declared ids exist.*{TIED}",
    ),
    "table in jnp.take": (
        of_table(lambda table: jnp.take(table, FIVE, 0).sum()),
        TypeError,
        r"used as an array.*row_sparse.lookup",
    ),
    "sliced table": (of_table(lambda table: table[2:4].sum()), TypeError, r"indexed with slice.*Look rows up"),
    "indexed with a mask": (of_table(lambda table: table[IDS > 3].sum()), TypeError, r"ids must be integers, got bool.*; pass"),
    "table times two": (of_table(lambda table: jnp.sum(2.0 * table)), TypeError, r"arithmetic was done with it.*Look rows up"),
    "ids cast with the parameters": (
        grad(lambda p: jax.tree.map(lambda x: x.astype(jnp.bfloat16), p)["embed"]["embedding"][IDS].sum()),
        NotImplementedError,
        r"astype",
    ),
    "L2 term over all leaves": (grad(lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))), TypeError, r"key<fry>"),
    "ids of floats": (
        compact_update(**{"embed/embedding": IDS * 1.0}),
        TypeError,
        r"'embed/embedding' .* integers .* float32: pass",
    ),
    "ids in a list": (
        compact_update(**{"embed/embedding": [1, 2]}),
        TypeError,
        r"'embed/embedding/0' must be an array .* type int",
    ),
    "ids of another number": (compact_update(**{"embed/embedding": FIVE}), ValueError, r"shape \(2, 4\).*\(5,\).*\(5, 4\)"),
    "compact without ids": (
        lambda: TX.update(COMPACT, state(), PARAMS),
        ValueError,
        r"embedding' has shape .*\(2, 4\).*token_ids",
    ),
    "dense with ids": (compact_update(PARAMS), ValueError, r"is dense, of shape \(6, 4\).*tied to the head.*None"),
    "ids of the body": (
        compact_update(**{"dense/kernel": FIVE}),
        ValueError,
        r"'dense/kernel' of shape \(4, 4\), trained by the body",
    ),
    "unknown path": (compact_update(**{"embed/table": FIVE}), ValueError, r"\['embed/table'\].* correct the path"),
    "compact without parameters": (
        compact_update(params=None),
        ValueError,
        r"token_ids need the parameters: call update\(updates, st",
    ),
    "compact without parameters of one table": (
        lambda: SCALE.update(WTE, state(SCALE, "WTE"), token_ids={"wte": IDS}),
        ValueError,
        r"token_ids need the parameters: call update\(updates, state",
    ),
    "stacked tables": (
        lambda: scale_by_ember(dimension_numbers=EmberDimensionNumbers(1, (0,))).update(
            jnp.ones((2, 3, 4)),
            scale_by_ember(dimension_numbers=EmberDimensionNumbers(1, (0,))).init(jnp.ones((2, 9, 4))),
            jnp.ones((2, 9, 4)),
            token_ids=jnp.arange(3),
        ),
        ValueError,
        r"has the batch axes \(0,\): row-sparse steps are for one table",
    ),
    "apply without ids": (apply(token_ids=None), ValueError, r"'embed/embedding' has shape \(2, 4\), but .* \(6, 4\).*token_ids"),
    "apply with other ids": (
        apply(token_ids={"embed/embedding": FIVE}),
        ValueError,
        r"'embed/embedding' has shape \(2, 4\).*ids of shape \(5,\).*one row for each id",
    ),
    "apply of half the updates": (
        apply(updates={"embed": COMPACT["embed"]}),
        ValueError,
        r"updates must have the str.*got {'embed'",
    ),
    "apply of one update too many": (
        apply(updates={**COMPACT, "x": TABLE}),
        ValueError,
        r"updates must have the str.*, got {'dense'",
    ),
    "apply of a list": (apply(updates=[TABLE]), ValueError, r"updates must have the structure .*, got \[Array"),
    "apply of nothing": (
        apply(updates={}),
        ValueError,
        r"updates must have the structure .*'dense/kernel'.*, got {} of type dict",
    ),
    "apply of a state": (apply(updates=state()), TypeError, r"updates must .* of type PartitionState: pass updates"),
    "apply of (updates, state)": (
        apply(updates=(COMPACT, state())),
        ValueError,
        r"updates must have the structure .*, got \({'dense",
    ),
    "apply of text": (apply(updates=with_kernel("x")), TypeError, r"update of 'dense/kernel' is 'x' of type str, not an array"),
    "apply of a function": (
        apply(updates=with_kernel(a_function)),
        TypeError,
        r"update of 'dense/kernel' is <function.*not an array",
    ),
    "apply of a list for a leaf": (
        apply(updates=with_kernel([1.0])),
        TypeError,
        r"update of 'dense/kernel' is \[1.0\] .*not an array",
    ),
    "apply of a number": (
        apply(updates=with_kernel(1.0)),
        ValueError,
        r"'dense/kernel' has shape \(\), but the parameter has \(4, 4",
    ),
    "apply of a vector": (
        apply(updates=with_kernel(jnp.ones(D))),
        ValueError,
        r"'dense/kernel' has shape \(4,\), but .* \(4, 4\)",
    ),
    "complex update": (
        apply(updates=with_kernel(jnp.ones((D, D)) + 0j)),
        TypeError,
        r"update of 'dense/kernel' is complex, of dtype complex64, but the parameter is float32: pass the real part",
    ),
    "apply to text": (apply(with_kernel("x", PARAMS)), TypeError, r"parameter 'dense/kernel' is 'x' of type str, not an array"),
    "apply of (params, ids, updates)": (
        apply(updates=TOKEN_IDS, token_ids=COMPACT),
        TypeError,
        r"token_ids of 'dense/ker.* float32: pa",
    ),
    "one path of two leaves": (
        apply({"a/b": jnp.ones((4, 2)), "a": {"b": jnp.ones((4, 2))}}, WTE, {"a/b": FIVE}),
        ValueError,
        r"'a/b'\], which stand for more than one leaf|paths \['a/b'\] stand for more than one leaf",
    ),
    "micro-batches of a (D, V) head": (
        micro({"head": jnp.ones((6, 6, 5))}, {"head": jnp.zeros((6, 5), jnp.int32)}),
        ValueError,
        r"'head' has shape \(6, 6, 5\), but its ids have shape \(6, 5\).*begin with one row",
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
        duplicates({"wte": jnp.ones((3, 2))}, {"wte": jnp.arange(4)}),
        ValueError,
        r"'wte' has shape \(3, 2\), but its ids have shape \(4,\).*begin with one row",
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
    "rows that do not exist": (
        frozen(rows={"embed/embedding": jnp.array([3, 50])}),
        ValueError,
        r"rows of 'embed/embedding' names \[50\].*0 to 5; correct",
    ),
    "rows below zero": (
        frozen(rows={"embed/embedding": jnp.array([-1])}),
        ValueError,
        r"'embed/embedding' names \[-1\].*; correct",
    ),
    "rows of no parameter": (frozen(rows={"wte": FIVE}), ValueError, r"names \['wte'\].*correct the path"),
    "rows of None": (frozen(rows=None), ValueError, r"^rows must name .* got None of type NoneType; without them"),
    "rows of nothing": (frozen(rows={}), ValueError, r"^rows must name .* got {} of type dict; without them"),
    "rows of None for each": (frozen(rows=each(None)), ValueError, r"^rows must name .* of type dict; without them"),
    "rows of a number": (frozen(rows=3), TypeError, r"^rows must be a tree of arrays, got 3 of type int: pass rows"),
    "rows of floats": (frozen(rows={"embed/embedding": IDS * 1.0}), TypeError, r"^rows of 'embed/embedding' .* float32: pass"),
    "rows and transformation swapped": (frozen(TOKEN_IDS, TX), TypeError, r"^inner must be .* of type dict: pass the trans"),
    "rows of another model at update": (frozen_update(params=WTE), ValueError, r"'embed/embedding'.*(correct|pass)"),
    "rows with a compact update": (
        frozen_update(COMPACT),
        ValueError,
        r"'embed/embedding' has shape \(2, 4\), .*\(6, 4\): pass token",
    ),
    "rows with a dense update and ids": (frozen_update(token_ids=TOKEN_IDS), ValueError, r"is dense, of shape \(6, 4\).*None"),
    "rows with ids and no parameters": (
        frozen_update(COMPACT, None, TOKEN_IDS),
        ValueError,
        r"embedding'?.*(2, 4).*|token_ids need",
    ),
    "rows with text": (frozen_update(with_kernel("x", PARAMS)), TypeError, r"update of 'dense/kernel' is 'x' .*not an array"),
    "rows with Adam's state": (
        frozen_update(of_state=lambda: None),
        TypeError,
        r"^state must be the one .* NoneType: call update",
    ),
    "Embed of another width": (
        lambda: linen.Embed(V, D + 1).apply({"params": {"embedding": row_slice()}}, IDS),
        ValueError,
        r"shape \(6, 4\), but this Embed has num_embeddings=6 and features=5; pass the parameters",
    ),
}
GOOD = {
    "a number among the parameters": grad(params={**PARAMS, "scale": 1.0}),
    "a loss with more": grad(lambda params: (loss(params), "x"), has_aux=True),
    "no ids": grad(lambda params: params["dense"]["kernel"].sum(), token_ids=None),
    "no update of a leaf": apply(updates=with_kernel(None)),
    "what is not trained": apply({**PARAMS, "f": a_function}, {**COMPACT, "f": None}),
    "rows in all parameters but one": frozen(rows={"embed": {"embedding": IDS}, "dense": {"kernel": None}}),
    "no row at all": frozen(rows={"embed/embedding": IDS[:0]}),
    "a whole Embed": lambda: linen.Embed(V, D).apply({"params": {"embedding": row_slice()}}, IDS),
}
