"""The finder on parameter trees of whole models: every table, its axes and its kind; and nothing in models without tokens."""

import warnings

import jax
import optax
import pytest
from model_trees import read_models

from ember_optax import TokenTables, ember
from ember_optax._tree.paths import flatten_named

TOKENS, OTHERS = read_models("token_models.txt"), read_models("other_models.txt")


def tables_in(declared):
    names, values, _ = flatten_named(declared, is_leaf=lambda x: x is None)
    return {name: numbers for name, numbers in zip(names, values, strict=True) if numbers is not None}


def start(params, tables):
    """What a user sees at the start of training."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.eval_shape(ember(1e-2, optax.sgd(1e-3), tables=tables).init, params)
    return [str(warning.message) for warning in caught]


def test_there_are_enough_models():
    assert len(TOKENS) >= 80 and len(OTHERS) >= 55
    assert sum(len(model.tables) for model in TOKENS.values()) >= 140


@pytest.mark.parametrize("name", TOKENS)
def test_tables_axes_and_kinds(name):
    model = TOKENS[name]
    tables = TokenTables(include=model.include)
    assert tables_in(tables(model.params)) == {path.removesuffix("/value"): said for path, said in model.tables.items()}
    messages = start(model.params, tables)
    assert len(messages) == bool(model.named)
    named = {path for path in model.shapes if any(f"{path!r} of shape" in message for message in messages)}
    assert named == model.named


@pytest.mark.parametrize("name", [name for name, model in TOKENS.items() if model.named])
def test_what_is_named_is_a_table_once_it_is_included(name):
    """And the warning is gone; the kinds are known, of an embedding beside the new head too."""
    model = TOKENS[name]
    tables = TokenTables(include=sorted(model.named))
    assert not start(model.params, tables)
    found = tables_in(tables(model.params))
    assert set(found) == set(model.tables) | model.named
    assert all(found[path].kind == ("input" if "embed" in path else "head") for path in model.named)
    vocabularies = {path: model.shapes[path][numbers.token_axis] for path, numbers in found.items()}
    assert all(vocabularies[path] in {vocabularies[known] for known in model.tables} | {50304} for path in model.named)


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_in_models_without_tokens(name):
    model = OTHERS[name]
    assert tables_in(TokenTables()(model.params)) == {}
    with pytest.raises(ValueError, match=r"^no token table found among the parameters.* A model without tokens has none"):
        start(model.params, TokenTables())


@pytest.mark.parametrize(
    "shapes, advice",
    [
        ({"tok": (512, 64), "out": (64, 512), "mlp": (64, 256)}, "tables=TokenTables(include=['out', 'tok'])"),
        ({"tok": (512, 64), "mlp": (64, 256)}, "tables=TokenTables(include=['tok'])"),
        ({"tok/kernel": (512, 64), "mlp": (64, 256)}, "tables=TokenTables(include={'tok/kernel': EmberDimensionNumbers(0)})"),
        ({"pos_embed": (5120, 64), "tok": (512, 64)}, "tables=TokenTables(include=['tok'])"),
        ({"pos_embed": (5120, 64), "norm": (64,)}, "The largest matrices are 'pos_embed' (5120, 64). A model"),
    ],
)
def test_without_tables_the_likeliest_are_proposed(shapes, advice):
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    with pytest.raises(ValueError) as caught:
        start(params, TokenTables())
    assert advice in str(caught.value)
