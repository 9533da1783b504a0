"""How exact is the update over the whole range of float32? Against 50 decimal digits, at every power of ten of the gradient.

Beside it the equation as it is written, in float32: its products leave the range where the library's do not. The largest error
is that of any number of a 48 x 12 table in three steps, relative to the number itself.
"""

import warnings
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.harness.exact import ExactEmber
from benchmarks.harness.report import markdown, save_picture
from benchmarks.harness.results import PICTURES, RESULTS, machine, parser, save
from ember_optax import scale_by_ember

EXPONENTS = range(-44, 20)
PROMISED = range(-22, 18)  # within 1e-6 with the default eps
EPS = (1e-8, 0.0)
_V, _D, _STEPS, _B2 = 48, 12, 3, 0.999


def main() -> None:
    """Measures, prints the table, writes JSON and picture."""
    options = parser(__doc__).parse_args()
    del options
    errors = {f"{eps:g}": {name: [error(name, eps, exponent) for exponent in EXPONENTS] for name in FORMS} for eps in EPS}
    results = {"machine": machine(), "exponents": list(EXPONENTS), "errors": errors}
    save(RESULTS / "envelope.json", results)
    draw(results)
    print(table(results))


def error(form: str, eps: float, exponent: int) -> float | None:
    """The largest relative error of three updates, None where one is not finite."""
    rng, size = np.random.default_rng(0), (_STEPS, _V, _D)
    grads = rng.uniform(0.1, 1.0, size) * rng.choice([-1, 1], size)
    with np.errstate(over="ignore", under="ignore"):
        grads = (grads * 10.0**exponent).astype(np.float32)
    exact, step, worst = ExactEmber((_V, _D), _B2, eps), FORMS[form](eps), 0.0
    for g in grads:
        expected, found = exact.update(g), np.asarray(step(g), np.float64)
        if not np.isfinite(found).all():
            return None
        moved = expected != 0
        worst = max(worst, float((np.abs(found - expected)[moved] / np.abs(expected[moved])).max(initial=0.0)))
    return float(f"{worst:.3g}")


def _library(eps: float):
    tx = scale_by_ember(_B2, eps)
    state = tx.init(jnp.zeros((_V, _D)))

    def step(g):
        nonlocal state
        update, state = tx.update(jnp.asarray(g), state)
        return update

    return step


def _as_written(eps: float):
    """The equation in float32, operation by operation."""
    one, b2, added = np.float32(1), np.float32(_B2), np.float32(eps)
    token, feature, t = np.zeros((_V, 1), np.float32), np.zeros((1, _D), np.float32), 0

    def step(g):
        nonlocal token, feature, t
        t += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            token = b2 * token + (one - b2) * np.mean(g * g, 1, keepdims=True)
            feature = b2 * feature + (one - b2) * np.mean(g * g, 0, keepdims=True)
            return g / (np.sqrt(token * feature / np.mean(feature) / (one - b2**t)) + added)

    return step


FORMS = {"ember_optax": _library, "as written, float32": _as_written}


def draw(results: dict[str, Any]) -> None:
    """Error over the magnitude of the gradient; what is missing is not finite."""
    figure, axes = plt.subplots(1, len(results["errors"]), figsize=(11, 4), sharey=True, layout="constrained")
    for axis, (eps, of_forms) in zip(axes, results["errors"].items(), strict=True):
        for (form, errors), marker in zip(of_forms.items(), "o.", strict=True):
            values = [np.nan if e is None else max(e, 1e-9) for e in errors]
            axis.semilogy(results["exponents"], values, marker=marker, markersize=4, label=form)
        axis.axhline(1e-6, color="gray", linestyle="--", linewidth=1)
        if float(eps) == EPS[0]:
            axis.axvspan(PROMISED[0], PROMISED[-1], color="tab:green", alpha=0.1, label="promised")
        axis.set(title=f"eps = {eps}", xlabel="magnitude of the gradient, power of ten")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("largest relative error")
    axes[0].legend(fontsize=8)
    save_picture(PICTURES / "envelope.png", figure)


def table(results: dict[str, Any]) -> str:
    """The largest error in ranges of magnitudes."""
    rows = []
    for eps, of_forms in results["errors"].items():
        for form, errors in of_forms.items():
            by = dict(zip(results["exponents"], errors, strict=True))
            rows.append((eps, form, *(_largest([by[e] for e in span]) for span in _RANGES)))
    return markdown(rows, ("eps", "form", *(f"1e{span[0]} to 1e{span[-1]}" for span in _RANGES)), names=2)


_RANGES = (range(-44, -36), range(-36, -22), PROMISED, range(18, 20))


def _largest(errors: list[float | None]) -> str:
    finite = [e for e in errors if e is not None]
    missing = len(errors) - len(finite)
    return (f"{max(finite):.1e}" if finite else "") + (f"{', ' if finite else ''}{missing} not finite" if missing else "")


if __name__ == "__main__":
    main()
