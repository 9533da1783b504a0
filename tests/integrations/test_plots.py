"""Pictures of geometry: what is drawn is what was measured, labels are there, texts are safe, mistakes are named."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

from ember_optax import geometry
from ember_optax.integrations import plots

TOKENS = geometry.UnderTrainedTokens(jnp.array([2, 0, 1, 3]), jnp.array([0.2, 0.3, 0.1, 0.9]), *[jnp.ones(4)] * 4)


def drawn():
    return {
        "spectrum": plots.spectrum({"a": [4.0, 2.0, 1.0], "zeros": [0.0]}),
        "over_training": plots.over_training({"a": ([0, 10], [0.5, 0.4])}, label="IsoScore"),
        "rays": plots.rays({"a": [0.9, np.nan, 0.7]}, null=0.81),
        "row_steps": plots.row_steps({"a": [1.0, 0.0, 3.0]}, [5, 2, 0]),
        "under_trained_tokens": plots.under_trained_tokens(TOKENS, ["a\n\x1b", "$x_1$ \u4e16", "y" * 99, "é"], top=3),
    }


@pytest.mark.parametrize("name", plots.__all__)
def test_pictures_are_labelled_and_can_be_written(name):
    axes = drawn()[name]
    assert axes.get_title()
    assert axes.get_xlabel()
    assert axes.get_legend().get_texts()
    axes.figure.savefig(written := io.BytesIO(), dpi=60)
    assert 2_000 < written.getbuffer().nbytes < 300_000


def test_what_is_drawn_is_what_was_measured():
    axes = drawn()
    np.testing.assert_array_equal(axes["spectrum"].lines[0].get_ydata(), [1.0, 0.5, 0.25])
    np.testing.assert_array_equal(axes["rays"].lines[0].get_xdata(), [0.7, 0.9])  # the row that stood still is not there
    np.testing.assert_array_equal(axes["rays"].lines[0].get_ydata(), [0.5, 1.0])
    assert "0.81" in axes["rays"].get_legend().get_texts()[-1].get_text()
    np.testing.assert_array_equal(axes["row_steps"].collections[0].get_offsets(), [[5, 1], [0.5, 3]])
    bars = axes["under_trained_tokens"].patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], [0.1, 0.2, 0.3], rtol=1e-6)


def test_texts_of_tokens_are_safe():
    labels = [label.get_text() for label in drawn()["under_trained_tokens"].get_yticklabels()]
    assert labels == [f"2 '{'y' * 24}...'", r"0 'a\n\x1b'", r"1 '$x_1$ \u4e16'"]


def test_draws_on_axes_of_the_user():
    given = drawn()["rays"]
    assert plots.spectrum({"a": [1.0]}, axes=given) is given


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: plots.spectrum({}), "spectra must be a dictionary from names"),
        (lambda: plots.spectrum(np.ones(3)), "spectra must be a dictionary from names"),
        (lambda: plots.rays({"a": np.ones((2, 2))}), r"shares must hold vectors of numbers, but 'a' has shape \(2, 2\)"),
        (lambda: plots.over_training({"a": ([1, 2], [1.0])}, label="x"), "values of 'a' has 2 steps and 1 values"),
        (lambda: plots.row_steps({"a": [1.0]}, [1, 2]), "steps of 'a' has 1 rows and token_counts 2"),
        (lambda: plots.under_trained_tokens(TOKENS, ["a"]), "texts has 1 entries for 4 tokens"),
        (lambda: plots.under_trained_tokens(TOKENS, top=0), "top must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
