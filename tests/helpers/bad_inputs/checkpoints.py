"""What a checkpoint holds: its checksums and its shapes."""

import jax
import jax.numpy as jnp
import numpy as np

from bad_inputs.examples import PARAMS, TABLE, TX, WTE, a_function
from ember_optax import check_shapes, checksums, verify_checksums

SAVED = checksums(WTE)
BAD = {
    f"{name}: {what}": (lambda take=take, value=value: take(value), error, message)
    for name, take in {"checksums": checksums, "verify_checksums": lambda tree: verify_checksums(tree, SAVED)}.items()
    for what, (value, error, message) in {
        "None": (None, ValueError, r"^tree has no array in it, got None of type NoneType: pass what"),
        "nothing": ({}, ValueError, r"^tree has no array in it, got {} of type dict: pass what"),
        "text": ({"wte": "x"}, TypeError, r"^'wte' is 'x' of type str, not an array"),
        "a function": ({"wte": a_function}, TypeError, r"^'wte' is <function.* not an array"),
        "a transformation": (TX, TypeError, r"is <function.* not an array"),
        "a shape": (jax.eval_shape(lambda: WTE), TypeError, r"^'wte' is ShapeDtypeStr.* without values: pass the arrays"),
        "texts": ({"wte": np.array(["a"])}, TypeError, r"^'wte' of shape \(1,\) has dtype <U1"),
        "objects": ({"wte": np.array([None])}, TypeError, r"^'wte' of shape \(1,\) has dtype object"),
        "numbers that JAX has not": (
            {"wte": np.ones(2, np.longdouble)},
            TypeError,
            r"'wte' of shape \(2,\) has dtype \S*128.*convert",
        ),
        "paths that collide": ({"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}, ValueError, r"paths \['a/b'\] name more"),
    }.items()
}
BAD |= {
    "checksums under jit": (lambda: jax.jit(checksums)(WTE), TypeError, r"^'wte' is traced.* outside of jax.jit"),
    "verify_checksums of None": (
        lambda: verify_checksums(WTE, None),  # pyright: ignore[reportArgumentType]
        TypeError,
        r"^saved must be the dictionary that .* got None of type NoneType; pass it",
    ),
    "verify_checksums of the tree": (
        lambda: verify_checksums(WTE, WTE),  # pyright: ignore[reportArgumentType]
        TypeError,
        r"^saved has Array.* for 'wte', not an integer; pass",
    ),
    "verify_checksums of floats": (
        lambda: verify_checksums(WTE, {"wte": float(SAVED["wte"])}),  # pyright: ignore[reportArgumentType]
        TypeError,
        r"^saved has .* of type float for 'wte', not an integer; pass",
    ),
    "verify_checksums of numbers as keys": (
        lambda: verify_checksums(WTE, {3: 4}),  # pyright: ignore[reportArgumentType]
        TypeError,
        r"^saved must be the dictionary that",
    ),
    "verify_checksums of another tree": (
        lambda: verify_checksums(PARAMS, SAVED),
        ValueError,
        r"'wte' is not there; 'dense/kernel' was not saved.*Restore another checkpoint",
    ),
    "verify_checksums of six faults": (
        lambda: verify_checksums({f"{i}": np.ones(2) for i in range(6)}, {}),
        ValueError,
        r"'4' was not saved and 1 more\. Restore another",
    ),
    "verify_checksums of no checksums": (lambda: verify_checksums(WTE, {}), ValueError, r"'wte' was not saved"),
}
BAD |= {
    f"check_shapes {argument}: {what}": (
        lambda pair=pair: check_shapes(*pair),
        error,
        rf"^{argument} {message}",
    )
    for what, (value, error, message) in {
        "text": ("x", TypeError, r"must be a tree .* got 'x' of type str; pass what"),
        "a function": (a_function, TypeError, r"must be a tree .* got <function.* of type function; pass what"),
        "a transformation": (TX, TypeError, r"must be a tree .* of type GradientTransformationExtraArgs; pass what"),
        "None": (None, ValueError, r"has no array in it, got None of type NoneType: pass the tree"),
        "nothing": ({}, ValueError, r"has no array in it, got {} of type dict: pass the tree"),
        "a function inside": ({"wte": a_function}, TypeError, r"has <function.* at 'wte', which has no shape: filter the tree"),
    }.items()
    for argument, pair in (("saved", (value, WTE)), ("target", (WTE, value)))
}
BAD |= {
    "check_shapes of one array": (
        lambda: check_shapes(PARAMS, TABLE),
        ValueError,
        r"'' of shape \(6, 4\) is not in the .*Restore",
    ),
    "check_shapes of six others": (
        lambda: check_shapes({f"{i}": TABLE for i in range(6)}, {f"{i}": TABLE[:3] for i in range(6)}),
        ValueError,
        r"'4' was saved with shape \(6, 4\), wanted is \(3, 4\) and 1 more\. Restore it",
    ),
    "check_shapes of another size": (
        lambda: check_shapes(WTE, {"wte": TABLE[:3]}),
        ValueError,
        r"'wte' was saved with shape \(6, 4\), wanted is \(3, 4\).*Restore",
    ),
}
GOOD = {
    "metadata of scalars": lambda: check_shapes({"step": 3, "wte": TABLE}, {"step": 0, "wte": jax.eval_shape(lambda: TABLE)}),
    "numbers": lambda: checksums({"step": 3, "rate": 0.5, "on": True}),
    "an empty array": lambda: checksums({"ids": np.zeros((0, 4))}),
    "one array": lambda: verify_checksums(WTE["wte"], checksums(WTE["wte"])),
    "integers of NumPy": lambda: verify_checksums(WTE, {"wte": np.uint64(SAVED["wte"])}),
}
