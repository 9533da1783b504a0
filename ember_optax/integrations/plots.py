"""Pictures of token geometry with Matplotlib (the extra `plots`): each draws what a function of `geometry` returned.

Every function takes Matplotlib axes to draw on, or makes a figure of its own that Matplotlib does not keep, and returns the axes.
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

# Beyond these the fonts that every Matplotlib has may lack a character.
_LAST_DRAWN = "\u024f"
_LONGEST = 24


def spectrum(spectra: Mapping[str, Any], *, axes: Axes | None = None) -> Axes:
    r"""Draws singular values, each spectrum relative to its largest, over their rank.

    .. math:: \sigma_k / \sigma_1

    Args:
      spectra: by the name for the legend, what `geometry.spectrum` returned, (n,) each.
      axes: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: there is nothing to draw, or a spectrum is no vector of numbers.

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
      values: by the name for the legend, a pair of steps and values, (T,) each: `metrics["geometry/embed/iso_score"]` of reports.
      label: what the metric is, with its unit.
      axes: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: there is nothing to draw; steps and values are no vectors of one length.

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
    r"""Draws how straight tokens move: the distribution of their share along one direction, beside what a random walk gives.

    .. math:: P(share_i \le x)

    Args:
      shares: by the name for the legend, `share` of what `geometry.ray` found, (V,) each; NaN for rows that did not move. Rows of
        a hidden matrix of the same run are the second null: pass them here, by a name of their own.
      null: the share of a random walk of as many snapshots, the first of what `geometry.random_walk` returned.
      axes: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: there is nothing to draw, or shares are no vector of numbers.

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
    r"""Draws how far each row moves in a step, over how often its token occurred; rows that stand still are left out.

    .. math:: (count_i, \sqrt{\mathrm{mean}_j\, u_{ij}^2})

    Args:
      steps: by the name for the legend, what `geometry.row_step` returned, (V,) each, in units of the learning rate.
      token_counts: how often each token occurred, (V,); those that never did are drawn at one half.
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
    r"""Draws the most suspicious tokens with their text and score, as bars beside the median of all tokens.

    .. math:: score_i

    Args:
      found: what `geometry.under_trained_tokens` returned.
      texts: what each token stands for, V of them; None shows ids alone. Control characters, and others that Matplotlib's own
        font lacks, are escaped.
      top: how many tokens.
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
        raise ValueError(f"{argument} must be a dictionary from names to what is drawn, got {shown(values)}; name at least one.")
