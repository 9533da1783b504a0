"""Which tables change together: an input table and its head by themselves, several of one size only when they are named."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import EmberDimensionNumbers, TokenTables, ember, geometry, scale_by_ember, vocab
from ember_optax._tree.paths import flatten_named, path_name

V, D = 6, 4
TABLE, HEAD = jnp.arange(float(V * D)).reshape(V, D), jnp.arange(float(D * V)).reshape(D, V)
DECLARED = {"rows": EmberDimensionNumbers(), "columns": EmberDimensionNumbers(1), "mlp": None}
# Models whose tables may be of several vocabularies: parameters, declaration, and the patterns of one vocabulary.
SEVERAL = {
    "users and items": ({"users": {"embedding": TABLE}, "items": {"embedding": TABLE}}, "auto", ["users/.*"]),
    "source and target": (
        {"encoder": {"embed": {"embedding": TABLE}}, "decoder": {"embed": {"embedding": TABLE}, "lm_head": {"kernel": HEAD}}},
        "auto",
        ["decoder/.*"],
    ),
    "three codebooks": ({"embed": [{"embedding": TABLE} for _ in range(3)]}, "auto", ["embed/1/embedding"]),
    "one vocabulary with two heads": (
        {"embed": {"embedding": TABLE}, "lm_head": {"kernel": HEAD}, "next": {"lm_head": {"kernel": HEAD}}},
        "auto",
        ["embed/embedding", "lm_head/kernel"],
    ),
    "declared without a kind": ({"rows": TABLE, "columns": HEAD, "mlp": jnp.ones((D, D))}, DECLARED, ["rows"]),
    "declared by a function": (
        {"a": TABLE, "b": TABLE},
        TokenTables(include={"[ab]": EmberDimensionNumbers()}),
        ["b"],
    ),
}
EACH = pytest.mark.parametrize("model", SEVERAL)
CHANGES = {
    "resize": functools.partial(vocab.resize, size=V + 3),
    "take": functools.partial(vocab.take, token_ids=[4, 0, 2]),
    "transplant": functools.partial(vocab.transplant, old_vocabulary=list("abcdef"), new_vocabulary=list("bx")),
}
NEW_SIZE = {"resize": V + 3, "take": 3, "transplant": 2}


@functools.cache
def trained(model):
    params, tables, _ = SEVERAL[model]
    tx = optax.MultiSteps(ember(1e-2, optax.adamw(1e-3), tables=tables), 2)
    state = tx.init(params)
    for _ in range(3):
        _, state = jax.jit(tx.update)(params, state, params)
    return tx, params, state


@EACH
@pytest.mark.parametrize("change", [*CHANGES, "removed_share"])
def test_several_of_one_size_are_refused_with_the_fix(model, change):
    tx, params, state = trained(model)
    tables = SEVERAL[model][1]
    call = functools.partial(vocab.removed_share, kept_ids=[0]) if change == "removed_share" else CHANGES[change]
    arguments = (params, state) if change == "removed_share" else (tx, params, state)
    with pytest.raises(
        ValueError, match=r"have 6 tokens each, and nothing shows .*for example names=\['[\w/]+'\], or names=\['\.\*'\]"
    ):
        call(*arguments, tables=tables)


def shapes(tree):
    names, leaves, _ = flatten_named(tree)
    return {name: np.shape(leaf) for name, leaf in zip(names, leaves, strict=True)}


@EACH
@pytest.mark.parametrize("change", CHANGES)
def test_the_named_tables_change_and_no_other(model, change):
    tx, params, state = trained(model)
    _, tables, names = SEVERAL[model]
    changed = CHANGES[change](tx, params, state, tables=tables, names=names)
    tokens_of = {name for name, shape in shapes(params).items() if shape != (D, D)}
    moved = {name for name, shape in shapes(changed.params).items() if NEW_SIZE[change] in shape}
    assert moved == {n for n in tokens_of if any(re.fullmatch(pattern, n) for pattern in names)}
    # Every array of the state that belongs to a table goes with it, and the others stay bit for bit.
    before, after = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (state, changed.opt_state))
    for (path, old), (_, new) in zip(before, after, strict=True):
        place = f"/{path_name(path)}"
        owners = [name for name in tokens_of if place.endswith("/" + name)]
        owner = max(owners, key=len, default=None)
        if owner not in moved:
            np.testing.assert_array_equal(old, new)
        elif V in np.shape(old):
            assert NEW_SIZE[change] in np.shape(new), place
    jax.jit(tx.update)(changed.params, changed.opt_state, changed.params)


@EACH
def test_all_of_them_by_one_pattern(model):
    _, params, _ = trained(model)
    changed = vocab.resize(None, params, None, V + 1, tables=SEVERAL[model][1], names=[".*"])
    assert all(V + 1 in shape for shape in shapes(changed.params).values() if shape != (D, D))


@EACH
def test_the_share_of_what_is_removed_is_of_the_named_tables(model):
    _, params, state = trained(model)
    _, tables, names = SEVERAL[model]
    found = vocab.removed_share(params, state, [0, 1], tables=tables, names=names)
    assert found and all(any(re.fullmatch(pattern, name) for pattern in names) for name in found)


ONE = {
    "tied": {"wte": {"embedding": TABLE}, "mlp": jnp.ones((D, D))},
    "an input table and a head": {"embed": {"embedding": TABLE}, "lm_head": {"kernel": HEAD}},
    "a head like the input table": {"embed_tokens": {"weight": TABLE}, "lm_head": {"weight": TABLE}},
    "with a bias": {"embed": {"embedding": TABLE}, "lm_head": {"kernel": HEAD, "bias": jnp.ones(V)}},
}


@pytest.mark.parametrize("model", ONE)
@pytest.mark.parametrize("change", CHANGES)
def test_one_vocabulary_needs_no_names(model, change):
    params = ONE[model]
    tx = ember(1e-2, optax.adamw(1e-3))
    changed = CHANGES[change](tx, params, tx.init(params))
    assert all(NEW_SIZE[change] in shape for shape in shapes(changed.params).values() if shape != (D, D))


def test_declared_kinds_tell():
    tables = {"rows": EmberDimensionNumbers(kind="input"), "columns": EmberDimensionNumbers(1, kind="head"), "mlp": None}
    params = SEVERAL["declared without a kind"][0]
    changed = vocab.resize(None, params, None, V + 1, tables=tables)
    assert shapes(changed.params) == {"rows": (V + 1, D), "columns": (D, V + 1), "mlp": (D, D)}


def test_biases_stay_with_their_table():
    params = {
        "users": {"embedding": TABLE, "bias": jnp.zeros(V)},
        "items": {"embedding": TABLE, "bias": jnp.ones(V)},
    }
    changed = vocab.resize(None, params, None, V + 1, names=["users/embedding"]).params
    assert shapes(changed) == {
        "items/bias": (V,),
        "items/embedding": (V, D),
        "users/bias": (V + 1,),
        "users/embedding": (V + 1, D),
    }


def test_a_bias_beside_tables_of_two_vocabularies_is_named():
    params = {"embeddings": {"users": TABLE, "items": TABLE, "bias": jnp.zeros(V)}}
    options = {"tables": {"embeddings": {"users": EmberDimensionNumbers(), "items": EmberDimensionNumbers(), "bias": None}}}
    resize = functools.partial(vocab.resize, None, params, None, V + 1, **options)
    with pytest.raises(ValueError, match=r"\{'embeddings/bias': \(6,\)\} would be left behind"):
        resize(names=["embeddings/users"])
    assert resize(names=["embeddings/users"], unrelated=["embeddings/bias"]).params["embeddings"]["bias"].shape == (V,)
    assert resize(names=["embeddings/(users|bias)"]).params["embeddings"]["bias"].shape == (V + 1,)


def test_another_size_needs_no_exclusion():
    params = {"users": {"embedding": TABLE}, "items": {"embedding": jnp.ones((V + 1, D))}}
    changed = vocab.take(None, params, None, [1, 0], names=["items/embedding"]).params
    assert shapes(changed) == {"items/embedding": (2, D), "users/embedding": (V, D)}


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["user/.*"], ValueError, r"names has \['user/\.\*'\], which match none of \['items/embedding', 'users/embedding'\]"),
        ("users/.*", TypeError, r"names must be a sequence of regular expressions, got the text 'users/\.\*'"),
        ([], ValueError, r"names matches none of the tables \['items/embedding', 'users/embedding'\]; correct"),
        ([3], TypeError, r"names must hold regular expressions, got 3"),
    ],
)
def test_names_that_are_none(names, error, message):
    with pytest.raises(error, match=message):
        vocab.resize(None, SEVERAL["users and items"][0], None, V + 1, names=names)


def test_stacked_tables_are_one_array():
    params = {"codebooks": jnp.ones((3, V, D))}
    numbers = EmberDimensionNumbers(1, batch_axes=(0,))
    tx = scale_by_ember(dimension_numbers=numbers)
    changed = vocab.resize(tx, params, tx.init(params), V + 1, tables=numbers)
    assert shapes(changed.params) == {"codebooks": (3, V + 1, D)}


def test_a_declared_bias_is_of_the_vocabulary_of_its_size():
    """BERT's head bias is apart from the tied table. The same declaration goes to `ember` and to `geometry.report`."""
    params = {
        "bert": {"word_embeddings": {"embedding": jax.random.normal(jax.random.key(0), (V, D))}},
        "cls": {"predictions": {"bias": jnp.zeros(V)}},
    }
    tables = TokenTables(include=["cls/predictions/bias"])
    tx = ember(1e-2, optax.adamw(1e-3), tables=tables)
    changed = vocab.resize(tx, params, tx.init(params), V + 2, tables=tables)
    assert set(shapes(changed.params).values()) == {(V + 2, D), (V + 2,)}
    metrics = geometry.report(changed.params, opt_state=changed.opt_state, tables=tables)
    assert any("word_embeddings" in name for name in metrics)
