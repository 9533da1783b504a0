"""Every wrapper of the installed Optax around Ember: the same as around a transformation that any user could have written."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember

pytestmark = pytest.mark.filterwarnings("ignore:inject_stateful_hyperparams is deprecated:DeprecationWarning")
V, D, RATE, B2, EPS = 12, 4, 0.1, 0.9, 1e-8
TREE = {"embed": {"embedding": (V, D)}, "mlp": {"kernel": (D, D)}}


def draw(shapes, seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    parts = 2 if dtype == jnp.complex64 else 1

    def array(shape):
        values = [rng.normal(size=shape) for _ in range(parts)]
        return jnp.asarray(values[0] + 1j * values[1] if parts == 2 else values[0], dtype)

    return jax.tree.map(array, shapes, is_leaf=lambda x: isinstance(x, tuple))


def plain_scale():
    """Ember's step of tables with the tokens first, written down in a few lines without a check of anything."""

    def init(params):
        rows, columns = (jax.tree.map(lambda p, a=a: jnp.zeros(p.shape[a : a + 1]), params) for a in (0, 1))
        return jnp.zeros([], jnp.int32), rows, columns

    def update(grads, state, params=None):
        del params
        count, *nus = state[0] + 1, *state[1:]
        rows, columns = (
            jax.tree.map(lambda g, nu, a=a: B2 * nu + (1 - B2) * jnp.mean(g * g, 1 - a), grads, nu) for a, nu in enumerate(nus)
        )

        def scaled(g, row, column):
            v_hat = row[:, None] * column / jnp.maximum(jnp.mean(column), 1e-30) / (1 - B2**count)
            return jnp.where(v_hat > 0, g / (jnp.sqrt(v_hat) + EPS), 0)

        return jax.tree.map(scaled, grads, rows, columns), (count, rows, columns)

    return optax.GradientTransformation(init, update)


def is_table(path):
    return "mlp" not in jax.tree_util.keystr(path)


def plain(rate=RATE):
    """The same as `ours`, of Optax alone."""

    def labels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "tables" if is_table(path) else "body", params)

    tables = optax.chain(plain_scale(), optax.scale_by_learning_rate(rate))
    return optax.partition({"tables": tables, "body": optax.sgd(0.01)}, labels)


def tables(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: EmberDimensionNumbers() if is_table(path) else None, params)


def ours(rate=RATE):
    return ember(rate, optax.sgd(0.01), b2=B2, tables=tables)


def on(condition):
    return lambda step, **_: condition(step)


def injected(inject):
    def wrap(make):
        return inject(make, hyperparam_dtype=jnp.float32)(RATE)

    return wrap


def frozen_body(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_table(path), params)


def by_table(make):
    def labels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "a" if is_table(path) else "b", params)

    return {"a": scale_of(make), "b": optax.sgd(0.01)}, labels


def scale_of(make):
    """The scaling alone, where a wrapper shows it the tables alone."""
    scale = scale_by_ember(B2, EPS, dimension_numbers=EmberDimensionNumbers()) if make is ours else plain_scale()
    return optax.chain(scale, optax.scale(-RATE))


class Wrapper:
    """How a wrapper is called around what `make()` returns, or why it cannot be."""

    def __init__(self, wrap=None, *, params=lambda params: params, refused=None, dtype=jnp.float32, extra=None):
        self.wrap, self.params, self.refused, self.dtype, self.extra = wrap, params, refused, dtype, extra or {}


