"""The table finder on paths of real libraries, in every shape that a tree can take."""

import dataclasses
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from model_trees import read_models
from published_paths import ROWS, nested

from ember_optax import (
    EmberDimensionNumbers,
    TokenTables,
    describe_token_tables,
    ember,
    scale_by_ember,
    skipped_batches,
    token_table_labels,
    token_tables,
)
from ember_optax._tree.rules import RULES, first_match

ALL_ROWS = [row for rows in ROWS.values() for row in rows]


def state_of(path, leaf):
    names = [name for name in path.split("/") if name != "value"]
    return nnx.State(nested("/".join(names), nnx.Param(leaf)))


def flat(path, leaf):
    return {tuple(path.split("/")): leaf}


def dotted(path, leaf):
    return {path.replace("/", "."): leaf}


def prefixed(path, leaf):
    return {"params": {"model": {"decoder_stack": nested(path.removeprefix("params/"), leaf)}}}


def in_a_list(path, leaf):
    return {"towers": [jnp.zeros(3), nested(path, leaf)]}


def found_axis(params):
    """Of a tree of one leaf, in a model with an embedding."""
    *found, _ = jax.tree.leaves(token_tables([params, {"wte": jnp.zeros((97, 16))}]), is_leaf=lambda x: x is None)
    (axis,) = [None if numbers is None else numbers.token_axis for numbers in found if numbers is not None] or [None]
    return axis


def test_there_is_enough_data():
    tables = [row for row in ALL_ROWS if row[2] is not None]
    assert len(ROWS["table_paths.csv"]) == 51
    assert len(tables) >= 90
    assert len(ALL_ROWS) - len(tables) >= 300


@pytest.mark.parametrize("make", [nested, state_of, flat, dotted, prefixed, in_a_list])
@pytest.mark.parametrize("rows", ROWS)
def test_every_row_is_classified_right(rows, make):
    wrong = [(path, shape, axis) for path, shape, axis in ROWS[rows] if found_axis(make(path, jnp.zeros(shape))) != axis]
    assert not wrong


def test_rules_are_few_and_each_is_needed():
    assert len(RULES) <= 12
    rows = [(path, shape) for path, shape, _ in ALL_ROWS]
    rows += [(path, shape) for model in read_models("token_models.txt").values() for path, shape in model.shapes.items()]
    for rule in RULES:
        assert any(first_match(path, len(shape)).rule == rule.name for path, shape in rows), rule


def test_the_axis_never_follows_the_longer_side():
    assert found_axis({"wte": {"embedding": jnp.zeros((4, 1000))}}) == 0
    assert found_axis({"lm_head": {"kernel": jnp.zeros((1000, 4))}}) == 1


@pytest.mark.parametrize(
    "path, shape, expected",
    [
        ("embedder/per_layer_input_embedding", (97, 3, 8), EmberDimensionNumbers(0, (), "tied")),
        ("layers/value_embed/embedding", (3, 97, 16), EmberDimensionNumbers(1, (0,), "tied")),
        ("codebook_embeds/embedding", (4, 97, 16), EmberDimensionNumbers(1, (0,), "tied")),
        ("lm_head/kernel", (4, 16, 97), EmberDimensionNumbers(2, (0,), "head")),
        ("lm_head/weight", (4, 97, 16), EmberDimensionNumbers(1, (0,), "head")),
        ("vit/embedding/kernel", (14, 14, 3, 16), None),
        ("embed/embedding", (97,), None),
    ],
)
def test_shapes_beyond_a_matrix(path, shape, expected):
    params = nested(path, jnp.zeros(shape))
    assert jax.tree.leaves(token_tables(params), is_leaf=lambda x: x is None) == [expected]
    if expected is not None:
        tx = ember(0.1, optax.sgd(0.1))
        updates, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params))
        sizes = sum(leaf.nbytes for leaf in jax.tree.leaves(optax.tree.get(state, "ScaleByEmberState")))
        assert sizes < 4 * (max(shape) * 5 + 200)
        assert jax.tree.leaves(updates)[0].shape == shape


