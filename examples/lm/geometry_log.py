"""What `geometry` says of the tables on the way through a training run, and one picture that compares runs."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from matplotlib.figure import Figure

from ember_optax import geometry, token_tables
from ember_optax.integrations import plots

# The second null of the rays: rows of these matrices, (features, rows).
_HIDDEN = "gate_up"
_HIDDEN_ROWS = "hidden rows"
_OVER_TRAINING = {"mean_cosine_similarity": "mean cosine", "iso_score": "IsoScore", "cold_row_ratio": "largest / median row step"}


class GeometryLog:
    """Looks at a run after every `every` steps, and after the last one.

    It computes gradients of its own and leaves the compiled step alone, so that the run is the same to the last bit with and
    without it. Reports go on where a run is resumed; rays begin there.

    Args:
      every: steps between two looks.
      gradients: `gradients(params, batch)`, compiled once for all runs.
      counts_V: how often each token occurs in the training text.
    """

    def __init__(self, every: int, gradients: Callable[[Any, jax.Array], Any], counts_V: np.ndarray):
        self._every, self._gradients, self._counts_V = every, gradients, counts_V
        self._rays: dict[str, tuple[geometry.Streaming, Any]] = {}
        self.seconds = 0.0
        self.vectors: dict[str, dict[str, np.ndarray]] = {}

    def look(self, step: int, state: dict[str, Any], batch: jax.Array, history: dict[str, Any], *, last: bool = False) -> None:
        """Adds a report to the history, of the state after `step` steps and the next batch; keeps vectors of the last one."""
        if step % self._every and not last:
            return
        start = time.perf_counter()
        params, opt_state = state["params"], state["opt_state"]
        self._follow(params)
        if step == 0:
            return
        grads = self._gradients(params, batch)
        metrics = jax.device_get(geometry.report(params, grads, opt_state, self._counts_V))
        history.setdefault("geometry", []).append({"step": step} | {name: value.item() for name, value in metrics.items()})
        if last:
            self.vectors = self._last_vectors(params, grads, opt_state)
        self.seconds += time.perf_counter() - start

    def _follow(self, params: Any) -> None:
        for name, (matrix, axis) in _matrices(params).items():
            if name not in self._rays:
                streaming = geometry.ray(token_axis=axis)
                self._rays[name] = streaming._replace(update=jax.jit(streaming.update)), streaming.init(matrix)
            else:
                streaming, state = self._rays[name]
                self._rays[name] = streaming, streaming.update(state, matrix)

    def _last_vectors(self, params: Any, grads: Any, opt_state: Any) -> dict[str, dict[str, np.ndarray]]:
        states, of_gradients = geometry.table_states(opt_state), _matrices(grads)
        tables = {name: pair for name, pair in _matrices(params).items() if name in states and _HIDDEN not in name}
        vectors = {
            "spectra": {name: geometry.spectrum(table, token_axis=axis) for name, (table, axis) in tables.items()},
            "row_steps": {
                name: geometry.row_step(of_gradients[name][0], states[name], token_axis=axis)
                for name, (_, axis) in tables.items()
            },
            "rays": {name: streaming.value(state).share for name, (streaming, state) in self._rays.items()},
        }
        found = jax.tree.map(lambda array: np.asarray(process_allgather(array, tiled=True)), vectors)
        hidden = [found["rays"].pop(name) for name in list(found["rays"]) if _HIDDEN in name]
        found["rays"] |= {_HIDDEN_ROWS: np.concatenate(hidden)} if hidden else {}
        return found

    @property
    def displacements(self) -> int:
        """Snapshots of the rays after the first one."""
        return int(next(iter(self._rays.values()))[1].num_snapshots) if self._rays else 0


def draw(
    path: Path, reports: Mapping[str, list[dict[str, float]]], logs: Mapping[str, GeometryLog], counts_V: np.ndarray
) -> None:
    """Metrics over training, and after it spectra, rays beside their nulls, and row steps against frequency, of all runs."""
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    panels = figure.subplots(2, 3)
    for axes, (metric, label) in zip(panels[0], _OVER_TRAINING.items(), strict=True):
        values = {
            f"{run}, {name}": ([at["step"] for at in of_run], [at[f"geometry/{name}/{metric}"] for at in of_run])
            for run, of_run in reports.items()
            for name in _tables(of_run[0], metric)
        }
        plots.over_training(values, label=label, axes=axes)
    vectors = {
        kind: {f"{run}, {name}": vector for run, log in logs.items() for name, vector in log.vectors[kind].items()}
        for kind in ("spectra", "rays", "row_steps")
    }
    # Tables first, so that a colour means the same in all panels.
    of_rays = dict(sorted(vectors["rays"].items(), key=lambda named: named[0].endswith(_HIDDEN_ROWS)))
    plots.spectrum(vectors["spectra"], axes=panels[1][0])
    snapshots = min(log.displacements for log in logs.values())
    null = float(geometry.random_walk(snapshots)[0]) if snapshots else None
    plots.rays(of_rays, null=null, axes=panels[1][1])
    plots.row_steps(vectors["row_steps"], counts_V, axes=panels[1][2])
    figure.savefig(path, dpi=90)


def _tables(report: Mapping[str, float], metric: str) -> list[str]:
    """The tables that a report has a metric of."""
    parts = [name.removeprefix("geometry/").removesuffix(f"/{metric}") for name in report if name.endswith(f"/{metric}")]
    return [name for name in parts if not name.endswith(("/rare", "/frequent"))]


def _matrices(tree: Any) -> dict[str, tuple[jax.Array, int]]:
    """The token tables and the hidden matrices of the second null, or their gradients, by path, with the axis of their rows."""
    numbers = jax.tree.leaves(token_tables(tree), is_leaf=lambda leaf: leaf is None or hasattr(leaf, "token_axis"))
    found = {}
    for (path, leaf), of_leaf in zip(jax.tree_util.tree_leaves_with_path(tree), numbers, strict=True):
        name = "/".join(str(key.key) for key in path)
        if of_leaf is not None or _HIDDEN in name:
            found[name] = leaf, 1 if of_leaf is None else of_leaf.token_axis
    return found
