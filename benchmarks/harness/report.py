"""How results are shown: tables as the documents have them, their places there, and pictures."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from tabulate import tabulate

matplotlib.use("Agg")
LARGEST_PICTURE = 300_000


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