@pytest.mark.parametrize(
    "path, axis",
    [
        ("LMHead_0/kernel", 1),
        ("lm_head/Dense_0/kernel", 1),
        ("image_gpt/wte", 0),
        ("mask_lm/lm_head", 1),
        ("moe/shared/weight", None),
        ("mlp/shared/w", None),
        ("router/logits/kernel", None),
        ("pool/attention/logits/kernel", None),
        ("PositionEmbedding_0/embedding", None),
        ("time_embed/weight", None),
        ("timestep_embedder/w", None),
        ("image_embed/w", None),
        ("label_emb/weight", None),
        ("class_embed/embedding", None),
        ("segment_embeddings/embedding", None),
        ("vq/embeddings", None),
        ("soft_prompt_embedding", None),
        ("rope_emb", None),
        ("unembedder/w", 1),
        ("output_embeddings/kernel", 1),
        ("lm_logits/kernel", 1),
        ("embedder/w", 0),
        ("embedder/per_layer_embedding", 0),
    ],
)
def test_names_of_no_library_in_particular(path, axis):
    assert found_axis(nested(path, jnp.zeros((12, 8)))) == axis


@pytest.mark.parametrize(
    "path, name",
    [
        ("value", "value"),
        ("embed/value", "embed"),
        ("model/embed/value", "model/embed"),
        ("model/value/embed", "model/value/embed"),
        ("params", "params"),
        ("params/embed", "embed"),
        ("params/value", "params"),
        ("model/params/embed", "model/params/embed"),
    ],
)
def test_names_without_what_a_library_wraps_around_them(path, name):
    """A collection `params` before all, a variable's `value` behind all: unless that is all there is."""
    assert list(skipped_batches(scale_by_ember().init(nested(path, jnp.zeros((4, 2)))))) == [name]


