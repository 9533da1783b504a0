"""A head's token axis is that of the vocabulary which the embedding beside it has, however the head is stored."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from published_paths import ROWS, nested

from ember_optax import (
    EmberDimensionNumbers,
    TokenTables,
    describe_token_tables,
    ember,
    geometry,
    regularizers,
    row_sparse,
    token_tables,
    vocab,
)
from ember_optax._tree.rules import first_match

V, D = 13, 5
NAMES = ["lm_head", "lm_head/kernel", "lm_head/w", "lm_head/weight", "unembed", "logits/kernel", "reverse_embeddings"]


def model(name, axis, rows=V):
    table = jax.random.normal(jax.random.key(0), (rows, D))
    return {"wte": table[:V] + 1.0, **nested(name, table if axis == 0 else table.T)}


def stays(name, params):
    """The head, whose path `nested` has split."""
    return functools.reduce(lambda tree, part: tree[part], name.split("/"), params)


def frozen_rows(params, name):
    tx = row_sparse.train_only_rows(ember(0.1, optax.adamw(0.1)), {name: jnp.array([1, 3])})
    return tx.update(params, tx.init(params), params)[0]


def centred(params, name):
    tx = regularizers.center_rows()
    return tx.update(params, tx.init(params))[0]


def applied(params, name):
    shape = [2 if size == V else size for size in stays(name, params).shape]
    updates = {"wte": jnp.zeros((V, D)), **nested(name, jnp.ones(shape))}
    return row_sparse.apply_updates(params, updates, {name: jnp.array([1, 3])})


def reported(params, name):
    return {metric: value for metric, value in geometry.report(params, spectral=False).items() if name in metric}


def term(params, name):
    return regularizers.over_tables(functools.partial(regularizers.anisotropy, coefficient=1.0), params)


# What each makes of a model with a head of this name: a head like that, or what does not depend on its layout.
CALLS = {
    "resize": lambda params, name: vocab.resize(None, params, None, V + 3).params,
    "take": lambda params, name: vocab.take(None, params, None, [4, 2, 2]).params,
    "train_only_rows": frozen_rows,
    "apply_updates": applied,
    "center_rows": centred,
    "report": reported,
    "over_tables": term,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_tokens_in_either_layout(name, call):
    rows, columns = (CALLS[call](model(name, axis), name) for axis in (0, 1))
    if isinstance(rows, dict) and "wte" in rows:
        rows, columns = stays(name, rows), stays(name, columns).T
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), rows, columns)


@pytest.mark.parametrize("axis", [0, 1])
def test_what_found_the_axis_is_told(axis):
    text = describe_token_tables(model("lm_head", axis))
    assert ("head, vocabulary of another table" in text) == (axis == 0)


def found(shapes, path, **options):
    tree = {}
    for name, shape in shapes.items():
        *parents, last = name.split("/")
        functools.reduce(lambda node, part: node.setdefault(part, {}), parents, tree)[last] = jax.ShapeDtypeStruct(
            shape, jnp.float32
        )
    numbers = stays(path, token_tables(tree, **options))
    return None if numbers is None else dataclasses.replace(numbers, kind=None)


FIRST, LAST = EmberDimensionNumbers(0), EmberDimensionNumbers(1)


@pytest.mark.parametrize(
    "shapes, path, expected",
    [
        # The sizes of the embedding decide; the usual axis is (D, V) without `weight` in the name.
        ({"wte": (97, 16), "lm_head": (97, 16)}, "lm_head", FIRST),
        ({"wte": (97, 16), "lm_head/weight": (16, 97)}, "lm_head/weight", LAST),
        ({"wte": (97, 16), "lm_head": (97, 64)}, "lm_head", FIRST),
        ({"per_layer_embedding": (97, 3, 8), "lm_head": (97, 16)}, "lm_head", FIRST),
        # More features than tokens: bytes.
        ({"wte": (256, 768), "lm_head/kernel": (768, 256)}, "lm_head/kernel", LAST),
        ({"wte": (256, 768), "lm_head/kernel": (256, 768)}, "lm_head/kernel", FIRST),
        # Nothing is known, or no size is: the usual axis.
        ({"lm_head": (97, 16)}, "lm_head", LAST),
        ({"wte": (97, 16), "lm_head": (16, 128)}, "lm_head", LAST),
        ({"wte": (97, 16), "lm_head": (150, 16)}, "lm_head", LAST),
        # Padded to the next multiple of 8, 64, 128 or 256, even where the vocabulary is one already.
        ({"wte": (97, 16), "lm_head": (128, 16)}, "lm_head", FIRST),
        ({"wte": (512, 64), "lm_head/kernel": (640, 64)}, "lm_head/kernel", FIRST),
        ({"wte": (512, 64), "lm_head/weight": (64, 640)}, "lm_head/weight", LAST),
        ({"wte": (50257, 768), "logits/weight": (768, 50304)}, "logits/weight", LAST),
        ({"wte": (50304, 768), "logits/kernel": (50257, 768)}, "logits/kernel", FIRST),
        # Factorised.
        ({"embed/embedding": (512, 32), "up": (32, 64), "logits/kernel": (64, 512)}, "logits/kernel", LAST),
        ({"embed/embedding": (512, 32), "up": (32, 64), "logits/kernel": (512, 64)}, "logits/kernel", FIRST),
        # A head by a name that others have too, without a table of its vocabulary.
        ({"wte": (97, 16), "policy/logits/kernel": (64, 18)}, "policy/logits/kernel", None),
        ({"logits/kernel": (64, 18)}, "logits/kernel", None),
        # Ambiguous: as many tokens as features, in one table or by way of another.
        ({"wte": (16, 16), "lm_head/kernel": (16, 16)}, "lm_head/kernel", LAST),
        ({"wte": (16, 16), "lm_head/kernel": (97, 16)}, "lm_head/kernel", LAST),
        ({"Embed_0/embedding": (97, 16), "Embed_1/embedding": (16, 16), "lm_head/kernel": (16, 128)}, "lm_head/kernel", LAST),
        ({"wte": (97, 16), "codes_embed": (16, 8), "lm_head/kernel": (16, 128)}, "lm_head/kernel", LAST),
        ({"wte": (97, 16), "codes_embed": (33, 8), "lm_head/kernel": (97, 33)}, "lm_head/kernel", LAST),
        # Several vocabularies.
        ({"wte": (97, 16), "codes_embed": (33, 16), "lm_head": (33, 16)}, "lm_head", FIRST),
        ({"wte": (97, 16), "codes_embed": (33, 16), "lm_head": (16, 33)}, "lm_head", LAST),
        # Positions are no tokens.
        ({"wte": (97, 16), "wpe": (33, 16), "lm_head/kernel": (33, 128)}, "lm_head/kernel", LAST),
        # Stacks: of codebooks, whose number tells nothing.
        ({"codes_embed": (4, 97, 16), "lm_head/kernel": (4, 16, 97)}, "lm_head/kernel", EmberDimensionNumbers(2, (0,))),
        ({"codes_embed": (4, 97, 16), "lm_head/kernel": (4, 97, 16)}, "lm_head/kernel", EmberDimensionNumbers(1, (0,))),
        ({"codes_embed": (4, 97, 16), "lm_head/kernel": (97, 16)}, "lm_head/kernel", FIRST),
        ({"wte": (97, 16), "lm_head/kernel": (97, 4, 16)}, "lm_head/kernel", EmberDimensionNumbers(2, (0,))),
    ],
)
def test_sizes_decide_or_the_name(shapes, path, expected):
    assert found(shapes, path) == expected


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"include": {"table": EmberDimensionNumbers(1)}}, FIRST),  # declared: its vocabulary counts
        ({"include": ["table"]}, LAST),  # guessed itself
        ({"include": {"lm_head": EmberDimensionNumbers(-1)}}, EmberDimensionNumbers(-1)),
        ({"include": {"table": EmberDimensionNumbers(5)}}, LAST),  # does not fit, which is refused where it is used
    ],
)
def test_tables_that_are_declared_tell(options, expected):
    assert found({"table": (16, 97), "lm_head": (97, 16)}, "lm_head", **options) == expected


@pytest.mark.parametrize(
    "head, shape, axis",
    [
        ("head", (64, 512), 1),
        ("head/kernel", (64, 512), 1),
        ("head/weight", (64, 512), 1),
        ("head/kernel", (512, 64), 0),
        ("zeta", (64, 512), 1),
        ("zeta", (512, 64), 0),
        ("head", (64, 640), 1),
        ("head/kernel", (640, 64), 0),
        ("a", (64, 512), 1),
    ],
)
def test_included_tables_tell_each_other_their_vocabulary(head, shape, axis):
    """In the order of reliability and not of the alphabet: an embedding is read by rows, a head is stored either way."""
    shapes = {"tok": (512, 64), head: shape}
    assert found(shapes, "tok", include=["tok", head]) == FIRST
    assert found(shapes, head, include=["tok", head]) == EmberDimensionNumbers(axis)


def test_included_tables_of_which_nothing_tells_the_vocabulary():
    params = {"a": jnp.ones((64, 512)), "z": jnp.ones((512, 64))}
    tables = TokenTables(include=["a", "z"])
    with pytest.warns(
        UserWarning, match=r"ember takes 'z' of shape \(512, 64\) for a table of 64 tokens .*'a': EmberD.*'z': EmberD"
    ):
        ember(0.1, optax.adamw(0.1), tables=tables).init(params)
    with pytest.raises(ValueError, match=r"rows of 'z' of shape \(512, 64\) .* which axis.*TokenTables\(include=\{'z': Ember"):
        row_sparse.train_only_rows(ember(0.1, optax.adamw(0.1), tables=tables), {"z": jnp.array([1])}, tables=tables).init(params)


@pytest.mark.parametrize("shape, expected", [((4, 97, 16), EmberDimensionNumbers(1, (0,))), ((97, 3, 8), FIRST)])
def test_three_axes_that_are_included(shape, expected):
    """Tokens in the second axis make a stack, tokens in the first one have two axes of features."""
    assert found({"wte": (97, 16), "table": shape}, "table", include=["table"]) == expected


def test_the_embedding_is_known_where_it_is_excluded():
    assert found({"wte": (97, 16), "lm_head": (97, 16)}, "lm_head", exclude=["wte"]) == FIRST


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("embedding", [(97, 16), (97, 8), (96, 16), (128, 16), (16, 16)])
def test_published_heads_beside_any_embedding(rows, embedding):
    """Beside one of their own vocabulary, factorised, padded, or of as many tokens as features."""
    for path, shape, axis in ROWS[rows]:
        if axis is None or (first_match(path, len(shape)).is_doubtful and 97 not in embedding):
            continue
        told = found({"zzz/wte": embedding, path.removeprefix("params/"): shape}, path.removeprefix("params/"))
        assert (None if told is None else told.token_axis) == axis, path


DOUBTFUL = model("lm_head", 0, rows=V + 4)  # padded in its own way, and stored the unusual way


@pytest.mark.parametrize(
    "call",
    [
        frozen_rows,
        lambda params, name: row_sparse.apply_updates(params, params, {name: jnp.array([1, 3])}),
        lambda params, name: row_sparse.value_and_grad(lambda p: p[name][jnp.array([1])].sum())(params, {name: jnp.array([1])}),
        lambda params, name: row_sparse.value_and_grad(lambda p: p[name].sum(), heads=name)(params, {}),
    ],
)
def test_rows_of_a_guess_are_refused(call):
    fix = r"'lm_head' of shape \(17, 5\) are asked for, but.*5 tokens are in axis 1 \(as is usual"
    fix += r".*TokenTables\(include=\{'lm_head': Ember"
    with pytest.raises(ValueError, match=fix):
        call(DOUBTFUL, "lm_head")


@pytest.mark.parametrize("call", [centred, reported, term])
def test_tables_of_a_guess_are_warned_of(call):
    with pytest.warns(
        UserWarning, match=r"takes 'lm_head' of shape \(17, 5\) for a table of 5 tokens in axis 1.*include=\{'lm_head"
    ):
        call(DOUBTFUL, "lm_head")


def test_a_guess_is_described_and_may_be_declared():
    assert "token axis 1 is a guess by the name, declare it: lm_head 17x5" in describe_token_tables(DOUBTFUL)
    tables = TokenTables(include={"lm_head": FIRST})
    assert "guess" not in describe_token_tables(DOUBTFUL, tables=tables)
    tx = row_sparse.train_only_rows(ember(0.1, optax.adamw(0.1), tables=tables), {"lm_head": jnp.array([V])}, tables=tables)
    updates, _ = tx.update(DOUBTFUL, tx.init(DOUBTFUL), DOUBTFUL)
    assert updates["lm_head"].any(1).nonzero()[0].tolist() == [V]


@pytest.mark.parametrize("rows", [V, V + 4])
def test_the_usual_layout_is_no_guess(rows):
    """Features that another table has say enough, whatever the padding."""
    params = model("lm_head", 1, rows)
    assert "guess" not in describe_token_tables(params)
    assert frozen_rows(params, "lm_head")["lm_head"].any(0).nonzero()[0].tolist() == [1, 3]
