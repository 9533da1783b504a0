"""States that `update` is given."""

import jax.numpy as jnp
import optax

from bad_inputs.examples import IDS, PARAMS, SCALE, WTE, a_function, each, state
from bad_inputs.steps import scale_update, with_state
from ember_optax import scale_by_ember

BAD = {
    "state of another model": (
        lambda: scale_by_ember().update({"wte": jnp.ones((6, 4))}, scale_by_ember().init({"embed": jnp.ones((6, 4))})),
        ValueError,
        r"the updates have the tables \['wte'\], but the state has \['embed'\]; pass",
    ),
    "state of another partition": (
        with_state(
            lambda: optax.partition({"ember": optax.sgd(1.0), "body": optax.sgd(1.0)}, lambda p: each("body")).init(PARAMS)
        ),
        TypeError,
        r"state must be the ScaleByEmberState .* type EmptyState: call update",
    ),
    "state cast down": (
        lambda: SCALE.update(WTE, optax.tree.cast(state(SCALE, "WTE"), jnp.bfloat16)),
        TypeError,
        r"nu_token of 'wte' is bfloat16, but Ember's state is float32.*jax.eval_shape\(tx.init, params\)",
    ),
    "state with text": (scale_update(nu_token={"wte": "x"}), (TypeError, ValueError), r"wte.*(not an array|; pass)"),
    "state without a field": (
        scale_update(nu_token=None),
        ValueError,
        r"tables \['wte'\], but the state has \[\]; pass the state",
    ),
    "state without a count": (
        scale_update(count={"wte": None}),
        ValueError,
        r"tables \['wte'\], but the state has \[\]; pass the",
    ),
    "count of floats": (scale_update(count={"wte": jnp.float32(1)}), ValueError, r"count of 'wte' must be integers .* restore"),
    "count of a vector": (
        scale_update(count={"wte": IDS}),
        ValueError,
        r"count of 'wte' must be integers of shape \(\).* restore",
    ),
    "skipped batches of a vector": (
        scale_update(total_notfinite={"wte": IDS}),
        ValueError,
        r"total_notfinite of 'wte' .* restore",
    ),
    "average of integers": (scale_update(nu_token={"wte": jnp.ones(6, int)}), TypeError, r"nu_token of 'wte' is int32.*restore"),
    "average of a function": (scale_update(nu_token={"wte": a_function}), (TypeError, ValueError), r"wte.*(not an array|; pass)"),
}
GOOD = {"a count from a checkpoint": scale_update(count={"wte": 0})}
