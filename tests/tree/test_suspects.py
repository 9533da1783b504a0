"""A head that the finder does not know is not lost in silence, nor is a stack taken for the wrong tables."""

import functools
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import PartitionSpec

from ember_optax import (
    EmberDimensionNumbers,
    TokenTables,
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
    with pytest.warns(UserWarning, match=r"^'tok/weight' of shape \(97, 16\) has the 97 tokens of 'unembed/weight'\."):
        ember(1e-3, optax.adamw(1e-3)).init(params)
    assert "axis 0 has the tokens of unembed/weight: tok/weight 97x16" in describe_token_tables(params)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_without_a_known_name_is_told(head):
    params = model(head)
    with pytest.warns(UserWarning) as caught:
        ember(1e-3, optax.adamw(1e-3)).init(params)
    (message,) = [str(warning.message) for warning in caught]
    assert f"{head!r} of shape" in message and "If it is a table: tables=" in message
    assert caught[0].filename == __file__, "the line that called init"
    tables = advice(message, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = ember(1e-3, optax.adamw(1e-3), tables=tables).init(params)
        ember(1e-3, optax.adamw(1e-3), tables=advice(message, 1)).init(params)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state.inner_states["ember"].inner_state[0].nu_token))
    assert sizes == [V, V]  # along the vocabulary, which the embedding's size tells
    assert f"has the tokens of embed/embedding: {head}" in describe_token_tables(params)
    assert "may be a table" not in describe_token_tables(params, tables=tables)
    kinds = {numbers.kind for numbers in jax.tree.leaves(tables(params), is_leaf=lambda x: x is None) if numbers}
    assert kinds == {"input", "head"}


@pytest.mark.parametrize(
    "params",
    [
        {"embed": {"embedding": jnp.ones((V, D))}, "mlp": {"kernel": jnp.ones((D, D))}},  # tied
        {"embed": {"embedding": jnp.ones((V, D))}, "lm_head": {"kernel": jnp.ones((D, V))}, "x": jnp.ones((D, D))},
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
    tables = TokenTables(include=["extra/kernel"], exclude=["mlp/kernel"])
    with pytest.warns(UserWarning, match=r"include=\['extra/kernel', 'head/kernel'\], exclude=\['mlp/kernel'\]"):
        ember(1e-3, optax.adamw(1e-3), tables=tables).init(params)


def test_include_says_where_it_is_ambiguous():
    params = {"wte": {"embedding": jnp.ones((D, D))}, "head": {"kernel": jnp.ones((D, D))}}
    assert "(inputs, outputs); ambiguous, axes [0, 1]" in describe_token_tables(params, include=["head/kernel"])
    assert token_tables(params, include=["head/kernel"])["head"]["kernel"] == EmberDimensionNumbers(1, (), "head")


def test_a_layer_without_a_name_is_shown_as_a_guess():
    description = describe_token_tables({"Embed_0": {"embedding": jnp.ones((V, D))}, "Embed_1": {"embedding": jnp.ones((64, D))}})
    assert description.count("embedding layer without a name, a guess") == 2


def test_description_takes_what_ember_takes():
    params = model("head/kernel")
    tables = TokenTables(include=["head/kernel"])
    assert describe_token_tables(params, tables=tables) == describe_token_tables(params, include=["head/kernel"])
    declared = describe_token_tables(params, tables={"embed": EmberDimensionNumbers(), "head": None, "mlp": None})
    assert re.search(r"embed/embedding\s+97x16\s+0\s+\(\)\s+input\s+learning_rate\s+declared", declared)
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
        state = ember(1e-3, optax.adamw(1e-3), tables=TokenTables(include=declared)).init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state.inner_states["ember"].inner_state[0].nu_token)] == [(V, 3)]
    assert "declare the axes of: value_embed/embedding 97x3x16" in describe_token_tables(params)


