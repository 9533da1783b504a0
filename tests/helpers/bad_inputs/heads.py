"""What fused heads refuse."""

import functools

import jax
import jax.numpy as jnp
import optax

from bad_inputs.examples import IDS, TABLE, D, V, a_function
from ember_optax import EmberDimensionNumbers, ember, losses, row_sparse, scale_by_ember, stochastic_rounding

HIDDEN, LABELS = jnp.ones((2, 3, D)), jnp.ones((2, 3), jnp.int32)
PARAMS = {"dense": {"kernel": jnp.ones((D, D))}, "lm_head": {"kernel": TABLE.T}}
HEAD = "lm_head/kernel"


def cross_entropy(params, hidden=HIDDEN, labels=LABELS, **options):
    return losses.linear_softmax_cross_entropy(
        hidden, params["lm_head"]["kernel"], labels, **({"token_axis": 1} | options)
    ).mean()


def twice(params):
    return cross_entropy(params) + cross_entropy(params)


def of_jit_twice(params):
    once = jax.jit(cross_entropy)  # traced once, and called twice
    return once(params) + once(params)


def in_scan(params):
    return jax.lax.scan(lambda total, x: (total + cross_entropy(params, *x), None), jnp.float32(0), (HIDDEN, LABELS))[0]


def in_vmap(params):
    return jax.vmap(functools.partial(cross_entropy, params))(HIDDEN, LABELS).mean()


def in_map(params):
    return jax.lax.map(lambda x: cross_entropy(params, *x), (HIDDEN, LABELS)).mean()


def of_kernel(use):
    return grad(lambda params: use(params["lm_head"]["kernel"]) + cross_entropy(params))


def grad(loss_fn=cross_entropy, params=PARAMS, token_ids=None, heads=HEAD, **options):
    return lambda: row_sparse.value_and_grad(loss_fn, heads=heads, **options)(params, token_ids)


@functools.cache
def gradients():
    return grad()()[1]


def step(tx, params=PARAMS, **options):
    """The update of a transformation, without the state that a gradient on its own would need."""
    return lambda: tx.update(gradients(), tx.init(PARAMS), params, **options)


def step_in_bfloat16(tx):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    return lambda: tx.update(grad(params=params)()[1], tx.init(params), params)


@functools.cache
def updates():
    tx = ember(1e-3, optax.adamw(1e-3))
    return tx.update(gradients(), tx.init(PARAMS), PARAMS)[0]


def apply(updates_of=updates, params=PARAMS, token_ids=None):
    return lambda: row_sparse.apply_updates(params, updates_of(), token_ids)


PLACE = r"^FusedLeaf\('lm_head/kernel', \(4, 6\)\): "
NO_ARRAY = PLACE + r".*, but the .* never computed as an array\. .* For anything else leave 'lm_head/kernel' out of `heads`\.$"


def of_head(reason):
    return (
        rf"^'lm_head/kernel' of shape .* named in heads.*linear_softmax_cross_entropy.* but {reason}.* leave 'lm_head/kernel' out"
    )


def no_array(reason):
    return rf"{PLACE}{reason}.*{NO_ARRAY.removeprefix(PLACE)}"


OF_JAX = r"FusedLeaf"


