"""Random histories: grow, train, take, train, permute, train, against a run that had the final vocabulary from the start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from steps import dense_step, jitted

from ember_optax import TokenTables, ember, vocab

D, B2, RATE = 3, 0.9, 0.1
SIZES = (4, 5, 8, 10)  # few, so that few programs are compiled
NAMES = ("embed", "lm_head", "of_body")
# The body's Adam owns one table.
TX = ember(RATE, optax.adam(RATE), b2=B2, tables=TokenTables(exclude=["of_body/embedding"]))
ALL = TokenTables(include=["of_body/embedding"])


class Run:
    """A model, and which token of all that ever were each row stands for."""

    def __init__(self, tokens, rows):
        self.tokens = np.asarray(tokens)
        rows = rows[self.tokens]
        self.params = {
            "embed": {"embedding": jnp.asarray(rows)},
            "lm_head": {"kernel": jnp.asarray(rows.T)},
            "of_body": {"embedding": jnp.asarray(rows)},
            "mlp": jnp.ones((D, D)),
        }
        self.opt_state = TX.init(self.params)

    def train(self, gradients):
        """A step with these gradients (tables x tokens x features), of the tokens that exist."""
        embed, head, of_body = (jnp.asarray(g[self.tokens]) for g in gradients)
        grads = {
            "embed": {"embedding": embed},
            "lm_head": {"kernel": head.T},
            "of_body": {"embedding": of_body},
            "mlp": jnp.ones((D, D)),
        }
        self.params, self.opt_state = jitted(dense_step, TX)(self.params, self.opt_state, grads)

    def grow(self, tokens):
        size = len(self.tokens) + len(tokens)
        changed = vocab.resize(TX, self.params, self.opt_state, size, initializer="zeros", tables=ALL, names=[".*"])
        self.params, self.opt_state, self.tokens = changed.params, changed.opt_state, np.r_[self.tokens, tokens]

    def take(self, places):
        changed = vocab.take(TX, self.params, self.opt_state, places, tables=ALL, names=[".*"])
        self.params, self.opt_state = changed.params, changed.opt_state
        gone = np.setdiff1d(np.arange(len(self.tokens)), places)
        assert (changed.new_ids[places] == np.arange(len(places))).all() and (changed.new_ids[gone] == -1).all()
        self.tokens = self.tokens[places]

    @property
    def state(self):
        return optax.tree.get(self.opt_state, "ScaleByEmberState")

    def tables(self):
        """Each table with a row for each token, in the order of all tokens."""
        order = np.argsort(self.tokens)
        params = self.params
        return [t[order] for t in (params["embed"]["embedding"], params["lm_head"]["kernel"].T, params["of_body"]["embedding"])]


HISTORIES = given(
    st.lists(st.sampled_from(["grow", "take", "permute", "train", "train"]), min_size=3, max_size=8), st.integers(0, 10**6)
)
EXAMPLES = functools.partial(settings, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@EXAMPLES(max_examples=15)
@HISTORIES
def test_some_histories(events, seed):
    check_history(events, seed)


@pytest.mark.slow
@EXAMPLES(max_examples=200)
@HISTORIES
def test_many_histories(events, seed):
    check_history(events, seed)


def profile_of(nu_feature):
    return nu_feature / jnp.maximum(nu_feature.mean(), 1e-30)


def check_history(events, seed):
    rng = np.random.default_rng(seed)
    universe = SIZES[1] + SIZES[-1] * len(events)
    rows = np.zeros((universe, D), np.float32)
    rows[: SIZES[1]] = rng.normal(size=(SIZES[1], D))
    run = Run(range(SIZES[1]), rows)
    past, next_token = [], SIZES[1]
    for event in events:
        size = len(run.tokens)
        larger = [s for s in SIZES if s > size]
        smaller = [s for s in SIZES if s < size]
        if event == "grow" and larger:
            count = rng.choice(larger) - size
            run.grow(np.arange(next_token, next_token + count))
            next_token += count
        elif event == "take" and smaller:
            run.take(np.sort(rng.choice(size, rng.choice(smaller), replace=False)))
        elif event == "permute":
            run.take(rng.permutation(size))
        elif event == "train":
            gradients = rng.normal(size=(3, universe, D)).astype(np.float32)
            gradients[:, np.setdiff1d(np.arange(universe), rng.choice(run.tokens, 3))] = 0  # most rows have none
            run.train(gradients)
            past.append(gradients)

    straight = Run(np.sort(run.tokens), rows)
    for gradients in past:
        straight.train(gradients)

    order = np.argsort(run.tokens)
    for name, table in (("embed", "embedding"), ("lm_head", "kernel")):
        # Each token's own statistic never knows of the others.
        np.testing.assert_allclose(run.state.nu_token[name][table][order], straight.state.nu_token[name][table], rtol=1e-6)
        kept, total = run.state.nu_token[name][table].mean(), run.state.nu_feature[name][table].mean()
        share = float(1 - kept / total) if total else 0.0
        profile, exact = (profile_of(state.nu_feature[name][table]) for state in (run.state, straight.state))
        assert (profile >= (1 - share) * exact - 1e-5).all()
        assert np.abs(profile - exact).mean() <= 2 * max(share, 0) + 1e-5
    had_gradient = {t for g in past for t in np.flatnonzero(np.abs(g[0]).sum(1))}
    tables = zip(run.tables(), straight.tables(), strict=True)
    for i, (ours, theirs) in enumerate(tables):
        # Adam knows nothing of other rows; Ember once what is gone had no gradient.
        if i == 2 or had_gradient <= set(run.tokens.tolist()):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), run.params["mlp"], straight.params["mlp"])
