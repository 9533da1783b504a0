"""Parameter trees of whole models, with what the finder must make of each leaf (`tests/data/*_models.txt`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from published_paths import DATA

from ember_optax import EmberDimensionNumbers


class ModelTree(NamedTuple):
    """A model: the shape of each leaf by path, the tables with their dimension numbers, and what must be named in a warning."""

    shapes: dict[str, tuple[int, ...]]
    tables: dict[str, EmberDimensionNumbers]
    named: set[str]
    include: list[str]

    @property
    def params(self):
        """Nested dictionaries of shapes."""
        tree = {}
        for path, shape in self.shapes.items():
            *parents, last = path.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
        return tree


def read_models(name: str) -> dict[str, ModelTree]:
    models: dict[str, ModelTree] = {}
    for line in filter(None, (DATA / name).read_text().splitlines()):
        if line.startswith("== "):
            model = models[line[3:]] = ModelTree({}, {}, set(), [])
        elif line.startswith("!include "):
            model.include.append(line.split()[1])
        elif not line.startswith("#"):
            path, shape, *said = line.split()
            assert path not in model.shapes, line
            model.shapes[path] = tuple(map(int, shape.split("x")))
            if said == ["?"]:
                model.named.add(path)
            elif said:
                axis, *batch = map(int, said[0].split(","))
                model.tables[path] = EmberDimensionNumbers(axis, tuple(batch), said[1])
    return models
