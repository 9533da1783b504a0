"""A head that the finder does not know is not lost in silence, nor is a stack taken for the wrong tables."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import pytest

from ember_optax import EmberDimensionNumbers, describe_token_tables, ember, token_tables

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


@pytest.mark.parametrize("head", HEADS)
def test_a_head_without_a_known_name_is_told(head):
    params = model(head)
    with pytest.warns(UserWarning) as caught:
        ember(1e-3).init(params)
    (message,) = [str(warning.message) for warning in caught]
    assert f"{head!r} of shape" in message
    included, excluded = re.findall(r"functools\.partial\(token_tables, .*?\]\)", message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = eval(included, {"functools": functools, "token_tables": token_tables})
        state = ember(1e-3, tables=tables).init(params)
        ember(1e-3, tables=eval(excluded, {"functools": functools, "token_tables": token_tables})).init(params)
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
        ember(1e-3).init(params)


def test_own_declarations_are_not_doubted():
    params = model("head/kernel")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ember(1e-3, tables={"embed": EmberDimensionNumbers(), "head": None, "mlp": None}).init(params)


def test_the_patterns_that_were_given_stay_in_the_advice():
    params = {**model("head/kernel"), "extra": {"kernel": jnp.ones((D, 50))}}
    tables = functools.partial(token_tables, include=["extra/kernel"], exclude=["mlp/kernel"])
    with pytest.warns(UserWarning, match=r"include=\['extra/kernel', 'head/kernel'\], exclude=\['mlp/kernel'\]"):
        ember(1e-3, tables=tables).init(params)


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
        ember(1e-3).init(params)
    declared = {"value_embed/embedding": EmberDimensionNumbers(0, batch_axes=(1,))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = ember(1e-3, tables=functools.partial(token_tables, include=declared)).init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state.inner_states["ember"].inner_state[0].nu_token)] == [(V, 3)]
    assert "declare the axes of: value_embed/embedding 97x3x16" in describe_token_tables(params)