def test_a_stack_of_as_many_tables_as_tokens_is_not_doubted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ember(1e-3, optax.adamw(1e-3)).init({"codes": {"embedding": jnp.ones((4, 4, D))}})


def advice(message, which):
    """One of the two declarations that a warning prints, evaluated as a user would."""
    written = re.findall(r"TokenTables\(.*?[\]}]\)(?=[;.])", message)[which]
    return eval(written, {"TokenTables": TokenTables, "EmberDimensionNumbers": EmberDimensionNumbers})


def test_the_advice_keeps_declared_axes_and_every_stack():
    """What is pasted replaces the whole declaration, so it must hold all of it."""
    params = {**model("readout/kernel"), "ple": {"w": jnp.ones((50, 3, 4))}, "one": {"embedding": jnp.ones((40, 4, 8))}}
    params["two"] = {"embedding": jnp.ones((30, 4, 8))}
    tables = TokenTables(include={"ple/w": EmberDimensionNumbers(0)}, exclude=["mlp/.*"])
    with pytest.warns(UserWarning) as caught:
        ember(1e-3, optax.adamw(1e-3), tables=tables).init(params)
    (message,) = [str(warning.message) for warning in caught]
    assert advice(message, 0).include == {"ple/w": EmberDimensionNumbers(0), "readout/kernel": EmberDimensionNumbers(1)}
    assert advice(message, 1).exclude == ("mlp/.*", "readout/kernel")
    stacks = {f"{name}/embedding": EmberDimensionNumbers(0, (1,)) for name in ("one", "two")}
    for which in (2, 3):
        assert advice(message, which).include == {"ple/w": EmberDimensionNumbers(0)} | stacks


def test_the_advice_declares_what_was_included_without_axes():
    """One include holds either patterns or axes."""
    params = {**model("head/kernel"), "one": {"embedding": jnp.ones((40, 4, 8))}}
    with pytest.warns(UserWarning) as caught:
        ember(1e-3, optax.adamw(1e-3), tables=TokenTables(include=["head/kernel"])).init(params)
    declared = {"head/kernel": EmberDimensionNumbers(1), "one/embedding": EmberDimensionNumbers(0, (1,))}
    assert advice(str(caught[0].message), 0).include == declared


