"""What `losses.linear_softmax_cross_entropy` refuses."""

import jax
import jax.numpy as jnp
import numpy as np

from bad_inputs.examples import PARAMS, TABLE, D, V, a_function, row_slice
from ember_optax import losses

HIDDEN, LABELS = jnp.ones((2, 3, D)), jnp.ones((2, 3), jnp.int32)


def loss(hidden=HIDDEN, table=TABLE, labels=LABELS, **options):
    return lambda: losses.linear_softmax_cross_entropy(hidden, table, labels, **options)


def traced(argument):
    return lambda: jax.jit(lambda number: losses.linear_softmax_cross_entropy(HIDDEN, TABLE, LABELS, **{argument: number}))(0.1)


BAD = {
    "hidden of None": (loss(None), TypeError, r"hidden must be an array, got None of type NoneType; pass the hidden states"),
    "hidden of lists": (loss([[1.0] * D]), TypeError, r"hidden must be an array, got \[\[1.0.* of type list; pass the hidden"),
    "hidden of a type": (loss(jnp.float32), TypeError, r"hidden must be an array, got .*float32.*; pass the hidden states"),
    "hidden of a tree": (loss(PARAMS), TypeError, r"hidden must be an array, got .* of type dict; pass the hidden states"),
    "hidden of integers": (loss(LABELS), TypeError, r"hidden of shape \(2, 3\) has dtype int32.*floats: convert"),
    "hidden of text": (loss(np.full((2, D), "a")), TypeError, r"hidden of shape \(2, 4\) has dtype <U1.*floats: convert"),
    "complex hidden": (loss(HIDDEN + 0j), TypeError, r"hidden must be real, got complex64; pass the hidden states"),
    "a scalar for hidden": (loss(jnp.float32(1)), ValueError, r"hidden must have 4 features .* got shape \(\); pass hidden"),
    "too many features": (loss(jnp.ones((2, 3, 5))), ValueError, r"hidden must have 4 .* \(2, 3, 5\); pass .*\(..., 4\)\.$"),
    "logits for hidden": (
        loss(jnp.ones((2, 3, V))),
        ValueError,
        r"hidden must have 4 features .* table of shape \(6, 4\) with token_axis=0, got shape \(2, 3, 6\); .*or token_axis=1",
    ),
    "the other token axis": (loss(token_axis=1), ValueError, r"hidden must have 6 .* with token_axis=1, .*, or token_axis=0"),
    "table of None": (loss(table=None), TypeError, r"table must be an array, got None of type NoneType; pass the head's matrix"),
    "table of a tree": (loss(table=PARAMS), TypeError, r"table must be an array, got .* of type dict; pass the head's matrix"),
    "table of integers": (loss(table=jnp.ones((V, D), int)), TypeError, r"table of shape \(6, 4\) has dtype int32.*: convert"),
    "complex table": (loss(table=TABLE + 0j), TypeError, r"table must be real, got complex64; pass the head's matrix"),
    "a table of three axes": (loss(table=TABLE[None]), ValueError, r"table must be a matrix.* got shape \(1, 6, 4\); pass one"),
    "a table of one axis": (loss(table=TABLE[0]), ValueError, r"table must be a matrix.* got shape \(4,\); pass one head"),
    "an empty table": (loss(table=TABLE[:0]), ValueError, r"table must be a matrix.* got shape \(0, 4\); pass one head"),
    "table of a RowSlice": (loss(table=row_slice()), TypeError, r"only the rows .* it was used as a head.*tied to the head"),
    "hidden and table swapped": (loss(TABLE, HIDDEN), ValueError, r"table must be a matrix.* got shape \(2, 3, 4\); pass one"),
    "labels of None": (loss(labels=None), TypeError, r"labels must be .* got None of type NoneType; pass the token ids"),
    "labels of lists": (loss(labels=[[1] * 3] * 2), TypeError, r"labels must be .* of type list; pass the token ids"),
    "labels of floats": (loss(labels=LABELS * 1.0), TypeError, r"labels must be .* float32 of shape \(2, 3\); pass the token"),
    "labels of truth values": (loss(labels=LABELS > 0), TypeError, r"labels must be .* got bool of shape \(2, 3\); pass the"),
    "labels of another shape": (
        loss(labels=LABELS[:, 1:]),
        ValueError,
        r"labels must have shape \(2, 3\), one for each hidden state of shape \(2, 3, 4\), got \(2, 2\); shift or reshape",
    ),
    "one-hot labels": (
        loss(labels=jnp.ones((2, 3, V), int)),
        ValueError,
        r"labels must have shape \(2, 3\), .* got \(2, 3, 6\); shift",
    ),
    "a mask of floats": (loss(where=LABELS * 1.0), TypeError, r"where must be .*booleans, got float32; pass .*labels != -100"),
    "a mask of integers": (loss(where=LABELS), TypeError, r"where must be .*booleans, got int32; pass .*labels != -100"),
    "a mask of True": (loss(where=True), TypeError, r"where must be .*booleans, got True of type bool; pass .*labels != -100"),
    "a mask of another shape": (
        loss(where=LABELS[:, 1:] > 0),
        ValueError,
        r"where has shape \(2, 2\), .* labels' \(2, 3\); pass",
    ),
    "a mask of more axes": (loss(where=LABELS[None] > 0), ValueError, r"where has shape \(1, 2, 3\), .* labels' \(2, 3\); pass"),
    "a cap of zero": (loss(soft_cap=0.0), ValueError, r"soft_cap must be above zero, got 0.0; pass None for no cap"),
    "a cap below zero": (loss(soft_cap=-1), ValueError, r"soft_cap must be finite and not negative, got -1; .*soft_cap=30"),
    "an infinite cap": (loss(soft_cap=float("inf")), ValueError, r"soft_cap must be finite .* got inf; .* or None"),
    "a cap of text": (loss(soft_cap="30"), TypeError, r"soft_cap must be a real number, got '30' of type str; pass a number"),
    "a cap of a function": (loss(soft_cap=a_function), TypeError, r"soft_cap must be .* got <function.*; pass a number above 0"),
    "a traced cap": (traced("soft_cap"), TypeError, r"soft_cap must be a number, got the traced .* compiled in; pass a number"),
    "a negative z_loss": (loss(z_loss=-1e-4), ValueError, r"z_loss must be finite and not negative, got -0.0001; .*z_loss=1e-4"),
    "a z_loss of NaN": (loss(z_loss=float("nan")), ValueError, r"z_loss must be finite .* got nan; .*z_loss=1e-4"),
    "a z_loss of None": (loss(z_loss=None), TypeError, r"z_loss must be .* got None of type NoneType; .*z_loss=1e-4"),
    "a z_loss of True": (loss(z_loss=True), TypeError, r"z_loss must be .* got True of type bool; .*z_loss=1e-4"),
    "a traced z_loss": (traced("z_loss"), TypeError, r"z_loss must be a number, got the traced .* compiled in; .*z_loss=1e-4"),
    "negative smoothing": (loss(label_smoothing=-0.1), ValueError, r"label_smoothing must be finite and not neg.* -0.1; pass"),
    "smoothing above one": (loss(label_smoothing=1.1), ValueError, r"label_smoothing must be in \[0, 1\], got 1.1; pass the"),
    "smoothing of text": (loss(label_smoothing="x"), TypeError, r"label_smoothing must be .* got 'x' of type str; pass"),
    "no tokens": (loss(num_tokens=0), ValueError, r"num_tokens must be in 1 to 6, the rows of the table, got 0; pass the size"),
    "negative tokens": (loss(num_tokens=-1), ValueError, r"num_tokens must be in 1 to 6, the rows of the table, got -1; pass"),
    "more tokens than rows": (loss(num_tokens=V + 1), ValueError, r"num_tokens must be in 1 to 6, the rows .*, got 7; pass the"),
    "tokens of the other axis": (
        loss(jnp.ones((2, 3, V)), token_axis=1, num_tokens=V),
        ValueError,
        r"num_tokens must be in 1 to 4, the rows of the table, got 6; pass the size of the vocabulary without padding, or None",
    ),
    "a fraction of tokens": (loss(num_tokens=2.5), TypeError, r"num_tokens must be an integer, got 2.5 of type float; pass a"),
    "tokens of True": (loss(num_tokens=True), TypeError, r"num_tokens must be an integer, got True of type bool; pass a number"),
    "tokens of an array": (loss(num_tokens=LABELS), TypeError, r"num_tokens must be an integer, got .*; pass a number like 6"),
    "traced tokens": (
        lambda: jax.jit(lambda number: losses.linear_softmax_cross_entropy(HIDDEN, TABLE, LABELS, num_tokens=number))(3),
        TypeError,
        r"num_tokens must be an integer, got .*; pass a number like 6",
    ),
    "a chunk of zero": (loss(chunk=0), ValueError, r"chunk must be at least 1, got 0; pass None for the default"),
    "a negative chunk": (loss(chunk=-5), ValueError, r"chunk must be at least 1, got -5; pass None for the default"),
    "a fraction of a chunk": (loss(chunk=0.5), TypeError, r"chunk must be an integer, got 0.5 of type float; pass .*2048"),
    "a chunk of text": (loss(chunk="x"), TypeError, r"chunk must be an integer, got 'x' of type str; pass a number like 2048"),
    "an axis too far": (loss(token_axis=2), ValueError, r"token_axis 2 is out of range .* shape \(6, 4\); name its vocabulary"),
    "an axis of text": (loss(token_axis="0"), TypeError, r"token_axis must be an integer, got '0' of type str; pass"),
    "an axis of None": (loss(token_axis=None), TypeError, r"token_axis must be an integer, got None of .*; pass"),
}
GOOD = {
    "arrays of NumPy": loss(np.ones((2, D)), np.ones((V, D)), np.array([1, 5], np.uint8)),
    "one token": loss(HIDDEN[0, 0], TABLE, jnp.int32(3)),
    "no token": loss(HIDDEN[:0], TABLE, LABELS[:0]),
    "a negative axis": loss(table=TABLE.T, token_axis=-1),
    "a mask of one axis": loss(where=jnp.array([True, False, True])),
    "a scalar mask": loss(where=jnp.array(True)),
    "numbers in arrays": loss(soft_cap=jnp.float32(3), z_loss=np.float64(0.1), chunk=np.int64(2)),
    "a chunk beyond the table": loss(chunk=10**6),
    "all rows are tokens": loss(num_tokens=V),
    "an integer of NumPy": loss(num_tokens=np.int64(2)),
}