BAD = {
    "heads of a number": (grad(heads=3), TypeError, r"heads must be a path or a sequence of paths, got 3 of type int; pass for"),
    "heads of numbers": (
        grad(heads=[3]),
        TypeError,
        r"heads must be a path or a sequence of paths, got \[3\] of type list; pass",
    ),
    "heads of a function": (grad(heads=a_function), TypeError, r"heads must be a path .* of type function; pass for example"),
    "heads of a tree": (grad(heads={HEAD: True}), TypeError, r"heads must be a path .* of type dict; pass for example 'lm_head"),
    "a head that does not exist": (
        grad(heads="head"),
        ValueError,
        r"heads names \['head'\], but the parameters are \['dense/kernel', 'lm_head/kernel'\]; correct the path",
    ),
    "a head of three axes": (
        grad(params={**PARAMS, "lm_head": {"kernel": TABLE[None]}}),
        ValueError,
        r"heads names 'lm_head/kernel' of shape \(1, 6, 4\), but a fused head is a matrix.*leave it out",
    ),
    "a head without the loss": (
        grad(lambda params: params["dense"]["kernel"].sum()),
        ValueError,
        r"heads names 'lm_head/kernel', but loss_fn does not call losses.linear_softmax_cross.*: call it, or leave it out",
    ),
    "the loss twice, with different options": (
        grad(lambda params: cross_entropy(params) + cross_entropy(params, z_loss=0.1)),
        ValueError,
        r"calls linear_softmax_cross_entropy 2 times with the fused head .*, with different options, .*: give all calls the same",
    ),
    "a jitted loss twice": (
        grad(of_jit_twice),
        ValueError,
        r"calls a jitted function with the fused head 'lm_head/kernel' several times, but JAX traces it once: call .* outside of",
    ),
    "the loss in a scan": (
        grad(in_scan),
        ValueError,
        r"fused head 'lm_head/kernel' inside of 'scan', where one .*: use row_sparse.scan for the loop, call it outside",
    ),
    "the loss in a map": (
        grad(in_map),
        ValueError,
        r"fused head 'lm_head/kernel' inside of 'scan', where one call .*: use row_sparse.scan for the loop, call it",
    ),
    "the loss in vmap": (grad(in_vmap), ValueError, r"fused head 'lm_head/kernel' inside of jax.vmap: pass hidden states of all"),
    "another token axis": (
        grad(functools.partial(cross_entropy, hidden=jnp.ones((2, 3, V)), token_axis=0)),
        ValueError,
        r"'lm_head/kernel' of .* axis 1 by the tables of .* axis 0 by the token_axis.* 6 features: if .* axis 0, with 4 tokens",
    ),
    "no token axis": (
        grad(functools.partial(cross_entropy, token_axis=0)),
        ValueError,
        r"axis 1 by the tables of .* axis 0 by the token_axis.* 4 features: pass token_axis=1 to the loss\.",
    ),
    "hidden states of the tokens' axis": (
        grad(functools.partial(cross_entropy, hidden=jnp.ones((2, 3, V)))),
        ValueError,
        r"axis 1 by the tables of .* axis 1 by .* 6 features: if it is in axis 0, with 4 tokens, pass token_axis=0 to the loss, "
        r"tables=TokenTables\(include=\{'lm_head/kernel': EmberDimensionNumbers\(0\)\}\)",
    ),
    "a square head": (
        grad(
            functools.partial(cross_entropy, token_axis=0),
            params={**PARAMS, "lm_head": {"kernel": jnp.ones((D, D))}},
        ),
        ValueError,
        r"pass token_axis=1 to the loss if that is right; if it is in axis 0, with 4 tokens, pass token_axis=0 to",
    ),
    "hidden states of another width": (
        grad(functools.partial(cross_entropy, hidden=jnp.ones((2, 3, 5)))),
        ValueError,
        r"hidden must have 4 features .* got shape \(2, 3, 5\); pass",
    ),
    "rows that are trained alone": (
        lambda: row_sparse.train_only_rows(ember(1e-3, optax.adamw(1e-3)), {HEAD: IDS}).update(
            gradients(), ember(1e-3, optax.adamw(1e-3)).init(PARAMS), PARAMS
        ),
        TypeError,
        r"token_ids names rows of 'lm_head/kernel', but its update is that of a fused head.*: leave 'lm_head/kernel' out",
    ),
    "logits of a head": (of_kernel(lambda table: (HIDDEN @ table).sum()), TypeError, of_head("it was used as an array")),
    "the transpose of a head": (
        of_kernel(lambda table: table.T.sum()),
        TypeError,
        of_head("its transpose was asked for"),
    ),
    "the square of a head": (of_kernel(lambda table: (table * table).sum()), TypeError, of_head("arithmetic was done")),
    "an L2 term of all leaves": (
        grad(lambda params: sum(jnp.sum(p**2) for p in jax.tree.leaves(params)) + cross_entropy(params)),
        TypeError,
        r"key<fry>",
    ),
    "the clip of Optax": (step(optax.clip_by_global_norm(1.0)), (TypeError, ValueError), rf"{NO_ARRAY}|{OF_JAX}"),
    "a clip of elements": (step(optax.clip(1.0)), (TypeError, ValueError), OF_JAX),
    "decay before Ember": (step(optax.add_decayed_weights(0.1)), TypeError, no_array("something was added")),
    "Adam": (step(optax.adam(1e-3)), (TypeError, ValueError), OF_JAX),
    "momentum": (step(optax.sgd(1e-3, momentum=0.9)), TypeError, NO_ARRAY),
    "accumulation": (step(optax.MultiSteps(ember(1e-3, optax.adamw(1e-3)), 2)), (TypeError, ValueError), OF_JAX),
    "a check of elements": (step(optax.apply_if_finite(ember(1e-3, optax.adamw(1e-3)), 3)), (TypeError, ValueError), OF_JAX),
    "SGD": (
        apply(lambda: step(optax.sgd(1e-3))()[0]),
        TypeError,
        r"'lm_head/kernel'.* is still a gradient and was added to the parameters: train it with ember or scale_by_ember",
    ),
    "a scale after rounding": (
        step_in_bfloat16(optax.chain(ember(1e-3, optax.adamw(1e-3)), stochastic_rounding(0), optax.scale(0.5))),
        TypeError,
        no_array(r"it was scaled after stochastic_rounding, which must come last"),
    ),
    "Ember twice": (
        step(optax.chain(ember(1e-3, optax.adamw(1e-3)), ember(1e-3, optax.adamw(1e-3)))),
        TypeError,
        r"'lm_head/kernel' is an update already: put one",
    ),
    "a table in parts": (
        lambda: jax.vmap(lambda _: step(scale_by_ember(token_mesh_axes="fsdp"))(), axis_name="fsdp")(jnp.zeros(1)),
        ValueError,
        r"fused head 'lm_head/kernel' is split over \[\] .* has token_mesh_axes=\('fsdp',\) .* pass token_mesh_axes=\(\)",
    ),
    "another axis in the optimizer": (
        step(ember(1e-3, optax.adamw(1e-3), tables={"dense": None, "lm_head": EmberDimensionNumbers(0)})),
        ValueError,
        r"fused head 'lm_head/kernel' .* vocabulary in axis 1, but the optimizer takes \(0,\) for it: declare the same",
    ),
    "rounding before Ember": (
        lambda: stochastic_rounding(0).update(
            {"w": gradients()["lm_head"]["kernel"]}, stochastic_rounding(0).init({}), {"w": TABLE.T.astype(jnp.bfloat16)}
        ),
        TypeError,
        r"the update of 'w' is still the gradient of a fused head: put stochastic_rounding last",
    ),
    "a product with an array": (lambda: gradients()["lm_head"]["kernel"] * TABLE.T, TypeError, no_array("it was multi")),
    "a power": (lambda: gradients()["lm_head"]["kernel"] ** 2, TypeError, no_array("its elements were asked for")),
    "a function of NumPy": (lambda: jnp.asarray(gradients()["lm_head"]["kernel"]), TypeError, OF_JAX),
    "a decay behind ember": (
        step(optax.chain(ember(1e-3, optax.adamw(1e-3)), optax.add_decayed_weights(0.1))),
        TypeError,
        no_array(r"something was added to it \(weight decay belongs into ember"),
    ),
    "parameters of another shape": (
        apply(params={**PARAMS, "lm_head": {"kernel": TABLE}}),
        ValueError,
        r"FusedLeaf\('lm_head/kernel', \(4, 6\)\): it was added to a parameter of shape \(6, 4\); pass the parameters",
    ),
    "ids of a fused head": (
        apply(token_ids={HEAD: IDS}),
        ValueError,
        r"token_ids are given for 'lm_head/kernel', but its update .*holds its ids: leave them out",
    ),
    # The oldest JAX means to say the same, and fails while it spells the path of the result.
    "a result of jit": (jax.jit(grad()), (TypeError, AttributeError), r"FusedLeaf.*not a valid JAX type|'removeprefix'"),
}
GOOD = {
    "a list of heads": grad(heads=[HEAD]),
    "the loss twice": grad(twice),
    "a head twice": grad(heads=(HEAD, HEAD)),
    "no heads": grad(heads=()),
    "hidden states of all": grad(lambda params: cross_entropy(params, jnp.stack([HIDDEN, HIDDEN]), jnp.stack([LABELS, LABELS]))),
    "one step": apply(),
    "a transformation of one table": lambda: scale_by_ember(dimension_numbers=EmberDimensionNumbers(1)).update(
        gradients()["lm_head"]["kernel"], scale_by_ember(dimension_numbers=EmberDimensionNumbers(1)).init(TABLE.T)
    ),
}
