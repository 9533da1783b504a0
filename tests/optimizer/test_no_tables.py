"""Parameters without any token table: refused with the words to write, or left to the body if the configuration says so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from ember_optax import TokenTables, ember, state_partition_specs

LORA = {
    "layers": {"q_proj": {"w_lora_a": jnp.ones((64, 4)), "w_lora_b": jnp.ones((4, 64))}},
    "embedder": {"embedding_lora_a": jnp.ones((64, 4)), "embedding_lora_b": jnp.ones((4, 8))},
}
MLP = {"up": jnp.ones((64, 8)), "down": jnp.ones((8, 64))}
SHARED = TokenTables(required=False)


@pytest.mark.parametrize("params", [LORA, MLP], ids=["LoRA", "MLP"])
@pytest.mark.parametrize("options", [{}, {"head_learning_rate": 1e-2}], ids=["one rate", "two rates"])
def test_the_body_alone_if_the_configuration_says_so(params, options):
    tx, body = ember(1e-2, optax.adamw(1e-3), tables=SHARED, **options), optax.adamw(1e-3)
    with pytest.raises(ValueError, match=r"write tables=TokenTables\(required=False\)"):
        ember(1e-2, optax.adamw(1e-3), **options).init(params)
    updates, state = tx.update(params, tx.init(params), params)
    expected, expected_state = body.update(params, body.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(expected_state))
    specs = state_partition_specs(tx, params, PartitionSpec("x"))
    assert jax.tree.structure(specs, is_leaf=lambda x: isinstance(x, PartitionSpec)) == jax.tree.structure(state)


def test_the_same_configuration_finds_tables():
    params = {"embed": {"embedding": jnp.ones((16, 4))}, **MLP}
    states = [jax.tree.structure(ember(1e-2, optax.adamw(1e-3), tables=of).init(params)) for of in (TokenTables(), SHARED)]
    assert states[0] == states[1]
    assert hash(SHARED) != hash(TokenTables()) and TokenTables() != SHARED


def test_adapters_alone_are_named():
    """And not taken for tables by their shape."""
    with pytest.raises(
        ValueError, match=r"adapters \(LoRA\) alone, so no table is trained: make the body the optimizer"
    ) as error:
        ember(1e-2, optax.adamw(1e-3)).init(LORA)
    assert "may be one" not in str(error.value)
    with pytest.raises(ValueError, match=r"A model without tokens has none"):
        ember(1e-2, optax.adamw(1e-3)).init({"floras": jnp.ones((8, 4)), **MLP})


def test_the_flag_is_checked():
    with pytest.raises(TypeError, match=r"required must be True or False, got 'no'"):
        TokenTables(required="no")
