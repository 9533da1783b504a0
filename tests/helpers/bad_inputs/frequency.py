"""Weights from token counts: powers, smoothing, streamed counts."""

import jax.numpy as jnp
import optax

from bad_inputs.examples import V
from bad_inputs.regularizers import COUNTS, STREAMED, call, of_weights, updated

BAD = {
    "weights: a power of text": (
        of_weights(power="1"),
        TypeError,
        r"power must be a real number, got '1'; pass|power must be .*'1'",
    ),
    "weights: an infinite power": (of_weights(power=float("inf")), ValueError, r"power must be finite, got inf; pass a number"),
    "weights: no smoothing": (
        of_weights(smoothing=0.0),
        ValueError,
        r"smoothing must be above zero, got 0.0; pass a number above 0",
    ),
    "weights: negative smoothing": (of_weights(smoothing=-1), ValueError, r"smoothing must be finite and not negative, got -1"),
    "counts: of integers": (
        call("updated_counts", COUNTS, COUNTS),
        TypeError,
        r"counts of shape \(6,\) has dtype int.*must hold floats",
    ),
    "counts: ids of floats": (call("updated_counts", jnp.zeros(V), jnp.ones(2)), TypeError, r"ids must be integers, got float32"),
    "counts: a decay above one": (
        call("updated_counts", jnp.zeros(V), COUNTS, 1.5),
        ValueError,
        r"decay must be in \[0, 1\], got 1.5",
    ),
    "counts: a negative decay": (
        call("updated_counts", jnp.zeros(V), COUNTS, -0.5),
        ValueError,
        r"decay must be in \[0, 1\], got -0.5",
    ),
    "frequency: nothing to stream": (
        updated(STREAMED),
        ValueError,
        r"scale_by_frequency streams counts: call update\(.*token_counts",
    ),
    "frequency: counts of another size": (
        updated(STREAMED, token_counts=COUNTS[1:]),
        ValueError,
        r"token_counts has 5 counts, but 'embed/embedding' has the shape \(6, 4\)",
    ),
    "frequency: negative counts": (
        call("scale_by_frequency", token_counts=COUNTS - 1),
        ValueError,
        r"token_counts must be finite and not negative",
    ),
    "frequency: counts and a decay": (
        call("scale_by_frequency", token_counts=COUNTS, decay=0.9),
        ValueError,
        r"decay=0.9 is of streamed counts, but token_counts are given once",
    ),
    "frequency: a decay above one": (call("scale_by_frequency", decay=1.1), ValueError, r"decay must be in \[0, 1\], got 1.1"),
    "frequency: another state": (
        updated(STREAMED, state=optax.EmptyState(), token_counts=COUNTS),
        TypeError,
        r"state must be the FrequencyState that init or the last update of this scale_by_frequency returned",
    ),
}
GOOD = {"a negative power": of_weights(power=-1)}
