"""Against 50 decimal digits, and that the committed envelope is what is promised."""

import numpy as np
import pytest
from oracle import NumpyEmber

from benchmarks.harness.exact import ExactEmber
from benchmarks.harness.results import RESULTS, load
from benchmarks.measure import envelope

pytestmark = pytest.mark.fully_compiled


@pytest.mark.parametrize("exponent", [-36, -22, -15, -8, 0, 17])
def test_matches_fifty_digits(exponent):
    assert envelope.error("ember_optax", 1e-8, exponent) <= 1e-6


def test_the_two_oracles_agree():
    """They were written apart; float64 is exact to 1e-15 here."""
    ours, theirs = ExactEmber((6, 4), 0.9, 1e-3), NumpyEmber((6, 4), 0.9, 1e-3)
    for g in np.random.default_rng(0).normal(size=(4, 6, 4)):
        np.testing.assert_allclose(ours.update(g), theirs.update(g), rtol=1e-13)


def test_the_committed_envelope_holds():
    results = load(RESULTS / "envelope.json")
    errors = dict(zip(results["exponents"], results["errors"]["1e-08"]["ember_optax"], strict=True))
    assert set(envelope.PROMISED) <= set(errors)
    assert max(errors[exponent] for exponent in envelope.PROMISED) <= 1e-6


def test_the_envelope_would_show_the_equation_as_written():
    assert envelope.error("as written, float32", 1e-8, -10) > 1e-3