def test_dimension_numbers_are_values():
    assert {EmberDimensionNumbers(0), EmberDimensionNumbers(0), EmberDimensionNumbers(1)} == set(
        map(EmberDimensionNumbers, (0, 1))
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        EmberDimensionNumbers(0).token_axis = 1  # pyright: ignore[reportAttributeAccessIssue]


class TestOptions:
    params: ClassVar = {
        "enc": {"pos_embed": jnp.zeros((9, 4))},
        "head": {"kernel": jnp.zeros((4, 97))},
        "wte": jnp.zeros((97, 4)),
    }

    def test_include_finds_a_head_without_a_name(self):
        assert token_tables(self.params, include=["head/kernel"])["head"]["kernel"] == EmberDimensionNumbers(1, (), "head")
        assert token_tables({"head": {"weight": jnp.zeros((97, 4))}}, include=["head/.*"]) == {
            "head": {"weight": EmberDimensionNumbers(0, (), "head")}
        }

    def test_any_pattern_includes(self):
        both = token_tables(self.params, include=["head/kernel", "enc/.*"], exclude=["wte", "none"])
        assert both == {
            "enc": {"pos_embed": EmberDimensionNumbers(0, (), "tied")},
            "head": {"kernel": EmberDimensionNumbers(1, (), "head")},
            "wte": None,
        }

    def test_include_declares_axes(self):
        numbers = EmberDimensionNumbers(0, (1,), "input")
        assert token_tables(self.params, include={"enc/.*": numbers})["enc"]["pos_embed"] == numbers

    @pytest.mark.parametrize(
        "name, shape, expected",
        [
            ("b", (97,), EmberDimensionNumbers(0, (), "tied")),
            ("kernel", (2, 4, 8, 97), EmberDimensionNumbers(3, (), "head")),
            ("stack", (97, 2, 4, 8), EmberDimensionNumbers(0, (), "tied")),
        ],
    )
    def test_include_takes_any_rank(self, name, shape, expected):
        assert token_tables({name: jnp.zeros(shape)}, include=[name]) == {name: expected}

    def test_include_overrides_the_rules_and_exclude_overrides_include(self):
        assert token_tables(self.params, include=[".*pos_embed"])["enc"]["pos_embed"].token_axis == 0
        tables = token_tables(self.params, include=["head/kernel"], exclude=["head/.*", "wte"])
        assert tables == {"enc": {"pos_embed": None}, "head": {"kernel": None}, "wte": None}

    def test_labels_follow(self):
        labels = token_table_labels(self.params, include=["head/kernel"])
        assert labels == {"enc": {"pos_embed": "body"}, "head": {"kernel": "ember"}, "wte": "ember"}

    def test_ember_trains_what_is_included(self):
        tx = ember(0.1, optax.adamw(0.1), tables=TokenTables(include=["head/kernel"]))
        state = optax.tree.get(tx.init(self.params), "nu_token")
        assert jax.tree.map(jnp.shape, state["head"]["kernel"]) == (97,)

    @pytest.mark.parametrize(
        "options, error, message",
        [
            ({"include": "head"}, TypeError, r"include must be a sequence .*\['head'\]"),
            ({"include": [3]}, TypeError, r"include must hold regular expressions, got 3"),
            ({"exclude": ["("]}, ValueError, r"exclude holds '\(', which is not a regular expression"),
            ({"include": {"head": 1}}, TypeError, r"include\['head'\] must be EmberDimensionNumbers, got 1"),
        ],
    )
    def test_mistakes(self, options, error, message):
        with pytest.raises(error, match=message):
            token_tables(self.params, **options)

    def test_a_pattern_that_matches_nothing(self):
        assert "patterns that match no path: include 'heads/kernel'" in describe_token_tables(
            self.params, include=["heads/kernel"]
        )
        tx = ember(0.1, optax.adamw(0.1), tables=TokenTables(include=["heads/kernel"]))
        with pytest.raises(ValueError, match=r"include 'heads/kernel' of token_tables matches no path.*'head/kernel' \(4, 97\)"):
            tx.init(self.params)


def test_description():
    params = {
        "embed": {"embedding": jax.ShapeDtypeStruct((262144, 640), jnp.bfloat16)},
        "lm_head": {"kernel": jax.ShapeDtypeStruct((640, 262144), jnp.float32)},
        "mlp": {"kernel": jax.ShapeDtypeStruct((640, 2048), jnp.float32)},
        "wpe": {"embedding": jax.ShapeDtypeStruct((2048, 640), jnp.float32)},
        "norm": {"scale": jax.ShapeDtypeStruct((640,), jnp.float32)},
    }
    lines = [re.split(r"\s{2,}", line) for line in describe_token_tables(params).splitlines()]
    heads_bytes = ["1,051,144", "1,342,177,280"]
    assert lines == [
        ["table", "shape", "token axis", "batch axes", "kind", "rate", "rule", "Ember bytes", "Adam bytes"],
        ["embed/embedding", "262144x640", "0", "()", "input", "learning_rate", "embedding", "1,051,144", "671,088,640"],
        ["lm_head/kernel", "640x262144", "1", "()", "head", "head_learning_rate", "head, (inputs, outputs)", *heads_bytes],
        ["total", "2,102,288", "2,013,265,920"],
        [""],
        ["largest matrices left to the body", "shape", "rule"],
        ["mlp/kernel", "640x2048", "none"],
        ["wpe/embedding", "2048x640", "not tokens"],
    ]
    assert describe_token_tables({"a": jnp.zeros((2, 2))}).startswith("no token table found")


class TestLabelFunctionIsPure:
    """optax calls it on updates, on masked trees and on placeholders; it must not raise nor change its mind."""

    params: ClassVar = {"wte": {"embedding": jnp.ones((12, 4))}, "mlp": {"kernel": jnp.ones((4, 4))}}

    def test_no_table_is_no_error(self):
        assert token_table_labels({"mlp": {"kernel": jnp.ones((4, 4))}}) == {"mlp": {"kernel": "body"}}
        assert token_table_labels({}) == {}

    def test_inside_a_partition_of_the_users(self):
        """The inner `ember` sees MaskedNode where the outer partition keeps parameters from it."""
        for frozen in ("wte", "mlp"):
            tx = optax.partition(
                {"train": ember(0.1, optax.adamw(0.1)), "freeze": optax.set_to_zero()},
                lambda params, frozen=frozen: {
                    name: jax.tree.map(lambda _, n=name: "freeze" if n == frozen else "train", sub)
                    for name, sub in params.items()
                },
            )
            updates, _ = tx.update(self.params, tx.init(self.params), self.params)
            for name, sub in updates.items():
                (leaf,) = jax.tree.leaves(sub)
                assert (leaf == 0).all() == (name == frozen)

    def test_in_a_partition_by_labels(self):
        tables = optax.chain(scale_by_ember(dimension_numbers=token_tables), optax.scale_by_learning_rate(0.1))
        tx = optax.partition({"ember": tables, "body": optax.adamw(0.1)}, token_table_labels)
        expected = ember(0.1, optax.adamw(0.1))
        ours, _ = tx.update(self.params, tx.init(self.params), self.params)
        theirs, _ = expected.update(self.params, expected.init(self.params), self.params)
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), ours, theirs))


def test_keras_variables_as_a_list():
    with pytest.raises(ValueError, match=r"'0' \(97, 16\).*positions in a list.*v\.path: v\.value for v in"):
        ember(0.1, optax.adamw(0.1)).init([jnp.ones((97, 16)), jnp.ones((16, 97))])
