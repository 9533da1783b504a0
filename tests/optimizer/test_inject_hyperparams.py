"""`optax.inject_hyperparams` around Ember."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from three_matrices import TABLES, assert_trees_close, initial_params

from ember_optax import EmberDimensionNumbers, TokenTables, ember, scale_by_ember, token_tables


class TestInjectHyperparams:
    def test_needs_no_static_arguments(self):
        """`tables` keeps its default although inject_hyperparams takes callables for schedules."""
        params = initial_params()
        tx = optax.inject_hyperparams(ember)(learning_rate=0.1, body=optax.adamw(0.1), weight_decay=0.01)
        expected = ember(0.1, optax.adamw(0.1), weight_decay=0.01)
        updates, opt_state = jax.jit(tx.update)(params, tx.init(params), params)
        plain, _ = expected.update(params, expected.init(params), params)
        assert_trees_close(updates, plain, rtol=1e-4)
        opt_state.hyperparams["learning_rate"] = jnp.float32(0.0)
        updates, _ = jax.jit(tx.update)(params, opt_state, params)
        assert (updates["embed"]["embedding"] == 0).all() and (updates["dense"]["kernel"] != 0).any()

    def test_takes_tables_and_body(self):
        params = initial_params()
        factory = optax.inject_hyperparams(ember, static_args=("tables",))
        tx = factory(learning_rate=0.1, body=optax.sgd(0.1), tables=lambda p: TABLES)
        updates, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(updates["dense"]["kernel"], -0.1 * params["dense"]["kernel"], rtol=1e-6)

    def test_schedules_b2(self):
        params = initial_params()
        tx = optax.inject_hyperparams(scale_by_ember)(b2=optax.linear_schedule(0.9, 0.999, 100))
        opt_state, traces = tx.init(params), []

        @jax.jit
        def step(opt_state):
            traces.append(1)
            return tx.update(params, opt_state, params)

        for _ in range(3):
            updates, opt_state = step(opt_state)
        assert len(traces) == 1
        assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))

    def test_uses_the_injected_values(self):
        params = initial_params()
        injected = optax.inject_hyperparams(scale_by_ember)(b2=0.5, eps=0.1)
        plain = scale_by_ember(b2=0.5, eps=0.1)
        states = injected.init(params), plain.init(params)
        for scale in (1.0, -3.0, 0.2):
            grads = jax.tree.map(lambda p, scale=scale: scale * p, params)
            ours, injected_state = injected.update(grads, states[0], params)
            theirs, plain_state = plain.update(grads, states[1], params)
            states = injected_state, plain_state
            assert_trees_close(ours, theirs, rtol=1e-5)

    @pytest.mark.parametrize(
        "function",
        [
            token_tables,
            TokenTables(include=["dense/kernel"]),
            lambda params: jax.tree.map(lambda p: EmberDimensionNumbers() if p.ndim == 2 else None, params),
            lambda params: None,
            lambda params: {"embed": {"embedding": EmberDimensionNumbers(0)}} if isinstance(params, dict) else None,
        ],
    )
    @pytest.mark.parametrize("factory, argument", [(ember, "tables"), (scale_by_ember, "dimension_numbers")])
    def test_functions_must_be_static(self, factory, argument, function):
        """optax calls them with the step, and would go on with what they return for it."""
        given = {argument: function} | ({"learning_rate": 0.1, "body": optax.sgd(0.1)} if factory is ember else {})
        with pytest.raises(TypeError, match=rf"optax.inject_hyperparams t.*static_args=\('({argument}|tables)',\)"):
            optax.inject_hyperparams(factory)(**given).init(initial_params())
        params = {"embed": {"embedding": jnp.ones((12, 4))}}
        static = optax.inject_hyperparams(factory, static_args=(argument,))(**given | {argument: token_tables})
        state = static.init(params)
        assert optax.tree.get(state, "nu_token")["embed"]["embedding"].shape == (12,)

    @pytest.mark.parametrize("factory", [scale_by_ember, lambda b2: ember(0.1, optax.adamw(0.1), b2=b2)])
    def test_refuses_a_b2_that_lost_its_digits(self, factory):
        """0.999 is 1.0 in bfloat16, 0.99 is 0.98828125."""
        params = initial_params(jnp.bfloat16)
        with pytest.raises(TypeError, match=r"b2 arrived as bfloat16\(1.0\).*hyperparam_dtype=jnp.float32"):
            optax.inject_hyperparams(factory)(b2=0.999).init(params)
        cured = optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)(b2=0.999)
        rounded = optax.inject_hyperparams(factory)(b2=0.99)
        with pytest.warns(UserWarning, match=r"b2 arrived as bfloat16\(0.988281\).*hyperparam_dtype=jnp.float32"):
            rounded.init(params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for tx in (cured, rounded):
                updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
                assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))

    def test_a_traced_b2_of_one_is_seen_in_the_updates(self):
        """Under `jax.jit` there is no value to refuse; what comes of it is NaN and not a small step."""
        tx, g = scale_by_ember(0.9), jnp.ones((4, 3))
        updates = jax.jit(lambda b2, g: scale_by_ember(b2).update(g, tx.init(g))[0])(jnp.bfloat16(0.999), g)
        assert jnp.isnan(updates).all()
