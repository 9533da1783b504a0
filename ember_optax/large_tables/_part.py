"""The folder in which a process keeps its part of a table, and its lock."""

import os
import re
from pathlib import Path
from typing import Any

from .._tree.inputs import shown
from ._layouts import Layout

try:
    import fcntl
except ImportError:  # Windows has no flock, and two writers are not noticed there
    fcntl = None  # pyright: ignore[reportAttributeAccessIssue]

_NAME = re.compile(r"part_(\d+)_of_(\d+)")


def part_of(path: Any, layout: Layout) -> Path:
    """`path` for one process, and a folder in it for each of several.

    Raises:
      TypeError: `path` is not a name.
      ValueError: it is that of a file, or of a table of another number of processes, or has only parts of other processes.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise TypeError(f"path must be the name of a folder, got {shown(path)}; pass path='memory', or None for host memory.")
    path = Path(path).expanduser().absolute()  # another folder may become the current one
    if path.exists() and not path.is_dir():
        raise ValueError(f"path {str(path)!r} is a file, but a table needs a folder: pass another name.")
    names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    parts = {int(found[1]): int(found[2]) for name in names if (found := _NAME.fullmatch(name))}
    counts = {*parts.values(), *([1] if "rows" in names else [])} - {layout.parts}
    if counts:
        raise ValueError(
            f"the table in {str(path)!r} is split over {min(counts)} process{'es' * (min(counts) > 1)}, but this one over "
            f"{layout.parts}: start as many as before with a mesh of them, or pass another path for a new table."
        )
    if layout.parts == 1:
        return path
    own = path / f"part_{layout.part}_of_{layout.parts}"
    others = [part for part in sorted(parts) if (path / f"part_{part}_of_{layout.parts}" / "save").exists()]
    if others and not any((own / name).exists() for name in ("save", "save.new")):
        raise ValueError(
            f"path {str(path)!r} has the parts of the processes {others}, but not that of this process, {layout.part}: start the "
            f"processes in the order of before, or copy its part."
        )
    return own


def locked(path: Path) -> int | None:
    """The number of the lock's file. The operating system unlocks it when the process ends, however it ends."""
    number = os.open(path / "lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        raise ValueError(
            f"path {str(path)!r} is open in another HostTable: two writers would mix their steps. Close the other, or pass "
            f"another path."
        ) from None
    return number
