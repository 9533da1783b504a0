"""Parameter paths of real models, with the vocabulary axis of each that is a table (`tests/data`)."""

import csv
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"


def read_rows(name):
    lines = [line for line in (DATA / name).read_text().splitlines() if not line.startswith("#")]
    return [
        (row["path"], tuple(map(int, row["shape"].split("x"))), int(row["token_axis"]) if row["token_axis"] else None)
        for row in csv.DictReader(lines)
    ]


ROWS = {name: read_rows(name) for name in ("table_paths.csv", "library_paths.csv")}


def nested(path, leaf):
    for name in reversed(path.split("/")):
        leaf = {name: leaf}
    return leaf
