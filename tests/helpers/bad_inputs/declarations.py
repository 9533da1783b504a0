"""Which parameters are tables, and which axis is what: `tables`, `dimension_numbers`, `include`, `exclude`."""

import functools

import jax.numpy as jnp
import numpy as np
import optax

from bad_inputs.examples import ALL, PARAMS, TABLE, TX, WTE, a_function
from ember_optax import (
    EmberDimensionNumbers,
    TokenTables,
    describe_token_tables,
    ember,
    scale_by_ember,
    token_table_labels,
    token_tables,
)


def scaled(leaf, **numbers):
    return scale_by_ember(dimension_numbers=EmberDimensionNumbers(**numbers)).init({"wte": leaf})


def declared(argument, value):
    tx = {
        "tables": lambda: ember(1e-3, optax.adamw(1e-3), tables=value),
        "dimension_numbers": lambda: scale_by_ember(dimension_numbers=value),
    }
    return lambda: tx[argument]().init(PARAMS)


def injected(factory, **options):
    return lambda: optax.inject_hyperparams(factory)(**options).init(PARAMS)


def of_no_tree(find, params):
    return lambda: find(params)


def of_finder(find, **options):
    return lambda: find(PARAMS, **options)


NO_DECLARATIONS = {
    "None": (None, TypeError, r" is None. Leave it out to use the finder"),
    "a path": ("embed/embedding", TypeError, r" is the text 'embed/embedding'.*TokenTables\(include=\['embed/embedding'\]"),
    "a list of paths": (
        ["embed/embedding"],
        TypeError,
        r" holds the text 'embed/embedding'.*TokenTables\(include=\['embed/embedding'\]",
    ),
    "a path beside a table": (
        ["embed/embedding", ALL],
        TypeError,
        r" must have Ember.* for '0', got 'embed/emb.*TokenTables\(include=",
    ),
    "a set of paths": (
        {"embed/embedding"},
        TypeError,
        r" holds the text 'embed/embedding'.*TokenTables\(include=\['embed/embedding'\]",
    ),
    "a number": (3, TypeError, r" must declare tables by Ember.*, got 3 of type int.* static_args="),
    "an array": (jnp.ones(3), TypeError, r" must declare tables by Ember.*, got Array\(\[1.* static_args="),
    "an iterator": (iter([ALL]), TypeError, r" must declare tables by Ember.*, got <list_iter.* static_args="),
    "the class": (EmberDimensionNumbers, TypeError, r" is the class EmberDimensionNumbers; write EmberDimensionNumbers\(\)"),
    "an empty tree": ({}, ValueError, r" has no entry for parameter 'dense/kernel'; its entries are \[\]. Give it"),
    "half a tree": ({"embed": ALL}, ValueError, r" has no entry for parameter 'dense/kernel'; .*\['embed'\]. Give it"),
    "a wrong path": (
        {"embedd": ALL, "dense": ALL},
        ValueError,
        r" has no entry for parameter 'embed/embedding'; .*'embedd'\]. Give",
    ),
    "a number in the tree": ({"embed": 3, "dense": None}, TypeError, r" must have Ember.* for 'embed', got 3 .*; write Ember"),
    "axes in the tree": ({"embed": (0,), "dense": None}, TypeError, r" must have Ember.* for 'embed/0', got 0 .*; write Ember"),
    "the parameters": (PARAMS, TypeError, r" must have Ember.* for 'dense/kernel', got Array.*; write Ember"),
    "a transformation": (TX, TypeError, r" must have Ember.* for 'init', got <function.*; write Ember"),
    "a function of a number": (lambda _: 3, TypeError, r" must have Ember.* for '', got 3 .*; write Ember"),
    "a function of text": (describe_token_tables, TypeError, r" must have Ember.* for '', got 'table .*; write Ember"),
    "an axis too far": (
        {"embed": EmberDimensionNumbers(5), "dense": None},
        ValueError,
        r"\(token_axis=5.*'embed/embedding' .*use",
    ),
    "a bad pattern": (functools.partial(token_tables, include=["("]), ValueError, r"include holds '\('.*re.escape"),
    "include of None": (functools.partial(token_tables, include=None), TypeError, r"include must .*got None .*leave it out"),
}
BAD = {
    f"{argument}: {what}": (declared(argument, value), error, message if message[0] != " " else f"^{argument}{message}")
    for argument in ("tables", "dimension_numbers")
    for what, (value, error, message) in NO_DECLARATIONS.items()
}
BAD |= {
    f"{argument}, before any init": (make, TypeError, rf"^{argument} is the text 'embed/embedding'")
    for argument, make in {
        "tables": lambda: ember(1e-3, optax.adamw(1e-3), tables="embed/embedding"),
        "dimension_numbers": lambda: scale_by_ember(dimension_numbers="embed/embedding"),
    }.items()
}
BAD |= {
    f"{find.__name__} of {what}": (of_no_tree(find, params), TypeError, r"^params must be a tree of arrays, got ")
    for find in (token_tables, token_table_labels, describe_token_tables)
    for what, params in {"None": None, "a number": 3, "a path": "wte", "a transformation": TX}.items()
}
NO_PATTERNS = {
    "None": (None, TypeError, r" must be a sequence .* got None of type NoneType; .*leave it out"),
    "a number": (3, TypeError, r" must be a sequence .* got 3 of type int; .*leave it out"),
    "text": ("head", TypeError, r" must be a sequence .*\['head'\]"),
    "bytes": (b"head", TypeError, r" must (be a sequence|hold) .* got .*; write"),
    "a function": (a_function, TypeError, r" must be a sequence .* got <function.*; write"),
    "a number inside": ([3], TypeError, r" must hold regular expressions, got 3 of type int; write them"),
    "None inside": ([None], TypeError, r" must hold regular expressions, got None of type NoneType; write them"),
    "no expression": (["("], ValueError, r" holds '\(', which is not a regular expression.*; re.escape"),
}
BAD |= {
    f"{argument} of {find.__name__}: {what}": (of_finder(find, **{argument: value}), error, f"^{argument}{message}")
    for argument in ("include", "exclude")
    for find in (token_tables, token_table_labels, describe_token_tables)
    for what, (value, error, message) in NO_PATTERNS.items()
}
BAD |= {
    f"include maps to {value!r}": (
        of_finder(token_tables, include={"head": value}),
        TypeError,
        r"include\['head'\] must be EmberDimensionNumbers, got .* of type .*; for the usual axes write include=\['head'\]",
    )
    for value in (1, None, "0", (0,), EmberDimensionNumbers)
}
BAD |= {
    "exclude is a mapping": (of_finder(token_tables, exclude={"head": ALL}), TypeError, r"exclude must .* of type dict; write"),
    "tables and include": (
        of_finder(describe_token_tables, include=["dense/.*"], tables=ALL),
        ValueError,
        r"takes include and exclude, or tables, not both: put the patterns into tables",
    ),
    "injected function for tables": (
        injected(ember, learning_rate=1e-3, body=optax.adamw(1e-3), tables=lambda step: step),
        TypeError,
        r"tables must declare .* got .*Array\(.*static_args=\('tables',\)",
    ),
    "injected function for dimension_numbers": (
        injected(scale_by_ember, dimension_numbers=lambda step: step),
        TypeError,
        r"dimension_numbers must declare .* got .*Array\(.*static_args=\('dimension_numbers',\)",
    ),
    "injected function of None": (
        injected(scale_by_ember, dimension_numbers=lambda _: None),
        TypeError,
        r"dimension_numbers is None.*static_args=\('dimension_numbers',\)",
    ),
    "injected finder": (
        injected(ember, learning_rate=1e-3, body=optax.adamw(1e-3), tables=token_tables),
        TypeError,
        r"a scalar .*static_args=\('tables',",
    ),
    "injected finder of scale_by_ember": (
        injected(scale_by_ember, dimension_numbers=token_tables),
        TypeError,
        r"a scalar .*static_args=.*\('dimension_numbers',\)",
    ),
    "fractional axis": (lambda: EmberDimensionNumbers(0.5), TypeError, r"token_axis must .* integers, got 0.5; name"),
    "text axis": (lambda: EmberDimensionNumbers("0"), TypeError, r"token_axis must be made of integers, got '0'; name"),
    "boolean axis": (lambda: EmberDimensionNumbers(True), TypeError, r"token_axis must be made of integers, got True; name"),
    "axis of None": (lambda: EmberDimensionNumbers(None), TypeError, r"token_axis must be made of integers, got None; name"),
    "axis in a list": (lambda: EmberDimensionNumbers([0]), TypeError, r"token_axis must .* integers, got \[0\]; name"),
    "axis is an array": (lambda: EmberDimensionNumbers(jnp.float32(0)), TypeError, r"token_axis must .* got Array.*; name"),
    "bare batch axis": (lambda: EmberDimensionNumbers(1, 0), TypeError, r"batch_axes must be a tuple .* batch_axes=\(0,\)"),
    "batch axes of None": (
        lambda: EmberDimensionNumbers(1, None),
        TypeError,
        r"batch_axes must be a tuple .* got None; .* write",
    ),
    "batch axes of text": (lambda: EmberDimensionNumbers(1, "0"), TypeError, r"batch_axes must be a tuple .* got '0'; .* write"),
    "batch axes of bytes": (
        lambda: EmberDimensionNumbers(1, b"0"),
        TypeError,
        r"batch_axes must be a tuple .* got b'0'; .* write",
    ),
    "batch axes of a mapping": (
        lambda: EmberDimensionNumbers(1, {0: 1}),
        TypeError,
        r"batch_axes must be .* got {0: 1}; .* write",
    ),
    "the second axis of a scalar": (
        lambda: scaled(jnp.ones(()), token_axis=1),
        ValueError,
        r"\(token_axis=1, batch_axes=\(\).*\) does not fit parameter 'wte' of shape \(\): axis 1 is out of range",
    ),
    "batch axes of a scalar": (
        lambda: EmberDimensionNumbers(1, jnp.array(0)),
        TypeError,
        r"batch_axes must .* got Array.*; .* write",
    ),
    "batch axes of floats": (lambda: EmberDimensionNumbers(1, (0.0,)), TypeError, r"batch_axes must .* integers, got 0.0; name"),
    "axis named twice": (
        lambda: EmberDimensionNumbers(0, (0,)),
        ValueError,
        r"batch_axes=\(0,\).*\) names an axis twice; each axis",
    ),
    "axis out of range": (lambda: scaled(TABLE, token_axis=2), ValueError, r"'wte' of shape \(6, 4\).*use axes from -2 to 1"),
    "axis below range": (lambda: scaled(TABLE, token_axis=-3), ValueError, r"'wte' of shape \(6, 4\).*use axes from -2 to 1"),
    "axis beyond everything": (lambda: scaled(TABLE, token_axis=10**400), ValueError, r"'wte' of shape \(6, 4\).*use axes from"),
    "batch axis out of range": (lambda: scaled(TABLE, batch_axes=(2,)), ValueError, r"'wte' .* axis 2 is out of range, use axes"),
    "one axis by two names": (lambda: scaled(TABLE, token_axis=1, batch_axes=(-1,)), ValueError, r"'wte' .* twice"),
    "tables of wrong type": (
        lambda: ember(1e-3, optax.adamw(1e-3), tables={"embed": 0}).init(PARAMS),
        TypeError,
        r"'embed', got 0 of type int; write",
    ),
    "tables without an entry": (
        lambda: ember(1e-3, optax.adamw(1e-3), tables={"head": ALL}).init(PARAMS),
        ValueError,
        r"'dense/kernel'.*head.*Give",
    ),
    "tables with a wrong path": (
        lambda: ember(1e-3, optax.adamw(1e-3), tables={"embed": ALL, "dense": None, "head": ALL}).init(PARAMS),
        ValueError,
        r"declared for \['head'\], but the parameters are \['dense/kernel', 'embed/embedding'\]; correct",
    ),
    "a pattern in vain": (
        lambda: ember(1e-3, optax.adamw(1e-3), tables=TokenTables(include=["head/kernel"])).init(PARAMS),
        ValueError,
        r"include 'head/kernel' of token_tables matches no path. A pattern must match a whole path",
    ),
    "no table declared for a table": (
        lambda: scale_by_ember(dimension_numbers={"wte": ALL, "mlp": None}).init({**WTE, "mlp": jnp.ones(4)}),
        ValueError,
        r"says None, no table, of 'mlp' with shape \(4,\).*optax.masked or optax.partition",
    ),
    "a declaration whose paths collide": (
        lambda: scale_by_ember(dimension_numbers={"a/b": ALL, "a": {"b": ALL}}).init({"a": {"b": TABLE}}),
        ValueError,
        r"paths \['a/b'\] name more than one leaf.*rename the keys",
    ),
    "paths that collide": (
        lambda: ember(1e-3, optax.adamw(1e-3), tables={"params": {"a": ALL}, "a": None}).init(
            {"params": {"a": TABLE}, "a": jnp.ones(4)}
        ),
        ValueError,
        r"paths \['a'\] name more than one leaf.*rename the keys",
    ),
}
GOOD = {
    "a negative axis": lambda: scaled(TABLE, token_axis=-1),
    "a scalar": lambda: scaled(jnp.ones(())),
    "the last axis of a scalar": lambda: scaled(jnp.ones(()), token_axis=-1),
    "the last axis of a vector": lambda: scaled(jnp.ones(5), token_axis=-1),
    "axes of NumPy": lambda: EmberDimensionNumbers(np.int64(1), np.array([0])),
    "axes in a list": lambda: EmberDimensionNumbers(1, [0]),
    "patterns in a tuple": of_finder(token_tables, include=("dense/kernel",), exclude=()),
    "patterns in a set": of_finder(token_tables, exclude={"dense/.*"}),
    "a tree without tables": lambda: token_tables({"dense": jnp.ones((4, 4))}),
    "a function that is static": lambda: optax.inject_hyperparams(ember, static_args=("tables",))(
        learning_rate=1e-3, body=optax.adamw(1e-3), tables=token_tables
    ).init(PARAMS),
}