@pytest.mark.parametrize("layers", [6, 40])
def test_all_candidates_are_named_and_those_named_like_tables_are_included(layers):
    params = {**model("vocab_out/kernel"), **{f"layer_{i}": {"up": jnp.ones((D, V))} for i in range(layers)}}
    with pytest.warns(UserWarning) as caught:
        ember(1e-3, optax.adamw(1e-3)).init(params)
    (message,) = [str(warning.message) for warning in caught]
    assert advice(message, 0).include == ("vocab_out/kernel",)
    assert ("'layer_3/up' of shape" in message) == (layers == 6) != ("so have 39 with other numbers" in message)
    for which in (0, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ember(1e-3, optax.adamw(1e-3), tables=advice(message, which)).init(params)


class Model(nnx.Module):
    def __init__(self, params):
        self.embed = nnx.Embed(V, D, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(D, V, rngs=nnx.Rngs(0))


CALLERS = {
    "plain": lambda tx, params: tx.init(params),
    "in a chain": lambda tx, params: optax.chain(optax.clip_by_global_norm(1.0), tx).init(params),
    "in a partition": lambda tx, params: optax.partition({"all": tx}, jax.tree.map(lambda _: "all", params)).init(params),
    "nnx.Optimizer": lambda tx, params: nnx.Optimizer(Model(params), tx, wrt=nnx.Param),
    "jit": lambda tx, params: jax.jit(tx.init)(params),
    "jit of a function": lambda tx, params: jax.jit(lambda p: (tx.init(p), p))(params),
    "eval_shape": lambda tx, params: jax.eval_shape(tx.init, params),
    "TrainState": lambda tx, params: TrainState.create(apply_fn=None, params=params, tx=tx),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_a_start_warns_once_at_the_line_of_the_user(caller):
    params = {**model("head/kernel"), **{f"value_embeds_{i}": {"x": jnp.ones((V, D))} for i in range(2)}}
    with pytest.warns(UserWarning) as caught:
        CALLERS[caller](ember(1e-3, optax.adamw(1e-3)), params)
    (warning,) = [warning for warning in caught if "has the 97 tokens" in str(warning.message)]
    assert warning.filename == __file__
    assert f'"{caller}": ' in Path(__file__).read_text().splitlines()[warning.lineno - 1]


WRAPPED = {
    "TokenTables": TokenTables,
    "a partial": lambda **options: functools.partial(token_tables, **options),
    "a lambda": lambda **options: lambda params: token_tables(params, **options),
    "a lambda around TokenTables": lambda **options: lambda params: {**TokenTables(**options)(params)},
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_function_around_the_finder_keeps_its_checks_and_warnings(wrap):
    params = model("head/kernel")
    with pytest.warns(UserWarning, match=r"'head/kernel' of .*exclude=\['mlp/kernel', 'head/kernel'\]"):
        ember(1e-3, optax.adamw(1e-3), tables=WRAPPED[wrap](exclude=["mlp/kernel"])).init(params)
    with pytest.raises(ValueError, match="include 'heads/kernel' of token_tables matches no path"):
        ember(1e-3, optax.adamw(1e-3), tables=WRAPPED[wrap](include=["heads/kernel"])).init(params)
    assert "patterns that match no path: include 'heads'" in describe_token_tables(
        params, tables=WRAPPED[wrap](include=["heads"])
    )
    hidden = {"wte": jnp.ones((V, D)), "lm_head": jnp.ones((V + 4, D))}
    with pytest.raises(ValueError, match="asked for, but not along which axis"):
        row_sparse.train_only_rows(ember(1e-3, optax.adamw(1e-3)), {"lm_head": jnp.array([1])}, tables=WRAPPED[wrap]()).init(
            hidden
        )


def test_a_head_whose_embedding_is_hidden_by_a_partition_is_told():
    """It is no table by its name alone, and an error would be wrong: the other parts may have the tables."""
    params = {"embed": {"embedding": jnp.ones((V, D))}, "logits": {"kernel": jnp.ones((D, V))}, "mlp": jnp.ones((D, D))}
    labels = {"embed": "frozen", "logits": "trained", "mlp": "trained"}

    def start(**tables):
        trained = ember(1e-3, optax.adamw(1e-3), **tables)
        return optax.partition({"frozen": optax.set_to_zero(), "trained": trained}, labels).init(params)

    with pytest.warns(UserWarning, match=r"^'logits/kernel' of shape \(16, 97\) may be a head, but .*no table") as caught:
        start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = start(tables=advice(str(caught[0].message), 0))
        start(tables=advice(str(caught[0].message), 1))
    assert [leaf.shape for leaf in jax.tree.leaves(optax.tree.get(state, "nu_token"))] == [(V,)]


def test_a_function_that_asks_the_finder_about_a_part_is_a_declaration_of_its_own():
    params = model("head/kernel")

    def tables(tree):
        return {name: token_tables(part) if name == "embed" else None for name, part in tree.items()}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ember(1e-3, optax.adamw(1e-3), tables=tables).init(params)


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
        UserWarning, match=rf"'head/kernel' .* {name} leaves it out\. .*TokenTables\(include=\['head/kernel'\]"
    ) as caught:
        look(params)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look(params, tables=TokenTables(include=["head/kernel"]))
        look(params, tables=TokenTables(exclude=["head/kernel"]))


def test_train_only_rows_lets_the_warning_of_ember_through():
    tx = row_sparse.train_only_rows(ember(1e-3, optax.adamw(1e-3)), {"embed/embedding": jnp.array([3])})
    with pytest.warns(UserWarning, match="has the 97 tokens of 'embed/embedding'"):
        tx.init(model("head/kernel"))
