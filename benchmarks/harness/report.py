"""How results are shown: tables as the documents have them, their places there, and pictures."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from tabulate import tabulate

matplotlib.use("Agg")
LARGEST_PICTURE = 300_000
# Of a name beside a point, in pixels: the height of its line, and about the width of a character.
_LINE, _CHARACTER = 15, 6.5


def markdown(rows: Iterable[Sequence[str]], headers: Sequence[str], names: int = 1) -> str:
    """A table whose first `names` columns are words, the others numbers and so aligned to the right."""
    align = ("left",) * names + ("right",) * (len(headers) - names)
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align)


def sent(elements: dict[str, int]) -> str:
    """What is sent from device to device, by kind of collective.

    Example:
      >>> sent({"all-reduce": 5377}), sent({})
      ('all-reduce 5,377', 'nothing')
    """
    return ", ".join(f"{operation} {count:,}" for operation, count in elements.items()) or "nothing"


def put(page: Path, name: str, text: str) -> None:
    """Writes a table between `<!-- name -->` and the next `<!-- end -->` of a page; a page without that place stays as it is."""
    place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    page.write_text(place.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page.read_text(encoding="utf-8")), encoding="utf-8")


def name_points(figure: Figure, axis: Axes, names: Sequence[tuple[float, float, str, Any]]) -> None:
    """Writes names beside points: (x, y, text, color) each, on the right where there is room.

    Names that would cover each other are moved up. Call it last: it goes by the limits of the axes.
    """
    figure.draw_without_rendering()
    right = axis.get_window_extent().x1
    placed: list[tuple[float, float, float]] = []
    for x, y, text, color in sorted(names, key=lambda name: name[1]):
        place_x, place_y = axis.transData.transform((x, y))
        width = _CHARACTER * (len(text) + 2)
        on_left = place_x + width > right
        start = place_x - width if on_left else place_x
        covered = [top for first, last, top in placed if first < start + width and start < last]
        lowest = max([place_y - _LINE / 2, *covered])
        placed.append((start, start + width, lowest + _LINE))
        axis.annotate(
            text,
            (x, y),
            ((-7 if on_left else 7), (lowest + _LINE / 2 - place_y) * 72 / figure.dpi),
            textcoords="offset points",
            ha="right" if on_left else "left",
            va="center",
            color=color,
            fontsize=8,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def save_picture(path: Path, figure: Figure, dpi: int = 100) -> None:
    """Writes a PNG and closes the figure.

    Raises:
      ValueError: the picture is too large to be kept in a repository.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
    size = path.stat().st_size
    if size >= LARGEST_PICTURE:
        raise ValueError(f"{path} has {size:,} bytes, and {LARGEST_PICTURE:,} are too many: draw less, or at less than {dpi} dpi")
