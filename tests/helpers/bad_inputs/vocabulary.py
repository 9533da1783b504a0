"""What changes a vocabulary: sizes, ids, texts, counts, and models of which only a part would change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bad_inputs.examples import ADAM, PARAMS, TX, D, V, state
from ember_optax import TokenTables, vocab

OLD = ["a", "b", "c", "d", "e", "f"]
UNTIED = {"embed": {"embedding": jnp.ones((V, D))}, "lm_head": {"kernel": jnp.ones((D, V))}}


def resize(size=8, params=PARAMS, opt_state=None, tx=None, **options):
    return lambda: vocab.resize(tx, params, opt_state, size, **options)


def take(token_ids, params=PARAMS, opt_state=None, tx=None, **options):
    return lambda: vocab.take(tx, params, opt_state, token_ids, **options)


def transplant(old=OLD, new=("c", "ab"), **options):
    return lambda: vocab.transplant(None, PARAMS, None, old, new, **options)


def unused(counts, **options):
    return lambda: vocab.unused(counts, **options)


BAD = {
    f"size {size!r}": (resize(size), error, message)
    for size, error, message in (
        (0, ValueError, r"^size must be at least 1, got 0; pass a number like 50304"),
        (-3, ValueError, r"^size must be at least 1, got -3; pass"),
        (8.0, TypeError, r"^size must be an integer, got 8.0 of type float; pass a number like 50304"),
        ("8", TypeError, r"^size must be an integer, got '8' of type str; pass"),
        (None, TypeError, r"^size must be an integer, got None of type NoneType; pass"),
        (True, TypeError, r"^size must be an integer, got True of type bool; pass"),
        ([8], TypeError, r"^size must be an integer, got \[8\] of type list; pass"),
    )
}
BAD |= {
    f"a multiple of {multiple!r}": (resize(pad_to_multiple_of=multiple), error, message)
    for multiple, error, message in (
        (0, ValueError, r"^pad_to_multiple_of must be at least 1, got 0; pass a number like 128"),
        (-8, ValueError, r"^pad_to_multiple_of must be at least 1, got -8; pass"),
        (64.0, TypeError, r"^pad_to_multiple_of must be an integer, got 64.0 of type float; pass"),
    )
}
BAD |= {
    f"initializer {what}": (resize(**options), error, message)
    for what, (options, error, message) in {
        "unknown": (
            {"initializer": "normal"},
            ValueError,
            r"initializer must be one of \('zeros', .*got 'normal' of type str; pass",
        ),
        "a function": ({"initializer": jnp.zeros}, ValueError, r"initializer must be one of .*got <function"),
        "None": ({"initializer": None}, ValueError, r"initializer must be one of .*got None of type NoneType"),
        "without a key": ({"initializer": "gaussian"}, TypeError, r"key is missing.*pass jax.random.key\(seed\)"),
        "with a seed": (
            {"initializer": "gaussian", "key": 0},
            TypeError,
            r"key must be a key of jax.random, got 0 of type int: pass",
        ),
        "with a key in vain": (
            {"key": jax.random.key(0)},
            TypeError,
            r"key is given, but initializer='mean' draws nothing: leave",
        ),
        "of a negative covariance": (
            {"initializer": "gaussian", "key": jax.random.key(0), "covariance_scale": -1.0},
            ValueError,
            r"covariance_scale must be finite and not negative, got -1.0; pass a number >= 0",
        ),
        "of an endless covariance": (
            {"covariance_scale": float("inf")},
            ValueError,
            r"covariance_scale must be finite .*got inf; pass",
        ),
        "of a covariance in words": ({"covariance_scale": "1"}, TypeError, r"covariance_scale must be a real number, got '1'"),
    }.items()
}
BAD |= {
    f"ids {what}": (take(ids), error, message)
    for what, (ids, error, message) in {
        "none": ([], ValueError, r"token_ids is empty; name at least one"),
        "too large": ([0, V], ValueError, r"(token_ids|kept_ids) has 6, but the vocabulary has the ids 0 to 5"),
        "below zero": ([0, -1], ValueError, r"token_ids has -1, but the vocabulary has the ids 0 to 5"),
        "as floats": (
            [0.0, 1.0],
            TypeError,
            r"token_ids must be integers, got \[0.0, 1.0\] of type list; pass a list",
        ),
        "as a mask": (
            np.ones(V, bool),
            TypeError,
            r"token_ids must be integers, got bool of shape \(6,\); np",
        ),
        "as texts": (OLD, TypeError, r"token_ids must be integers, got \['a', .*pass a list or an array of token ids"),
        "as a number": (3, ValueError, r"token_ids must have shape \(W,\), got \(\); pass one id for each token"),
        "as a matrix": (np.ones((2, 2), int), ValueError, r"token_ids must have shape \(W,\), got \(2, 2\); pass one id"),
        "as None": (None, TypeError, r"token_ids must be integers, got None of type NoneType; pass"),
        "ragged": ([[0], [1, 2]], TypeError, r"token_ids must be integers, got \[\[0\], \[1, 2\]\] of type list; pass"),
    }.items()
}
BAD["traced ids"] = (
    lambda: jax.jit(lambda ids: vocab.take(None, PARAMS, None, ids).params)(jnp.array([0, 1])),
    TypeError,
    r"token_ids is traced, but decides shapes: pass concrete integers",
)
BAD |= {
    "a state without its transformation": (
        resize(opt_state=state()),
        TypeError,
        r"tx is None: pass the transformation whose init",
    ),
    "a transformation without its state": (
        resize(tx=TX),
        TypeError,
        r"opt_state is None, but tx has a state of \d+ arrays: pass it",
    ),
    "the state of another": (
        resize(opt_state=state(ADAM), tx=TX),
        ValueError,
        r"opt_state does not belong to tx and params: at '",
    ),
    "a state of other sizes": (
        resize(opt_state=vocab.resize(TX, PARAMS, state(), 9).opt_state, tx=TX),
        ValueError,
        r"opt_state does not belong to tx and params: at .*nu_token/embed/embedding' it has \(9,\), but init makes .*6",
    ),
    "a state with more in it": (
        resize(opt_state=(state(), jnp.ones(3)), tx=TX),
        ValueError,
        r"opt_state does not belong to tx and params: ",
    ),
    "a class for the transformation": (resize(opt_state=state(), tx=optax.adam), TypeError, r"^tx must be an optax.Gradient"),
    "parameters and transformation exchanged": (resize(params=TX), TypeError, r"^params must be a tree of arrays, got Gradient"),
    "no parameters": (resize(params=None), TypeError, r"^params must be a tree of arrays, got None"),
    "text among the parameters": (resize(params={"wte": "x"}), TypeError, r"parameter 'wte' is 'x' of type str, not an array"),
    "no table": (
        resize(params={"dense": {"kernel": jnp.ones((D, D))}}),
        ValueError,
        r"no token table was found among .*argument tables",
    ),
    "two vocabularies": (
        resize(params={"encoder": {"wte": jnp.ones((V, D))}, "decoder": {"wte": jnp.ones((V + 1, D))}}),
        ValueError,
        r"different sizes: 'decoder/wte' 7, axis 0 of \(7, 4\), 'encoder/wte' 6, .*include=\{'its/path.*names=\['decoder/wte'\]",
    ),
    "a head that is not found": (
        resize(params={**PARAMS, "output": {"weights": jnp.ones((D, V))}}),
        ValueError,
        r"only \{'embed/embedding': \(6, 4\)\}.*\{'output/weights': \(4, 6\)\} would be left behind.*tables=.*unrelated=\['",
    ),
    "unrelated of a table": (
        resize(params=UNTIED, unrelated=["lm_head/.*"]),
        ValueError,
        r"unrelated matches \['lm_head/kernel'\], which are tables: leave them out of unrelated, and name",
    ),
    "a head of its own left out": (
        resize(params=UNTIED, tables=TokenTables(exclude=["lm_head/kernel"])),
        ValueError,
        r"\{'lm_head/kernel': \(4, 6\)\} would be left behind",
    ),
    "a bias of another layer": (
        resize(params={**PARAMS, "gate": {"bias": jnp.ones(V)}}),
        ValueError,
        r"\{'gate/bias': \(6,\)\} would be left behind",
    ),
    "unrelated in vain": (
        resize(unrelated=["head"]),
        ValueError,
        r"unrelated has \['head'\], which match none of \['dense/kernel', ",
    ),
    "unrelated as a text": (
        resize(unrelated="head"),
        TypeError,
        r"unrelated must be a sequence of regular expressions, got the",
    ),
    "unrelated as a number": (resize(unrelated=[3]), TypeError, r"unrelated must hold regular expressions, got 3"),
    "unrelated broken": (resize(unrelated=["("]), ValueError, r"unrelated holds '\(', which is not a regular expression"),
    "tables as None": (resize(tables=None), TypeError, r"^tables is None. Leave it out"),
    "tables as paths": (resize(tables=["embed/embedding"]), TypeError, r"tables holds the text 'embed/embedding'"),
}
BAD |= {
    f"vocabulary {what}": (transplant(**options), error, message)
    for what, (options, error, message) in {
        "of ids": (
            {"old": list(range(6))},
            TypeError,
            r"old_vocabulary must hold texts, got 0 of type int; pass the texts of the tokens",
        ),
        "as a number": ({"old": 6}, TypeError, r"old_vocabulary must be the texts of the tokens .*got 6 of type int"),
        "as one text": ({"new": "abc"}, TypeError, r"new_vocabulary must be the texts of the tokens .*got 'abc' of type str"),
        "empty": ({"new": []}, ValueError, r"new_vocabulary is empty; pass the texts"),
        "with a text twice": (
            {"new": ["a", "b", "a"]},
            ValueError,
            r"new_vocabulary has 'a' at 0 and 2; each token needs a text",
        ),
        "larger than the tables": (
            {"old": [*OLD, "g"]},
            ValueError,
            r"old_vocabulary has 7 tokens, but the tables have 6 rows: pass",
        ),
        "with a gap": (
            {"new": {"a": 0, "b": 2}},
            ValueError,
            r"new_vocabulary must have the ids 0 to 1, .*but \[1\] are missing",
        ),
        "with an id twice": (
            {"new": {"a": 0, "b": 0}},
            ValueError,
            r"new_vocabulary must have the ids 0 to 1, .*\[1\] are missing",
        ),
        "with ids in words": (
            {"new": {"a": "0"}},
            TypeError,
            r"new_vocabulary must map texts to ids, got '0' of type str for 'a'",
        ),
        "from numbers to ids": ({"new": {0: 0}}, TypeError, r"new_vocabulary must hold texts, got 0 of type int"),
        "with pieces as a list": ({"pieces": [0]}, TypeError, r"pieces must be a function from a text to old ids, got \[0\]"),
        "with pieces out of range": (
            {"pieces": lambda _: [9]},
            ValueError,
            r"pieces\('ab'\) has 9, but the vocabulary has the ids 0",
        ),
        "with pieces as texts": ({"pieces": list}, TypeError, r"pieces\('ab'\) must be integers, got \['a', 'b'\]"),
        "with pieces as a number": ({"pieces": lambda _: 1}, ValueError, r"pieces\('ab'\) must have shape \(W,\), got \(\)"),
        "padded to zero": ({"pad_to_multiple_of": 0}, ValueError, r"pad_to_multiple_of must be at least 1, got 0"),
    }.items()
}
BAD |= {
    f"counts {what}": (unused(counts, **options), error, message)
    for what, (counts, options, error, message) in {
        "below zero": ([1, -1], {}, ValueError, r"token_counts must be finite and not negative, got \[1, -1\]"),
        "NaN": ([1.0, float("nan")], {}, ValueError, r"token_counts must be finite and not negative, got \[1.0, nan\]"),
        "as texts": (["1"], {}, TypeError, r"token_counts must be numbers, got \['1'\]"),
        "as a matrix": (np.ones((2, 2)), {}, ValueError, r"token_counts must have shape \(V,\), got \(2, 2\)"),
        "none": ([], {}, ValueError, r"token_counts must have shape \(V,\), got \(0,\)"),
        "with what is no id to keep": ([1, 0], {"keep": [2]}, ValueError, r"keep has 2, but the vocabulary has the ids 0 to 1"),
        "with texts to keep": ([1, 0], {"keep": ["a"]}, TypeError, r"keep must be integers, got \['a'\]"),
        "below a word": ([1, 0], {"below": "1"}, TypeError, r"below must be a real number, got '1'"),
    }.items()
}
BAD |= {
    "a share of a state without Ember": (
        lambda: vocab.removed_share(PARAMS, state(ADAM), [0]),
        ValueError,
        r"opt_state has no state of Ember for these tables, got ",
    ),
    "a share without what stays": (
        lambda: vocab.removed_share(PARAMS, state(), [V]),
        ValueError,
        r"(token_ids|kept_ids) has 6, but the vocabulary has the ids 0 to 5",
    ),
}
GOOD = {
    "the same size": resize(V, opt_state=state(), tx=TX),
    "one token": resize(1, opt_state=state(), tx=TX),
    "a NumPy integer": resize(np.int64(8)),
    "zeros with a scale that is not used": resize(initializer="zeros", covariance_scale=1.0),
    "an old kind of key": resize(initializer="gaussian", key=jax.random.PRNGKey(0)),
    "a transformation without a state": resize(tx=optax.scale(1.0)),
    "ids more than once": take([0, 0, 5], opt_state=state(), tx=TX),
    "small integers": take(np.array([1, 2], np.uint8)),
    "both tables": resize(params=UNTIED),
    "an untied head that is another vocabulary's": resize(
        params=UNTIED, tables=TokenTables(exclude=["lm_head/kernel"]), unrelated=["lm_head/.*"]
    ),
    "bytes for texts": transplant([text.encode() for text in OLD], [b"a", b"z"]),
    "an old vocabulary without padding": transplant(OLD[:4], ["a"]),
    "a token without pieces": transplant(pieces=lambda _: []),
    "nothing to keep": unused([0, 1], keep=[]),
}
PADDED = {"tok": {"w": jnp.ones((V, D))}, "unembed": {"w": jnp.ones((D, V + 2))}}
BAD |= {
    "a padded head, and an embedding of no known name": (
        resize(params=PADDED),
        ValueError,
        r"^'unembed/w' of shape \(4, 8\) is a head, and no embedding was found; .* 'tok/w' \(6, 4\)\. Name the embedding: .*"
        r"if the model has none, the head: names=\['unembed/w'\]",
    ),
    "a padded head, and six matrices": (
        resize(
            params={"unembed": PADDED["unembed"], "b": jnp.ones((9, 7)), "layers": {f"w{i}": jnp.ones((D, D)) for i in range(6)}}
        ),
        ValueError,
        r"'layers/w0' \(4, 4\), .*'layers/w4' \(4, 4\) and 1 more\. Name the embedding",
    ),
}
