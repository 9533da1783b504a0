"""A head that the finder does not know is not lost in silence, nor is a stack taken for the wrong tables."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from ember_optax import (
    EmberDimensionNumbers,
    describe_token_tables,
    ember,
    geometry,
    regularizers,
    row_sparse,
    state_partition_specs,
    token_tables,
)

V, D = 97, 16
# Names of real untied heads: Flax's lm1b and wmt examples, Equinox, and what people write.
HEADS = ["logitdense/kernel", "head/kernel", "output/kernel", "out_proj/kernel", "decoder/kernel", "W_U", "vocab_out/weight"]
HEADS += ["readout/kernel", "proj_out/kernel", "softmax/w", "vocab_out/kernel"]


def model(head):
    first, *rest = head.split("/")
    shape = (V, D) if head.endswith("weight") else (D, V)
    leaf = jnp.ones(shape)
    return {
        "embed": {"embedding": jnp.ones((V, D))},
        "mlp": {"kernel": jnp.ones((D, D))},
        first: {rest[0]: leaf} if rest else leaf,
    }


def test_an_embedding_without_a_known_name_is_told():
    """The words do not take the head that was found for an embedding."""
    params = {"tok": {"weight": jnp.ones((V, D))}, "unembed": {"weight": jnp.ones((V, D))}}
    with pytest.warns(
        UserWarning, match="token table 'unembed/weight' and no other one .* an embedding for a head; .* 'tok/weight' of"
    ):
        ember(1e-3, optax.adamw(1e-3)).init(params)
    assert "no head or embedding found besides unembed/weight" in describe_token_tables(params)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_without_a_known_name_is_told(head):
    params = model(head)
    with pytest.warns(UserWarning) as caught:
        ember(1e-3, optax.adamw(1e-3)).init(params)
    (message,) = [str(warning.message) for warning in caught]
    assert f"{head!r} of shape" in message and "If it is one: tables=" in message
    assert caught[0].filename == __file__, "the line that called init"
    included, excluded = re.findall(r"functools\.partial\(token_tables, .*?\]\)", message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = eval(included, {"functools": functools, "token_tables": token_tables})
        state = ember(1e-3, optax.adamw(1e-3), tables=tables).init(params)
        ember(1e-3, optax.adamw(1e-3), tables=eval(excluded, {"functools": functools, "token_tables": token_tables})).init(params)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state.inner_states["ember"].inner_state[0].nu_token))
    assert sizes == [V, V]  # along the vocabulary, which the embedding's size tells
    assert f"may be one (see include): {head}" in describe_token_tables(params)
    assert "may be one" not in describe_token_tables(params, tables=tables)


@pytest.mark.parametrize(
    "params",
    [
        {"embed": {"embedding": jnp.ones((V, D))}, "mlp": {"kernel": jnp.ones((D, D))}},  # tied
        {"embed": {"embedding": jnp.ones((V, D))}, "lm_head": {"kernel": jnp.ones((D, V))}, "x": jnp.ones((V, D))},
        {"embed": {"embedding": jnp.ones((D, D))}, "mlp": {"kernel": jnp.ones((D, D))}},  # every matrix has these sizes
        {"embed": {"embedding": jnp.ones((V, D))}, "pos_embed": {"embedding": jnp.ones((V, D))}},  # a rule knows it
    ],
)
def test_no_false_alarm(params):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ember(1e-3, optax.adamw(1e-3)).init(params)


def test_own_declarations_are_not_doubted():
    params = model("head/kernel")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ember(1e-3, optax.adamw(1e-3), tables={"embed": EmberDimensionNumbers(), "head": None, "mlp": None}).init(params)


def test_the_patterns_that_were_given_stay_in_the_advice():
    params = {**model("head/kernel"), "extra": {"kernel": jnp.ones((D, 50))}}
    tables = functools.partial(token_tables, include=["extra/kernel"], exclude=["mlp/kernel"])
    with pytest.warns(UserWarning, match=r"include=\['extra/kernel', 'head/kernel'\], exclude=\['mlp/kernel'\]"):
        ember(1e-3, optax.adamw(1e-3), tables=tables).init(params)


def test_include_says_where_it_is_ambiguous():
    params = {"wte": {"embedding": jnp.ones((D, D))}, "head": {"kernel": jnp.ones((D, D))}}
    assert "(inputs, outputs); ambiguous, axes [0, 1]" in describe_token_tables(params, include=["head/kernel"])
    assert token_tables(params, include=["head/kernel"])["head"]["kernel"] == EmberDimensionNumbers(1)


def test_a_layer_without_a_name_is_shown_as_a_guess():
    description = describe_token_tables({"Embed_0": {"embedding": jnp.ones((V, D))}, "Embed_1": {"embedding": jnp.ones((64, D))}})
    assert description.count("embedding layer without a name, a guess") == 2


def test_description_takes_what_ember_takes():
    params = model("head/kernel")
    tables = functools.partial(token_tables, include=["head/kernel"])
    assert describe_token_tables(params, tables=tables) == describe_token_tables(params, include=["head/kernel"])
    declared = describe_token_tables(params, tables={"embed": EmberDimensionNumbers(), "head": None, "mlp": None})
    assert re.search(r"embed/embedding\s+97x16\s+0\s+\(\)\s+declared", declared)
    with pytest.raises(ValueError, match="not both"):
        describe_token_tables(params, include=["head/kernel"], tables=tables)


def test_a_scanned_embedding_is_doubted():
    """nn.scan with the layers in axis 1 stores (V, L, D): V tables of L tokens by the rule."""
    params = {"value_embed": {"embedding": jnp.ones((V, 3, D))}}
    with pytest.warns(
        UserWarning, match=r"takes 'value_embed/embedding' of shape \(97, 3, 16\) for 97 stacked tables of 3 tokens"
    ):
        ember(1e-3, optax.adamw(1e-3)).init(params)
    declared = {"value_embed/embedding": EmberDimensionNumbers(0, batch_axes=(1,))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = ember(1e-3, optax.adamw(1e-3), tables=functools.partial(token_tables, include=declared)).init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state.inner_states["ember"].inner_state[0].nu_token)] == [(V, 3)]
    assert "declare the axes of: value_embed/embedding 97x3x16" in describe_token_tables(params)


def test_a_stack_of_as_many_tables_as_tokens_is_not_doubted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ember(1e-3, optax.adamw(1e-3)).init({"codes": {"embedding": jnp.ones((4, 4, D))}})


def advice(message, which):
    """One of the two declarations that a warning prints, evaluated as a user would."""
    written = re.findall(r"functools\.partial\(token_tables, .*?[\]}]\)(?=[;.])", message)[which]
    names = {"functools": functools, "token_tables": token_tables, "EmberDimensionNumbers": EmberDimensionNumbers}
    return eval(written, names)


def test_the_advice_keeps_declared_axes_and_every_stack():
    """What is pasted replaces the whole declaration, so it must hold all of it."""
    params = {**model("readout/kernel"), "ple": {"w": jnp.ones((50, 3, 4))}, "one": {"embedding": jnp.ones((40, 4, 8))}}
    params["two"] = {"embedding": jnp.ones((30, 4, 8))}
    tables = functools.partial(token_tables, include={"ple/w": EmberDimensionNumbers(0)}, exclude=["mlp/.*"])
    with pytest.warns(UserWarning) as caught:
        ember(1e-3, optax.adamw(1e-3), tables=tables).init(params)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 3
    head = advice(messages[0], 0)
    assert head.keywords["include"] == {"ple/w": EmberDimensionNumbers(0), "readout/kernel": EmberDimensionNumbers(1)}
    assert advice(messages[0], 1).keywords["exclude"] == ["mlp/.*", "readout/kernel"]
    for message in messages[1:]:
        stacks = {f"{name}/embedding": EmberDimensionNumbers(0, (1,)) for name in ("one", "two")}
        assert advice(message, 0).keywords["include"] == {"ple/w": EmberDimensionNumbers(0)} | stacks


def test_the_advice_declares_what_was_included_without_axes():
    """One include holds either patterns or axes."""
    params = {**model("head/kernel"), "one": {"embedding": jnp.ones((40, 4, 8))}}
    with pytest.warns(UserWarning) as caught:
        ember(1e-3, optax.adamw(1e-3), tables=functools.partial(token_tables, include=["head/kernel"])).init(params)
    declared = {"head/kernel": EmberDimensionNumbers(1), "one/embedding": EmberDimensionNumbers(0, (1,))}
    assert advice(str(caught[0].message), 0).keywords["include"] == declared


def test_of_several_candidates_one_is_included_and_all_are_excluded():
    params = {**model("vocab_out/kernel"), **{f"layer_{i}": {"up": jnp.ones((D, V))} for i in range(6)}}
    with pytest.warns(UserWarning, match="and 2 more. If one of these is, name it alone") as caught:
        ember(1e-3, optax.adamw(1e-3)).init(params)
    (message,) = [str(warning.message) for warning in caught]
    assert len(advice(message, 0).keywords["include"]) == 1
    assert len(advice(message, 1).keywords["exclude"]) == 7


def test_a_partition_is_warned_too_and_conversions_are_not():
    params = {**model("readout/kernel"), "other": {"kernel": jnp.ones((D, D))}}
    tx = optax.partition(
        {"t": ember(1e-3, optax.adamw(1e-3)), "b": optax.sgd(0.1)}, {"embed": "t", "readout": "t", "mlp": "t", "other": "b"}
    )
    with pytest.warns(UserWarning, match="'readout/kernel' of shape"):
        tx.init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state_partition_specs(ember(1e-3, optax.adamw(1e-3)), params, PartitionSpec())


@pytest.mark.parametrize(
    "name, look",
    [
        ("geometry.report", lambda params, **tables: geometry.report(params, spectral=False, **tables)),
        ("center_rows", lambda params, **tables: regularizers.center_rows(**tables).init(params)),
        (
            "over_tables",
            lambda params, **tables: regularizers.over_tables(
                functools.partial(regularizers.anisotropy, coefficient=1.0), params, **tables
            ),
        ),
    ],
)
def test_whoever_finds_for_itself_warns_of_a_head_that_ember_was_told_of(name, look):
    params = model("head/kernel")
    with pytest.warns(
        UserWarning, match=rf"{name} found .* no tables to it: 'head/kernel' .*include=\['head/kernel'\]"
    ) as caught:
        look(params)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look(params, tables=functools.partial(token_tables, include=["head/kernel"]))
        look(params, tables=functools.partial(token_tables, exclude=["head/kernel"]))


def test_train_only_rows_lets_the_warning_of_ember_through():
    tx = row_sparse.train_only_rows(ember(1e-3, optax.adamw(1e-3)), {"embed/embedding": jnp.array([3])})
    with pytest.warns(UserWarning, match="ember found the token table 'embed/embedding'"):
        tx.init(model("head/kernel"))
