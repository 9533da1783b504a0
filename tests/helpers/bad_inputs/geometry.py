"""Metrics of tables, gradients and trajectories, and the report."""

import jax.numpy as jnp
import numpy as np
import optax

from bad_inputs.examples import ADAM, PARAMS, SCALE, TABLE, TX, WTE, D, V, state
from ember_optax import EmberDimensionNumbers, geometry, token_tables


def call(name, *arguments, **options):
    return lambda: getattr(geometry, name)(*arguments, **options)


ONES = jnp.ones(V)
WTE_STATE = geometry.table_states(SCALE.init(WTE))["wte"]
RAY, PAIRS = geometry.ray(), geometry.gradient_autocorrelation()
# Each of what takes one array, with the name of its argument.
OF_ARRAY = {
    "effective_rank": "table",
    "mean_cosine_similarity": "table",
    "row_norms": "table",
    "active_rows": "gradient",
    "factorization_error": "second_moment",
}
NO_TABLES = {
    "None": (None, TypeError, r"is None of type NoneType, not an array"),
    "text": ("x", TypeError, r"is 'x' of type str, not an array"),
    "lists": ([[1.0]], TypeError, r"is \[\[1.0\]\] of type list, not an array"),
    "the parameters": (PARAMS, TypeError, r"is {.* of type dict, not an array"),
    "integers": (jnp.ones((V, D), int), TypeError, r"of shape \(6, 4\) has dtype int32, but must hold floats: convert"),
    "complex": (TABLE + 0j, TypeError, r"of shape \(6, 4\) has dtype complex64, but must hold real floats: pass its real part"),
    "a vector": (ONES, ValueError, r"must have a token axis and feature axes, got .*; pass one leaf"),
    "no rows": (TABLE[:0], ValueError, r"has the shape \(0, 4\) and is empty; pass"),
    "no features": (TABLE[:, :0], ValueError, r"has the shape \(6, 0\) and is empty; pass"),
}
BAD = {
    f"{name} of {what}": (call(name, value), error, f"^{argument} {message}")
    for name, argument in OF_ARRAY.items()
    for what, (value, error, message) in NO_TABLES.items()
}
BAD |= {
    f"{name}: token axis {axis!r}": (call(name, TABLE, token_axis=axis), error, message)
    for name in OF_ARRAY
    for axis, error, message in (
        (2, ValueError, r"token_axis 2 is out of range for a table of shape \(6, 4\); name"),
        (-3, ValueError, r"token_axis -3 is out of range for a table of shape \(6, 4\); name"),
        (0.5, TypeError, r"token_axis must be an integer, got 0.5 of type float; pass"),
        (True, TypeError, r"token_axis must be an integer, got True of type bool; pass"),
    )
}
BAD |= {
    f"weights: {what}": (call("stable_rank", TABLE, weights=value), error, message)
    for what, (value, error, message) in {
        "of the features": (jnp.ones(D), ValueError, r"weights must have shape \(6,\).* \(6, 4\) along axis 0, got \(4,\); pass"),
        "a number": (2.0, ValueError, r"weights must have shape \(6,\).* got \(\); pass one number"),
        "a matrix": (TABLE, ValueError, r"weights must have shape \(6,\).* got \(6, 4\); pass"),
        "negative": (ONES.at[2].set(-1), ValueError, r"weights must be finite and not neg.*, got Array.*; a token of weight 0"),
        "infinite": (ONES.at[2].set(jnp.inf), ValueError, r"weights must be finite and not negative, got Array"),
        "NaN": (ONES.at[2].set(jnp.nan), ValueError, r"weights must be finite and not negative, got Array"),
        "complex": (ONES + 0j, TypeError, r"weights of shape \(6,\) has dtype complex64, but must hold real numbers; pass"),
        "text": ("counts", TypeError, r"weights is 'counts' of type str, not an array"),
        "a list": ([1.0] * V, TypeError, r"weights is \[1.0.*of type list, not an array"),
    }.items()
}
BAD |= {
    f"centered of {value!r}": (
        call("spectrum", TABLE, centered=value),
        TypeError,
        rf"^centered must be True or False, got .* of type {type(value).__name__}; pass",
    )
    for value in (None, 1, "yes")
}
BAD |= {
    f"by_frequency: {what}": (call("by_frequency", *arguments), error, message)
    for what, (arguments, error, message) in {
        "no metric": (
            ("effective_rank", TABLE, ONES, 2),
            TypeError,
            r"metric must be a function .* got 'effective_rank'.*; pass",
        ),
        "no counts": ((geometry.iso_score, TABLE, None, 2), TypeError, r"token_counts must be .* got None; pass jnp.bincount"),
        "counts of features": (
            (geometry.iso_score, TABLE, ONES[:4], 2),
            ValueError,
            r"token_counts must have shape \(6,\).*\(4,\)",
        ),
        "negative counts": ((geometry.iso_score, TABLE, -ONES, 2), ValueError, r"token_counts must be finite and not negative"),
        "no bucket": ((geometry.iso_score, TABLE, ONES, 0), ValueError, r"buckets must be in 1 to 6, .* got 0; pass"),
        "too many": ((geometry.iso_score, TABLE, ONES, 7), ValueError, r"buckets must be in 1 to 6, .* got 7; pass"),
        "half a bucket": ((geometry.iso_score, TABLE, ONES, 2.5), TypeError, r"buckets must be a number or .* got 2.5.*; pass"),
        "buckets of True": (
            (geometry.iso_score, TABLE, ONES, True),
            TypeError,
            r"buckets must be a number or .* got True.*; pass",
        ),
        "buckets of text": ((geometry.iso_score, TABLE, ONES, "4"), TypeError, r"buckets must be a number or .* got '4'.*; pass"),
        "edges of text": (
            (geometry.iso_score, TABLE, ONES, ["a"]),
            TypeError,
            r"buckets must be a number or .* got \['a'\].*; pass",
        ),
        "no edges": (
            (geometry.iso_score, TABLE, ONES, ()),
            ValueError,
            r"buckets must be counts that increase, got \(\).*; pass",
        ),
        "edges that fall": (
            (geometry.iso_score, TABLE, ONES, (3, 1)),
            ValueError,
            r"buckets must be counts that .* got \(3, 1\)",
        ),
        "an edge twice": (
            (geometry.iso_score, TABLE, ONES, (1, 1)),
            ValueError,
            r"buckets must be counts that .* got \(1, 1\)",
        ),
        "an edge of NaN": (
            (geometry.iso_score, TABLE, ONES, (np.nan,)),
            ValueError,
            r"buckets must be counts that .* got \(nan,\)",
        ),
    }.items()
}
BAD |= {
    f"under_trained_tokens: {what}": (call("under_trained_tokens", TABLE, **{"tied": True, **options}), error, message)
    for what, (options, error, message) in {
        "tied of None": ({"tied": None}, TypeError, r"tied must be True or False, got None of type NoneType; pass"),
        "an id beyond": (
            {"known_unused": [2, 6]},
            ValueError,
            r"known_unused names \[6\], but the table has the rows 0 to 5; co",
        ),
        "a negative id": ({"known_unused": [-1]}, ValueError, r"known_unused names \[-1\], but the table has the rows 0 to 5"),
        "no ids": ({"known_unused": []}, ValueError, r"known_unused is empty, got \[\] of type list; pass token ids"),
        "ids of floats": (
            {"known_unused": [1.0]},
            TypeError,
            r"known_unused must be integers, got \[1.0\] of type list; pass",
        ),
        "ids of text": (
            {"known_unused": ["<pad>"]},
            TypeError,
            r"known_unused must be integers, got \['<pad>'\] of type list; pass",
        ),
    }.items()
}
BAD |= {
    "a negative second moment": (
        call("factorization_error", -TABLE),
        ValueError,
        r"second_moment must not be negative, got Array.*; pass a mean of squares",
    ),
    "a gradient of another shape": (
        lambda: PAIRS.update(PAIRS.init(TABLE), TABLE[:2]),
        ValueError,
        r"gradient has shape \(2, 4\), but those before had \(6, 4\): start again",
    ),
    "a snapshot of another shape": (
        lambda: RAY.update(RAY.init(TABLE), TABLE[:2]),
        ValueError,
        r"table has shape \(2, 4\), but those before had \(6, 4\): start again",
    ),
    "a snapshot of integers": (lambda: RAY.init(jnp.ones((V, D), int)), TypeError, r"table of shape \(6, 4\) has dtype int32"),
    "rank 0": (call("ray", rank=0), ValueError, r"rank must be at least 1, got 0; 3 is"),
    "rank of text": (call("ray", rank="3"), TypeError, r"rank must be an integer, got '3' of type str; pass"),
}
BAD |= {
    f"random_walk: {what}": (call("random_walk", *arguments, **options), error, message)
    for what, (arguments, options, error, message) in {
        "no step": ((0,), {}, ValueError, r"step_sizes must be at least one step, .* got 0 .*; pass"),
        "half a step": ((1.5,), {}, TypeError, r"step_sizes must be an integer, got 1.5 of type float; pass"),
        "steps of text": (("a",), {}, TypeError, r"step_sizes must be a number or a vector .* got 'a'.*; pass"),
        "negative lengths": (([1.0, -1.0],), {}, ValueError, r"step_sizes must be .* got \[1.0, -1.0\].*; pass"),
        "no length": (([],), {}, ValueError, r"step_sizes must be at least one step, .* got \[\].*; pass"),
        "a matrix of lengths": ((np.ones((2, 2)),), {}, ValueError, r"step_sizes must be .*; pass"),
        "features without a key": ((4,), {"num_features": 8}, TypeError, r"key and num_features go together: both"),
    }.items()
}
BAD |= {
    f"row_step: {what}": (call("row_step", *arguments, **options), error, message)
    for what, (arguments, options, error, message) in {
        "the whole state": (
            (TABLE, state(TX)),
            {},
            TypeError,
            r"state must be the Ember or Adam state of one table.*table_states",
        ),
        "no state": (
            (TABLE, None),
            {},
            TypeError,
            r"state must be the Ember or Adam .* got None of type NoneType; pass table_st",
        ),
        "a tree in the state": ((TABLE, SCALE.init(WTE)), {}, TypeError, r"count of the state is {.*of type dict, not an array"),
        "another axis": (
            (TABLE, WTE_STATE),
            {"token_axis": 1},
            ValueError,
            r"nu_token of the state has shape \(6,\).* needs \(4,\)",
        ),
        "another vocabulary": ((TABLE[:2], WTE_STATE), {}, ValueError, r"nu_token .* \(6,\), but a table of shape \(2, 4\)"),
        "Adam of another table": (
            (TABLE[:2], geometry.table_states(state(ADAM))["embed/embedding"]),
            {},
            ValueError,
            r"mu of the state has shape \(6, 4\), but a table of shape \(2, 4\) .* needs \(2, 4\); pass table_states",
        ),
        "b2 of one": ((TABLE, WTE_STATE), {"b2": 1.0}, ValueError, r"^b2 must be in \[0, 1\), got 1.0; 0.999"),
        "b1 of text": ((TABLE, WTE_STATE), {"b1": "x"}, TypeError, r"^b1 must be .* got 'x' of type str; pass"),
        "negative eps": ((TABLE, WTE_STATE), {"eps": -1.0}, ValueError, r"^eps must be finite and not negative, got -1.0; pass"),
        "another mean": ((TABLE, WTE_STATE), {"feature_mean": "rows"}, ValueError, r"^feature_mean must be .* got 'rows'"),
    }.items()
}
BAD |= {
    f"cold_row_ratio: {what}": (call("cold_row_ratio", *arguments, **options), error, message)
    for what, (arguments, options, error, message) in {
        "a matrix": ((TABLE,), {}, ValueError, r"row_steps must have shape \(V,\), got \(6, 4\); pass"),
        "integers": ((jnp.ones(V, int),), {}, TypeError, r"row_steps of shape \(6,\) has dtype int32, but must hold floats"),
        "nothing": ((ONES[:0],), {}, ValueError, r"row_steps must have shape \(V,\), got \(0,\); pass"),
        "other active rows": (
            (ONES,),
            {"active": ONES[:2]},
            ValueError,
            r"active must have the shape of .*\(6,\), got \(2,\); pass",
        ),
        "active of text": ((ONES,), {"active": "all"}, TypeError, r"active is 'all' of type str, not an array"),
    }.items()
}
BAD |= {
    f"report: {what}": (call("report", *arguments, **options), error, message)
    for what, (arguments, options, error, message) in {
        "no parameters": ((None,), {}, TypeError, r"^params must be a tree of arrays, got None"),
        "the state first": ((state(TX), PARAMS), {}, TypeError, r"^params must be a tree of arrays, got .*: pass params"),
        "no table": (({"dense": TABLE},), {}, ValueError, r"^no token table found .*'dense' \(6, 4\)"),
        "tables of None": ((PARAMS,), {"tables": None}, TypeError, r"^tables is None. Leave it out"),
        "grads of a state": ((PARAMS, state(TX)), {}, TypeError, r"^grads must be a tree of arrays, got .*: pass grads"),
        "grads of another model": ((PARAMS, WTE), {}, ValueError, r"^grads has nothing for the tables \['embed.*: pass the grad"),
        "compact grads": (
            (PARAMS, {**PARAMS, "embed": {"embedding": TABLE[:2]}}),
            {},
            ValueError,
            r"gradient of 'embed/embedding' has shape \(2, 4\), but the parameter \(6, 4\): pass dense gradients",
        ),
        "a state of another model": (
            (WTE, None, SCALE.init({"wte": TABLE[:2]})),
            {},
            ValueError,
            r"nu_token of the state of 'wte' has shape \(2,\), but .*\(6, 4\)",
        ),
        "a state of more tables than the finder finds": (
            ({**PARAMS, "head": TABLE}, None, SCALE.init({**PARAMS, "head": TABLE})),
            {},
            ValueError,
            r"^opt_state has Ember's state of \['dense/kernel', 'head'\], but the finder takes only .*same tables=",
        ),
        "counts of another vocabulary": (
            (PARAMS, None, None, ONES[:2]),
            {},
            ValueError,
            r"token_counts of 'embed/.* \(2,\); pass",
        ),
        "counts of no table": (
            (PARAMS, None, None, {"wte": ONES}),
            {},
            ValueError,
            r"token_counts has \['wte'\], but the tables",
        ),
        "negative counts": ((PARAMS, None, None, -ONES), {}, ValueError, r"token_counts of 'embed/.* must be finite and"),
        "spectral of 1": ((PARAMS,), {"spectral": 1}, TypeError, r"spectral must be True or False, got 1"),
        "b2 of two": ((PARAMS,), {"b2": 2.0}, ValueError, r"^b2 must be in"),
        "an integer table": (
            ({"wte": TABLE.astype(int)},),
            {"tables": EmberDimensionNumbers()},
            TypeError,
            r"parameter 'wte' of shape \(6, 4\) has dtype int32, but must hold floats",
        ),
    }.items()
}
GOOD = {
    "a table of NumPy": call("iso_score", np.ones((V, D), np.float32)),
    "weights of truth values": call("row_norms", TABLE, weights=ONES > 0),
    "counts of NumPy": call("mean_row_norm", TABLE, weights=np.arange(V)),
    "an axis from the end": call("row_norms", TABLE, token_axis=-1),
    "integers as edges of floats": call("by_frequency", geometry.mean_row_norm, TABLE, ONES, (0, 1)),
    "floats as edges of integers": call("by_frequency", geometry.mean_row_norm, TABLE, np.arange(V), (0.0, 1.5)),
    "buckets of NumPy": call("by_frequency", geometry.mean_row_norm, TABLE, ONES, np.int64(2)),
    "known tokens of NumPy": call("under_trained_tokens", TABLE, tied=np.bool_(True), known_unused=np.array([0, 1])),
    "known tokens in eight bits": call(
        "under_trained_tokens", jnp.ones((200, D)), tied=True, known_unused=np.array([1], np.int8)
    ),
    "a report of fewer tables than Ember trains": call(
        "report", PARAMS, None, SCALE.init(PARAMS), tables=token_tables, spectral=False
    ),
    "a report without a state of these tables": call("report", WTE, WTE, optax.sgd(0.1).init(WTE), spectral=False),
    "NaN in a second moment": call("factorization_error", TABLE.at[0].set(jnp.nan)),
}
