"""Keras on JAX: any Optax transformation as the optimizer of `compile` and `fit`."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import keras
import optax
from jax.core import Tracer

from .._optimizer.checks import check_transformation
from .._tree.inputs import listed, shown
from ._keras_state import StateVariables

__all__ = ["OptaxOptimizer"]


@keras.saving.register_keras_serializable(package="ember_optax")
class OptaxOptimizer(keras.optimizers.Optimizer):
    r"""A `keras.optimizers.Optimizer` that makes the step of an Optax transformation, with the JAX backend of Keras.

    .. math:: p \leftarrow p + \eta\, u

    where :math:`u` are the updates of `tx`, which contain its own learning rates, and :math:`\eta` is `learning_rate`.

    The transformation sees all trained variables at once, in a dictionary from `variable.path` to arrays. Its state is kept in
    variables of Keras. Under `keras.distribution` each of them is split like the axes of its parameter (`state_shardings`).

    Args:
      tx: the transformation, for example `ember(1e-2, optax.adamw(1e-3))`.
      learning_rate: a factor for all updates, and what callbacks and schedules of Keras change. It is a number or a schedule of
        Keras. At 1.0, the default, the step is that of `tx`.
      **options: those of `keras.optimizers.Optimizer`: `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`,
        `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`, `name`. Not `weight_decay`, which belongs
        into `tx`.

    Attributes:
      tx: the transformation.
      params: the trained variables' values, a dictionary from paths to arrays, as `tx` sees them.
      opt_state: the state of `tx`, as `tx.init(params)` returns it, for `skipped_batches`, `geometry.report` and the like.
        `set_opt_state` replaces it.

    Raises:
      TypeError: `tx` is not a transformation.
      ValueError: Keras runs on another backend; `weight_decay` is given; two variables have the same path; the optimizer is built
        a second time for other variables, or for the first time inside of `jax.jit`; a variable gets no gradient; `tx` ends with
        `stochastic_rounding` and `learning_rate` is not 1.0; a saved model is loaded without `tx`.

    Example:
      >>> import os
      >>> os.environ["KERAS_BACKEND"] = "jax"
      >>> import keras
      >>> import numpy as np
      >>> import optax
      >>> from ember_optax import ember
      >>> from ember_optax.integrations.keras import OptaxOptimizer
      >>> layers = [keras.layers.Embedding(100, 8, name="embed"), keras.layers.Dense(100, use_bias=False, name="lm_head")]
      >>> model = keras.Sequential(layers)
      >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
      >>> model.compile(OptaxOptimizer(ember(1e-2, optax.adamw(1e-3))), loss)
      >>> ids = np.arange(64).reshape(8, 8)
      >>> history = model.fit(ids, ids + 1, epochs=2, verbose=0)
      >>> sorted(model.optimizer.params)
      ['sequential/embed/embeddings', 'sequential/lm_head/kernel']

    References:
      docs/keras.md
    """

    def __init__(self, tx: optax.GradientTransformation, learning_rate: Any = 1.0, **options: Any):
        if keras.backend.backend() != "jax":
            raise ValueError(
                f"OptaxOptimizer needs Keras on JAX, but the backend is {keras.backend.backend()!r}: set the environment "
                f"variable KERAS_BACKEND=jax before Keras is imported."
            )
        check_transformation(tx, "tx", "pass one, for example ember(1e-2, optax.adamw(1e-3))")
        if (decay := options.get("weight_decay")) is not None:
            raise ValueError(
                f"weight_decay={decay} would be that of Keras, for every variable and at the rate of Keras: give it to the "
                f"transformation, for example optax.adamw(1e-3, weight_decay=0.1)."
            )
        super().__init__(learning_rate=learning_rate, **options)
        self.tx = optax.with_extra_args_support(tx)
        self._state: StateVariables | None = None

    def build(self, variables: list[Any]) -> None:
        """Makes the state for these variables. Does nothing if it was made for the same ones before."""
        if self.built:
            return self._check_same(variables)
        trained = [variable for variable in variables if not self._overwrite_variable_with_gradient(variable)]
        _check_variables(trained)
        self._state = StateVariables(self, trained)
        self._check_rounding(self._learning_rate)
        super().build(variables)

    @property
    def params(self) -> dict[str, jax.Array]:
        """The values of the trained variables by their paths."""
        return self._built_state().params()

    @property
    def opt_state(self) -> Any:
        """The state of the transformation."""
        return self._built_state().read()

    def set_opt_state(self, opt_state: Any) -> None:
        """Replaces the state of the transformation by a copy of another one, for example of one that `state_from_adam` made."""
        # A copy, because Keras donates its variables. No assignment to `opt_state`, whose dictionaries Keras would wrap.
        self._built_state().write(jax.tree.map(jnp.copy, opt_state))

    @property
    def learning_rate(self) -> Any:
        """The factor for all updates."""
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._check_rounding(value)
        of_keras: Any = keras.optimizers.Optimizer.learning_rate
        of_keras.fset(self, value)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Raises, because the transformation decays weights, and not Keras."""
        raise ValueError("exclude_from_weight_decay does not reach a transformation of Optax: give it a `mask` instead.")

    def _backend_update_step(self, grads: list[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        state = self._built_state()
        params = state.params()
        gradients = {variable.path: gradient for variable, gradient in zip(trainable_variables, grads, strict=True)}
        if missing := [path for path in params if path not in gradients]:
            raise ValueError(
                f"no gradient for {listed(missing)}: a transformation of Optax takes those of all trained variables at once. "
                f"Pass zeros, or set trainable=False for the layer before the optimizer is built."
            )
        updates, opt_state = self.tx.update(gradients, state.read(), params)
        rate = keras.ops.convert_to_tensor(learning_rate, "float32")
        state.write(opt_state, optax.apply_updates(params, jax.tree.map(lambda update: rate * update, updates)))

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "OptaxOptimizer":
        """An optimizer with the options of a saved one, and with the transformation that is registered as "tx"."""
        tx = keras.saving.get_registered_object("tx", custom_objects)
        if tx is None:
            raise ValueError(
                "a saved model does not contain the Optax transformation of its optimizer, which is made of functions: pass it "
                "again, keras.saving.load_model(path, custom_objects={'tx': tx})."
            )
        return super().from_config({**config, "tx": tx}, custom_objects)

    def _built_state(self) -> StateVariables:
        if self._state is None:
            raise ValueError("OptaxOptimizer has no state yet: call optimizer.build(model.trainable_variables) or model.fit.")
        return self._state

    def _check_same(self, variables: list[Any]) -> None:
        before, now = ({id(variable): variable.path for variable in of} for of in (self._trainable_variables, variables))
        if differing := sorted((before | now)[key] for key in before.keys() ^ now.keys()):
            raise ValueError(
                f"OptaxOptimizer was built for other variables; {listed(differing)} differ: make a new optimizer after layers "
                f"were added, frozen or unfrozen."
            )

    def _check_rounding(self, learning_rate: Any) -> None:
        """Raises if updates that land on numbers of a 16-bit parameter would be multiplied."""
        if self._state is not None and self._state.rounds and not _is_one(learning_rate):
            raise ValueError(
                f"learning_rate must be 1.0 with stochastic_rounding, got {shown(learning_rate)}: what was rounded may not be "
                f"multiplied. Give a schedule to the transformation, ember(schedule, optax.adamw(schedule))."
            )


def _check_variables(trained: list[Any]) -> None:
    if any(isinstance(variable.value, Tracer) for variable in trained):
        raise ValueError("OptaxOptimizer makes its state outside of jax.jit: call optimizer.build(model.trainable_variables).")
    counts = Counter(variable.path for variable in trained)
    if repeated := [path for path, count in counts.items() if count > 1]:
        raise ValueError(f"the paths {listed(repeated)} name more than one variable each: give the layers names of their own.")


def _is_one(learning_rate: Any) -> bool:
    number: Any = None if callable(learning_rate) else keras.ops.convert_to_numpy(learning_rate)
    return number is not None and float(number) == 1.0