def selective(make):
    # The mask is a tree, which is known once the parameters are.
    def init(params):
        return optax.selective_transform(make(), freeze_mask=frozen_body(params)).init(params)

    def update(grads, state, params=None, **extra):
        return optax.selective_transform(make(), freeze_mask=frozen_body(grads)).update(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


NO_TABLES = r"no token table found among the parameters"
WRAPPERS = {
    "optax.MultiSteps": Wrapper(lambda make: optax.MultiSteps(make(), 2)),
    "optax.apply_if_finite": Wrapper(lambda make: optax.apply_if_finite(make(), 3)),
    "optax.chain": Wrapper(lambda make: optax.chain(optax.clip(1.0), make(), optax.add_decayed_weights(-0.01))),
    "optax.named_chain": Wrapper(lambda make: optax.named_chain(("clip", optax.clip(1.0)), ("tables", make()))),
    "optax.conditionally_mask": Wrapper(lambda make: optax.conditionally_mask(make(), on(lambda step: step > 0))),
    "optax.conditionally_transform": Wrapper(lambda make: optax.conditionally_transform(make(), on(lambda step: step > 0))),
    # All parameters in one vector: there are no rows any more.
    "optax.flatten": Wrapper(lambda make: optax.flatten(ember(RATE, optax.sgd(0.01))), refused=NO_TABLES),
    "optax.inject_hyperparams": Wrapper(injected(optax.inject_hyperparams)),
    "optax.inject_stateful_hyperparams": Wrapper(injected(optax.inject_stateful_hyperparams)),
    "optax.lookahead": Wrapper(
        lambda make: optax.lookahead(make(), sync_period=2, slow_step_size=0.5), params=optax.LookaheadParams.init_synced
    ),
    "optax.masked": Wrapper(
        lambda make: optax.masked(scale_of(make), lambda params: jax.tree.map(lambda x: not x, frozen_body(params)))
    ),
    "optax.monitor": Wrapper(
        lambda make: optax.chain(optax.monitor({"leaves": lambda updates: jnp.sum(jax.tree.leaves(updates)[0])}), make())
    ),
    "optax.multi_transform": Wrapper(lambda make: optax.multi_transform(*by_table(make))),
    "optax.partition": Wrapper(lambda make: optax.partition(*by_table(make))),
    "optax.selective_transform": Wrapper(selective),
    "optax.with_extra_args_support": Wrapper(lambda make: optax.with_extra_args_support(make())),
    "optax.contrib.galore": Wrapper(lambda make: optax.contrib.galore(RATE, rank=2, base_optimizer=make())),
    "optax.contrib.scale_by_galore": Wrapper(lambda make: optax.contrib.scale_by_galore(rank=2, base_optimizer=make())),
    "optax.contrib.mechanize": Wrapper(lambda make: optax.contrib.mechanize(make())),
    "optax.contrib.sam": Wrapper(lambda make: optax.contrib.sam(make(), optax.sgd(0.05), sync_period=2)),
    "optax.contrib.schedule_free": Wrapper(lambda make: optax.contrib.schedule_free(make(), RATE)),
    "optax.contrib.split_real_and_imaginary": Wrapper(
        lambda make: optax.contrib.split_real_and_imaginary(make()), dtype=jnp.complex64
    ),
}
# What takes a transformation for something else than to pass it the gradients of the parameters.
OTHERS = {"optax.GradientTransformation", "optax.GradientTransformationExtraArgs", "optax.lbfgs", "optax.contrib.sophia"}
# These want the gradients of every example, with an axis of examples before the parameters' own.
OTHERS |= {f"optax.experimental.aggregating.{name}" for name in ("process", "add_mean_variance_to_opt")}
INNER = {"inner", "opt", "tx", "optimizer", "base_optimizer", "inner_factory", "inner_optimizer", "transforms"}


def wrappers_of_optax():
    """By name and annotation: whatever has a transformation among its arguments."""
    homes = {"optax": optax, "optax.contrib": optax.contrib, "optax.transforms": optax.transforms}
    homes["optax.experimental.aggregating"] = aggregating
    found = {}
    for home, module in homes.items():
        for name, member in vars(module).items():
            if name.startswith("_") or inspect.ismodule(member) or not callable(member):
                continue
            try:
                parameters = inspect.signature(member).parameters.values()
            except (TypeError, ValueError):
                continue
            if any("GradientTransformation" in str(p.annotation) or p.name in INNER for p in parameters):
                found.setdefault(member, f"{home}.{name}")
    return set(found.values()) - OTHERS


def test_every_wrapper_is_listed():
    """Fails where Optax has a new one: list it in `WRAPPERS` and say what is expected of it."""
    assert wrappers_of_optax() <= set(WRAPPERS), wrappers_of_optax() - set(WRAPPERS)


SHAPES = {"a bare array": (V, D), "a tree": TREE, "a list": [(V, D), {"mlp": (D, D)}, (8, D)]}


@functools.cache
def trained(name, shapes, make):
    wrapper = WRAPPERS[name]
    tx = wrapper.wrap(make)
    params = wrapper.params(draw(SHAPES[shapes], 0, wrapper.dtype))
    state = tx.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params, **wrapper.extra)
        return optax.apply_updates(params, updates), state

    seen = []
    for seed in (1, 2, 3, 4):
        before = jax.tree.structure(state)
        params, state = step(params, state, draw(SHAPES[shapes], seed, wrapper.dtype))
        assert seed == 1 or jax.tree.structure(state) == before  # optax.monitor itself has another one at first
        seen.append(params)
    return seen


