"""What the regularizers refuse: terms, samples, counts, and transformations of updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bad_inputs.examples import COMPACT, PARAMS, TABLE, TOKEN_IDS, D, V, a_function, row_slice
from ember_optax import TokenTables, regularizers, token_tables

COUNTS = np.arange(V)
KEY = jax.random.key(0)
SAMPLE = regularizers.RareAndFrequent(jnp.array([0, 1]), jnp.array([2, 3]))
CENTER, NORMALIZE, CAP = regularizers.center_rows(), regularizers.normalize_spectral_norm(1.0), regularizers.cap_row_steps(1.0)
STREAMED = regularizers.scale_by_frequency()


def call(name, *arguments, **options):
    return lambda: getattr(regularizers, name)(*arguments, **options)


def updated(tx, params=PARAMS, updates=PARAMS, state=None, **options):
    return lambda: tx.update(updates, tx.init(PARAMS) if state is None else state, params, **options)


def of_weights(**options):
    return call("frequency_weights", COUNTS, **options)


BAD = {
    "term: a table of lists": (call("anisotropy", [[1.0]]), TypeError, r"table is \[\[1.0\]\] of type list, not an array"),
    "term: a table of integers": (
        call("anisotropy", jnp.ones((V, D), int)),
        TypeError,
        r"table of shape .* int32.* must hold floats",
    ),
    "term: a vector": (call("anisotropy", TABLE[0]), ValueError, r"table must have a token axis and feature axes, got"),
    "term: an empty table": (call("spectral_penalty", TABLE[:0]), ValueError, r"table has the shape \(0, 4\) and is empty"),
    "term: an axis too far": (call("anisotropy", TABLE, token_axis=2), ValueError, r"token_axis 2 is out of range"),
    "term: an axis of text": (
        call("spectral_penalty", TABLE, token_axis="0"),
        TypeError,
        r"token_axis must be an integer, got '0'",
    ),
    "term: some rows of a table": (
        call("anisotropy", row_slice()),
        TypeError,
        r"only the rows .* mean cosine of all its rows was",
    ),
    "term: the norm of some rows": (
        call("spectral_penalty", row_slice()),
        TypeError,
        r"only the rows .* its spectral norm was asked",
    ),
    "term: a coefficient of text": (call("anisotropy", TABLE, "0.1"), TypeError, r"coefficient must be a real number, got '0.1'"),
    "term: an infinite coefficient": (
        call("anisotropy", TABLE, float("inf")),
        ValueError,
        r"coefficient must be finite, got inf; .*0.1",
    ),
    "term: a coefficient of NaN": (
        call("spectral_penalty", TABLE, float("nan")),
        ValueError,
        r"coefficient must be finite, got nan",
    ),
    "term: a coefficient for each row": (
        call("anisotropy", TABLE, COUNTS),
        TypeError,
        r"coefficient must be a real scalar, .*\(6,\)",
    ),
    "term: weights of another size": (
        call("anisotropy", TABLE, weights=COUNTS[1:]),
        ValueError,
        r"weights must have shape \(6,\)",
    ),
    "term: negative weights": (
        call("anisotropy", TABLE, weights=COUNTS - 1),
        ValueError,
        r"weights must be finite and not negative",
    ),
    "a vector of another shape": (
        call("singular_vector", TABLE, jnp.ones(V)),
        ValueError,
        r"vector must have the shape of .*\(4,\)",
    ),
    "a vector of text": (call("singular_vector", TABLE, "v"), TypeError, r"vector is 'v' of type str, not an array"),
    "negative iterations": (
        call("singular_vector", TABLE, iterations=-1),
        ValueError,
        r"iterations must be at least 0, got -1; pass",
    ),
    "half an iteration": (
        call("spectral_penalty", TABLE, iterations=0.5),
        TypeError,
        r"iterations .* got 0.5 of type float; .* like 1\.",
    ),
    "over_tables: no function": (call("over_tables", 0.1, PARAMS), TypeError, r"term must be a function of a table, got 0.1"),
    "over_tables: no parameters": (
        call("over_tables", a_function, None),
        TypeError,
        r"params must be a tree of arrays, got None",
    ),
    "over_tables: no table": (
        call("over_tables", regularizers.anisotropy, {"dense": PARAMS["dense"]}),
        ValueError,
        r"no token table found among the parameters",
    ),
    "over_tables: a pattern in vain": (
        call("over_tables", regularizers.anisotropy, PARAMS, tables=TokenTables(include=["nothing"])),
        ValueError,
        r"'nothing' of token_tables matches no path",
    ),
    "samples: counts of text": (call("sampled_tokens", "many", KEY, 2), TypeError, r"token_counts is 'many' of type str"),
    "samples: a matrix of counts": (
        call("sampled_tokens", TABLE, KEY, 2),
        ValueError,
        r"token_counts must be .*\(V,\), .*\(6, 4\)",
    ),
    "samples: negative counts": (
        call("sampled_tokens", COUNTS - 1, KEY, 2),
        ValueError,
        r"token_counts must be finite and not neg",
    ),
    "samples: no key": (call("sampled_tokens", COUNTS, None, 2), TypeError, r"key must be a key of jax.random, got None"),
    "samples: a seed for a key": (call("sampled_tokens", COUNTS, 0, 2), TypeError, r"key must be a key of jax.random, got 0"),
    "samples: one": (
        call("sampled_tokens", COUNTS, KEY, 1),
        ValueError,
        r"samples must be in 2 to the number of tokens, 6, got 1",
    ),
    "samples: too many": (call("sampled_tokens", COUNTS, KEY, 7), ValueError, r"samples must be in 2 to .* 6, got 7; pass"),
    "samples: a fraction": (call("sampled_tokens", COUNTS, KEY, 2.5), TypeError, r"samples must be an integer, got 2.5"),
    "alignment: counts for a sample": (
        call("frequency_alignment", TABLE, COUNTS),
        TypeError,
        r"sample must be a pair .*sampled_tokens",
    ),
    "alignment: one half": (
        call("frequency_alignment", TABLE, SAMPLE[:1]),
        TypeError,
        r"sample must be a pair of vectors of token",
    ),
    "alignment: samples of floats": (
        call("frequency_alignment", TABLE, (COUNTS * 1.0, COUNTS * 1.0)),
        TypeError,
        r"sample must be a pair of vectors of token ids",
    ),
    "normalize: no bound": (
        call("normalize_spectral_norm", 0.0),
        ValueError,
        r"max_norm must be above zero, got 0.0; .*max_norm=10",
    ),
    "normalize: None": (call("normalize_spectral_norm", None), TypeError, r"max_norm must be a real number, got None"),
    "normalize: no iteration": (
        call("normalize_spectral_norm", 1.0, iterations=0),
        ValueError,
        r"iterations must be at least 1, got 0",
    ),
    "normalize: without parameters": (
        updated(NORMALIZE, None),
        ValueError,
        r"normalize_spectral_norm needs the parameters: call",
    ),
    "normalize: compact updates": (
        updated(NORMALIZE, updates=COMPACT, token_ids=TOKEN_IDS),
        ValueError,
        r"normalize_spectral_norm cannot take the row-sparse update of 'embed/embedding': it scales the whole table.*exclude=",
    ),
    "normalize: another state": (
        updated(NORMALIZE, state=optax.EmptyState()),
        TypeError,
        r"state must be the SpectralState that init",
    ),
    "normalize: the state of another model": (
        updated(NORMALIZE, state=NORMALIZE.init({"embed": {"embedding": jnp.ones((V, 9))}, "dense": PARAMS["dense"]})),
        ValueError,
        r"state of normalize_spectral_norm for 'embed/embedding' has shape \(9,\), but a table of shape \(6, 4\) needs \(4,\)",
    ),
    "normalize: parameters of another shape": (
        updated(NORMALIZE, params={**PARAMS, "embed": {"embedding": jnp.ones((1, D))}}),
        ValueError,
        r"parameter 'embed/embedding' has shape \(1, 4\), but its gradient has \(6, 4\)",
    ),
    "center: an unknown word": (call("center_rows", "both"), ValueError, r"what must be 'updates' or 'table', got 'both'"),
    "center: the tables in its place": (
        call("center_rows", token_tables),
        ValueError,
        r"what must be 'updates' or 'table', got <func",
    ),
    "center: without parameters": (
        updated(regularizers.center_rows("table"), None),
        ValueError,
        r"center_rows needs the parameters",
    ),
    "center: compact updates": (
        updated(CENTER, updates=COMPACT, token_ids=TOKEN_IDS),
        ValueError,
        r"center_rows cannot take the row-sparse update of 'embed/embedding': the mean moves every row.*None for its ids",
    ),
    "center: no table": (
        lambda: CENTER.init({"dense": PARAMS["dense"]}),
        ValueError,
        r"no token table found among the parameters",
    ),
    "center: no tree": (lambda: CENTER.init(None), TypeError, r"params must be a tree of arrays, got None"),
    "center: tables of None": (call("center_rows", tables=None), TypeError, r"tables is None. Leave it out to use the finder"),
    "center: tables of text": (
        call("center_rows", tables="wte"),
        TypeError,
        r"tables is the text 'wte'. Patterns of paths go to",
    ),
    "center: integers": (
        lambda: CENTER.init({"embed": {"embedding": jnp.ones((V, D), int)}}),
        TypeError,
        r"parameter 'embed/embedding' of shape \(6, 4\) has dtype int32",
    ),
    "cap: zero": (
        call("cap_row_steps", 0.0),
        ValueError,
        r"max_rms must be above zero, got 0.0; pass a number above 0, a schedule",
    ),
    "cap: negative": (call("cap_row_steps", -1.0), ValueError, r"max_rms must be finite and not negative, got -1.0; pass"),
    "cap: text": (call("cap_row_steps", "3"), TypeError, r"max_rms must be a real number, got '3' of type str; pass"),
    "cap: a schedule of vectors": (
        updated(regularizers.cap_row_steps(lambda _: jnp.ones(2))),
        TypeError,
        r"max_rms\(step\) must be a real scalar, got an array of shape \(2,\)",
    ),
    "cap: a schedule with another state": (
        updated(regularizers.cap_row_steps(lambda _: 1.0), state=optax.EmptyState()),
        TypeError,
        r"state must be what init or the last update of this cap_row_steps returned",
    ),
    "cap: a schedule, no table": (
        lambda: regularizers.cap_row_steps(lambda _: 1.0).init({"dense": PARAMS["dense"]}),
        ValueError,
        r"no token table found among the parameters",
    ),
    "cap: ids of a dense update": (updated(CAP, token_ids=TOKEN_IDS), ValueError, r"the update of 'embed/embedding' is dense"),
    "cap: ids without parameters": (
        updated(CAP, None, COMPACT, token_ids=TOKEN_IDS),
        ValueError,
        r"token_ids need the parameters",
    ),
}
GOOD = {
    "an array of NumPy for a table": call("anisotropy", np.ones((V, D), np.float32)),
    "a coefficient of an array": call("anisotropy", TABLE, jnp.float32(-0.1)),
    "a negative token axis": call("spectral_penalty", TABLE.T, token_axis=-1),
    "an old kind of key": call("sampled_tokens", COUNTS, jax.random.PRNGKey(0), 2),
    "no iteration of a given vector": call("singular_vector", TABLE, jnp.ones(D), iterations=0),
    "a sample of NumPy": call("frequency_alignment", TABLE, (np.array([0, 1]), np.array([2, 3]))),
    "no arrays at all": lambda: regularizers.center_rows().update({}, optax.EmptyState(), {}),
    "no parameters for updates alone": updated(CENTER, None),
    "compact updates under a cap": updated(CAP, updates=COMPACT, token_ids=TOKEN_IDS),
}
