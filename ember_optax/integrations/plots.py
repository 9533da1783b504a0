"""Plots of token geometry with Matplotlib (the extra `plots`). Each draws the result of a function of `geometry`.

Every function takes Matplotlib axes to draw on, or makes a new figure that Matplotlib does not keep, and returns the axes.
Nothing is shown or saved: `axes.figure.savefig("tokens.png")`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .._tree.inputs import shown
from ..geometry import UnderTrainedTokens

__all__ = ["over_training", "rays", "row_steps", "spectrum", "under_trained_tokens"]

# Matplotlib's own fonts may lack characters beyond this one.
_LAST_DRAWN = "\u024f"
_LONGEST = 24


def spectrum(spectra: Mapping[str, Any], *, axes: Axes | None = None) -> Axes:
    r"""Draws singular values, each spectrum relative to its largest, over their rank.

    .. math:: \sigma_k / \sigma_1

    Args:
      spectra: a mapping from names for the legend to results of `geometry.spectrum`, (n,) each.
      axes: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: there is nothing to draw, or a spectrum is not a vector of numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> from ember_optax.integrations import plots
      >>> axes = plots.spectrum({"embedding": geometry.spectrum(jnp.eye(8, 4))})
      >>> axes.get_xlabel()
      'rank of the singular value'

    References:
      docs/geometry.md
    """
    axes = _axes(axes)
    for name, sigma in _vectors(spectra, "spectra").items():
        largest = sigma.max(initial=0.0)
        axes.plot(np.arange(1, sigma.size + 1), sigma / (largest or 1.0), label=name)
    axes.set(xscale="log", yscale="log", xlabel="rank of the singular value", ylabel="singular value / largest")
    return _finished(axes, "Spectrum")


def over_training(values: Mapping[str, tuple[Any, Any]], *, label: str, axes: Axes | None = None) -> Axes:
    r"""Draws a metric over the steps of training, one line for each run or table.

    .. math:: (step_t, value_t)

    Args:
      values: a mapping from names for the legend to pairs of steps and values, (T,) each. A value is, for example,
        `metrics["geometry/embed/iso_score"]` of a report.
      label: the name of the metric, with its unit.
      axes: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: there is nothing to draw, or steps and values are not vectors of one length.

    Example:
      >>> from ember_optax.integrations import plots
      >>> axes = plots.over_training({"ember": ([0, 50, 100], [0.9, 0.5, 0.4])}, label="IsoScore")
      >>> axes.get_ylabel()
      'IsoScore'

    References:
      docs/geometry.md
    """
    axes = _axes(axes)
    pairs = {name: _vectors({"steps": steps, "values": of_run}, name) for name, (steps, of_run) in values.items()}
    _check_any(pairs, "values")
    for name, pair in pairs.items():
        steps, of_run = pair.values()
        if steps.size != of_run.size:
            raise ValueError(f"values of {name!r} has {steps.size} steps and {of_run.size} values; pass one value for each step.")
        axes.plot(steps, of_run, "o-", markersize=4, label=name)
    axes.set(xlabel="step", ylabel=label)
    return _finished(axes, f"{label} over training")


def rays(shares: Mapping[str, Any], *, null: float | None = None, axes: Axes | None = None) -> Axes:
    r"""Draws how straight tokens move: the distribution of their share along one direction, and the share of a random walk.

    .. math:: P(share_i \le x)

    Args:
      shares: a mapping from names for the legend to the `share` of results of `geometry.ray`, (V,) each, NaN for rows that did
        not move. Rows of a hidden matrix of the same run are the second null: pass them here too, with their own name.
      null: the share of a random walk with the same number of snapshots, the first result of `geometry.random_walk`.
      axes: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: there is nothing to draw, or shares are not a vector of numbers.

    Example:
      >>> from ember_optax import geometry
      >>> from ember_optax.integrations import plots
      >>> axes = plots.rays({"tokens": [0.8, 0.9, 0.95]}, null=geometry.random_walk(12)[0])
      >>> axes.get_ylabel()
      'part of the rows at or below'

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; docs/geometry.md
    """
    axes = _axes(axes)
    for name, values in _vectors(shares, "shares").items():
        known = np.sort(values[~np.isnan(values)])
        axes.step(known, np.arange(1, known.size + 1) / max(known.size, 1), where="post", label=f"{name} ({known.size:,} rows)")
    if null is not None:
        axes.axvline(float(null), color="black", linestyle="--", linewidth=1, label=f"random walk ({float(null):.2f})")
    axes.set(xlabel="share of displacement energy along one direction", ylabel="part of the rows at or below", ylim=(0, 1.02))
    return _finished(axes, "Rays against their null", legend="upper left")  # shares are large: nothing is drawn there


def row_steps(steps: Mapping[str, Any], token_counts: Any, *, axes: Axes | None = None) -> Axes:
    r"""Draws how far each row moves in a step, over how often its token occurred. Rows that do not move are left out.

    .. math:: (count_i, \sqrt{\mathrm{mean}_j\, u_{ij}^2})

    Args:
      steps: a mapping from names for the legend to results of `geometry.row_step`, (V,) each, in units of the learning rate.
      token_counts: how often each token occurred, (V,). Tokens that never occurred are drawn at one half.
      axes: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: there is nothing to draw, or the vectors have different lengths.

    Example:
      >>> from ember_optax.integrations import plots
      >>> axes = plots.row_steps({"ember": [1.0, 5.0, 0.0]}, [100, 1, 0])
      >>> axes.get_xlabel()
      'occurrences of the token so far'

    References:
      docs/geometry.md
    """
    axes = _axes(axes)
    counts = _vectors({"token_counts": token_counts}, "token_counts")["token_counts"]
    for name, of_rows in _vectors(steps, "steps").items():
        if of_rows.size != counts.size:
            raise ValueError(
                f"steps of {name!r} has {of_rows.size} rows and token_counts {counts.size}; pass one for each token."
            )
        moves = of_rows > 0
        axes.scatter(np.maximum(counts[moves], 0.5), of_rows[moves], s=8, alpha=0.4, linewidths=0, label=name)
    axes.set(xscale="log", yscale="log", xlabel="occurrences of the token so far")
    axes.set_ylabel("row step (rms, in learning rates)")
    return _finished(axes, "Step of each row against frequency")


def under_trained_tokens(
    found: UnderTrainedTokens, texts: Sequence[str] | None = None, *, top: int = 20, axes: Axes | None = None
) -> Axes:
    r"""Draws the most suspicious tokens with their text and score as bars, and the median of all tokens.

    .. math:: score_i

    Args:
      found: the result of `geometry.under_trained_tokens`.
      texts: the text of each token, V of them; None shows only ids. Control characters, and others that Matplotlib's own font
        lacks, are escaped.
      top: the number of tokens to draw.
      axes: where to draw; None makes a figure of fitting height.

    Returns:
      The axes.

    Raises:
      ValueError: `top` is below 1, or there are fewer texts than tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> from ember_optax.integrations import plots
      >>> found = geometry.under_trained_tokens(jnp.array([[3.0, 4.0], [0.1, 0.0]]), tied=False)
      >>> axes = plots.under_trained_tokens(found, ["the", "<unk>"])
      >>> [label.get_text() for label in axes.get_yticklabels()]
      ["1 '<unk>'", "0 'the'"]

    References:
      Land and Bartolo, "Fishing for Magikarp", https://arxiv.org/abs/2405.05417; docs/geometry.md
    """
    score, order = np.asarray(found.score), np.asarray(found.order)
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}; 20 is the default.")
    if texts is not None and len(texts) < score.size:
        raise ValueError(f"texts has {len(texts)} entries for {score.size} tokens; pass one for each row of the table.")
    ids = order[:top].tolist()
    axes = _axes(axes, height=1.2 + 0.24 * len(ids))
    axes.barh(range(len(ids)), score[ids], height=0.7)
    axes.axvline(float(np.nanmedian(score)), color="black", linestyle="--", linewidth=1, label="median of all tokens")
    labels = [str(i) if texts is None else f"{i} {_drawable(str(texts[i]))}" for i in ids]
    axes.set_yticks(range(len(ids)), labels, fontfamily="monospace", fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="score (small: looks under-trained)")
    return _finished(axes, "Under-trained tokens")


def _drawable(text: str) -> str:
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return repr(cut) if max(cut, default="") <= _LAST_DRAWN else ascii(cut)


def _axes(axes: Axes | None, height: float = 4.0) -> Axes:
    return Figure(figsize=(7, height), layout="constrained").subplots() if axes is None else axes


def _finished(axes: Axes, title: str, legend: Literal["best", "upper left"] = "best") -> Axes:
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", framealpha=0.7, loc=legend)
    return axes


def _vectors(values: Mapping[str, Any], argument: str) -> dict[str, np.ndarray]:
    _check_any(values, argument)
    arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
    for name, array in arrays.items():
        if array.ndim != 1 or not array.size:
            raise ValueError(f"{argument} must hold vectors of numbers, but {name!r} has shape {array.shape}; pass (n,) values.")
    return arrays


def _check_any(values: Mapping[str, Any], argument: str) -> None:
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"{argument} must be a dictionary from names to values to draw, got {shown(values)}; name at least one.")