EACH = pytest.mark.parametrize("name", WRAPPERS)


@EACH
@pytest.mark.parametrize("shapes", [pytest.param(s, marks=pytest.mark.slow if s == "a list" else []) for s in SHAPES])
def test_as_around_any_transformation(name, shapes):
    wrapper = WRAPPERS[name]
    if not hasattr(optax.contrib if ".contrib." in name else optax, name.split(".")[-1]):
        pytest.skip("this version of Optax does not have it")
    if wrapper.refused:
        with pytest.raises(ValueError, match=wrapper.refused):
            wrapper.wrap(ours).init(wrapper.params(draw(SHAPES[shapes], 0, wrapper.dtype)))
        return
    found, expected = (trained(name, shapes, make) for make in (ours, plain))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), found, expected)
    assert not np.array_equal(jax.tree.leaves(found[0])[0], jax.tree.leaves(found[-1])[0])


# What is chained with an optimizer, before or behind it.
LINKS = {
    "reduce_on_plateau": (lambda: optax.contrib.reduce_on_plateau(patience=1), {"value": jnp.float32(1.0)}, "behind"),
    "ema": (lambda: optax.ema(0.9), {}, "before"),
    "apply_every": (lambda: optax.apply_every(2), {}, "before"),
    "clip_by_global_norm": (lambda: optax.clip_by_global_norm(1.0), {}, "before"),
    "adaptive_grad_clip": (lambda: optax.adaptive_grad_clip(0.1), {}, "before"),
    "trace": (lambda: optax.trace(0.9), {}, "behind"),
    "normalize": (optax.contrib.normalize, {}, "before"),
    "zero_nans": (optax.zero_nans, {}, "before"),
    "keep_params_nonnegative": (optax.keep_params_nonnegative, {}, "behind"),
    "freeze": (lambda: optax.freeze(False), {}, "behind"),
}


@pytest.mark.parametrize("shapes", ["a bare array", pytest.param("a tree", marks=pytest.mark.slow)])
@pytest.mark.parametrize("link", LINKS)
def test_chained(link, shapes):
    make_link, extra, place = LINKS[link]

    def run(make):
        tx = optax.chain(*((make_link(), make()) if place == "before" else (make(), make_link())))
        params = draw(SHAPES[shapes], 0)
        state, update = tx.init(params), jax.jit(tx.update)
        for seed in (1, 2):
            updates, state = update(draw(SHAPES[shapes], seed), state, params, **extra)
            params = optax.apply_updates(params, updates)
        return params

    found, expected = run(ours), run(plain)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), found, expected)


@pytest.mark.parametrize("make", [scale_by_ember, ours], ids=["scale_by_ember", "ember"])
@pytest.mark.parametrize(
    "made",
    [
        lambda x: optax.LookaheadParams(x, x),
        lambda x: optax.contrib.split_real_and_imaginary(capture(seen := [])).init(x * 1j) and seen[0],
        lambda x: [optax.LookaheadParams(x, x)],
    ],
    ids=["fast and slow", "real and imaginary", "in a list"],
)
def test_named_tuples_of_parameters_are_trees(make, made):
    params = made(jnp.ones((V, D)))
    tx = make()
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def capture(seen):
    def init(params):
        seen.append(params)
        return (optax.EmptyState(),)

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


STATES = {
    "adam": lambda params: optax.adam(1e-3).init(params),
    "one of a chain": lambda params: optax.adam(1e-3).init(params)[0],
    "trace": lambda params: optax.trace(0.9).init(params),
    "masked": lambda params: optax.masked(optax.adam(1e-3), True).init(params),
    "MultiSteps": lambda params: optax.MultiSteps(optax.sgd(1e-3), 2).init(params),
    "sam": lambda params: optax.contrib.sam(optax.sgd(1e-3), optax.sgd(1e-3)).init(params),
    "split": lambda params: optax.contrib.split_real_and_imaginary(optax.sgd(1e-3)).init(params),
    "of Ember": lambda params: ours().init(params),
    "of Ember alone": lambda params: scale_by_ember().init(params),
}


@pytest.mark.parametrize("kind", STATES)
def test_states_are_no_parameters(kind):
    for shapes, make in itertools.product(("a bare array", "a tree"), (scale_by_ember, ours)):
        state = STATES[kind](draw(SHAPES[shapes], 0))
        with pytest.raises(TypeError, match=r"^params must be a tree of arrays, got"):
            make().init(state)
