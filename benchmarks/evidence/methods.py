"""The optimizers of the token tables that are compared, by the names that the results give them.

A name is a method and, where they differ from its defaults, its numbers: "ember", "ember b2=0.99", "adamw weight_decay=0.1".
"""

from collections.abc import Callable
from typing import NamedTuple

import optax

from benchmarks.evidence.ablations import scale_by_part, scale_by_token_sum
from benchmarks.evidence.rivals import scale_by_hybrid, scale_by_rmnp, scale_by_row_norm, scale_by_scale
from benchmarks.evidence.variants import scale_by_classes, scale_by_equal_rows, scale_by_occurrence, scale_by_power
from ember_optax import scale_by_ember


class Method(NamedTuple):
    """What trains the tables: `make(**numbers)` gives the transformation; its defaults are those that users get."""

    title: str
    make: Callable[..., optax.GradientTransformation]


def _adamw(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 1e-4):
    return optax.chain(optax.scale_by_adam(b1, b2, eps), optax.add_decayed_weights(weight_decay))


def _rmsprop(b2: float = 0.999, eps: float = 1e-8):
    return optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)


def _ember(b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0):
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return optax.chain(scale_by_ember(b2, eps), *decay)


def _adafactor():
    # With a step size of one, and ascending as the others do. Optax factors no axis below 128 unless told.
    return optax.chain(optax.adafactor(min_dim_size_to_factor=1), optax.scale(-1.0))


METHODS = {
    "adamw": Method("AdamW", _adamw),
    "rmsprop": Method("Adam without momentum", _rmsprop),
    "ember": Method("Ember", _ember),
    "ember_active_rows": Method("Ember, mean over active rows", lambda b2=0.999: scale_by_ember(b2, feature_mean="active_rows")),
    "token_factor": Method("token factor only (row-wise RMSProp)", lambda b2=0.999: scale_by_part("token", b2)),
    "feature_factor": Method("feature factor only", lambda b2=0.999: scale_by_part("feature", b2)),
    "scalar": Method("one number for the table", lambda b2=0.999: scale_by_part("scalar", b2)),
    "rowwise_adagrad": Method("row-wise Adagrad", scale_by_token_sum),
    "adafactor": Method("Adafactor of Optax", _adafactor),
    "factored_rms": Method("its factored RMS alone", lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=1)),
    "sm3": Method("SM3", optax.scale_by_sm3),
    "lion": Method("Lion", optax.scale_by_lion),
    "sign": Method("sign of the gradient", optax.scale_by_sign),
    "sgd": Method("SGD", optax.identity),
    "sgd_momentum": Method("SGD with momentum 0.9", lambda: optax.trace(0.9)),
    "frozen": Method("not trained", optax.set_to_zero),
    "row_norm": Method("row normalization, no state (2605.18106)", scale_by_row_norm),
    "rmnp": Method("row-normalized momentum (RMNP)", scale_by_rmnp),
    "hybrid": Method("row norm, then spectral (2605.18106)", scale_by_hybrid),
    "scale": Method("SCALE", scale_by_scale),
    "ember_power": Method("Ember, flatter profile", scale_by_power),
    "ember_equal_rows": Method("Ember, rows weigh the same in the profile", scale_by_equal_rows),
    "ember_classes": Method("Ember, a profile for each class of tokens", scale_by_classes),
    "ember_by_occurrence": Method("Ember, tokens forget by occurrence", scale_by_occurrence),
}
_HALF_LIFE, _ACCUMULATE = "half_life", "accumulate"


def make_method(name: str, tokens_per_step: int) -> optax.GradientTransformation:
    """The transformation of a name.

    `half_life=N` is the b2 whose averages forget half in N tokens, `accumulate=N` a step of the mean of N gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> make_method("ember half_life=65536", 512).init({"embedding": jnp.ones((4, 2))})[0].nu_token["embedding"].shape
      (4,)
    """
    method, numbers = read_name(name)
    if _HALF_LIFE in numbers:
        numbers["b2"] = b2_of_half_life(numbers.pop(_HALF_LIFE), tokens_per_step)
    every = int(numbers.pop(_ACCUMULATE, 1))
    made = METHODS[method].make(**numbers)
    return optax.MultiSteps(made, every).gradient_transformation() if every > 1 else made


def b2_of_half_life(tokens: float, tokens_per_step: int) -> float:
    """The decay rate of an average that loses half of its weight in `tokens` tokens.

    Example:
      >>> f"{b2_of_half_life(1000, 1000)}, {b2_of_half_life(709_435, 1024):.4f}"
      '0.5, 0.9990'
    """
    return 0.5 ** (tokens_per_step / tokens)


def read_name(name: str) -> tuple[str, dict[str, float]]:
    """The method and its numbers.

    Example:
      >>> read_name("ember b2=0.99")
      ('ember', {'b2': 0.99})

    Raises:
      ValueError: no such method.
    """
    method, *numbers = name.split()
    if method not in METHODS:
        raise ValueError(f"{method!r} is no method: {', '.join(METHODS)}")
    return method, {key: float(value) for key, _, value in (number.partition("=") for number in numbers)}


def title(name: str) -> str:
    """How documents call it.

    Example:
      >>> title("ember b2=0.99")
      'Ember, b2 = 0.99'
    """
    method, numbers = read_name(name)
    words = {
        "b1": "b1",
        "b2": "b2",
        "eps": "eps",
        "weight_decay": "decay",
        "power": "power",
        "classes": "classes",
        _HALF_LIFE: "half-life of b2 in tokens",
        _ACCUMULATE: "gradients in a step",
    }
    return ", ".join([METHODS[method].title, *(f"{words.get(key, key)} = {value:g}" for key, value in numbers.items())])
