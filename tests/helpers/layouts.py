"""The ways in which the tests lay a table over eight devices."""

import math

import jax
import pytest
from jax.sharding import PartitionSpec

V, D = 96, 40
MESH = {"tp": 2, "fsdp": 4}
# Of a (V, D) table; a (D, V) table takes the two entries in the other order.
SPECS = [(None, None), ("fsdp", None), (None, "tp"), ("fsdp", "tp"), (("tp", "fsdp"), None)]
LAYOUTS = pytest.mark.parametrize("token_axis", [0, 1])


def make_mesh(axis_type):
    return jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(axis_type,) * len(MESH))


def table_shape(token_axis):
    return (V, D) if token_axis == 0 else (D, V)


def table_spec(spec, token_axis):
    return PartitionSpec(*(spec if token_axis == 0 else spec[::-1]))


def parts(spec):
    """Over how many devices the tokens and the features are split."""

    def count(entry):
        return math.prod(MESH[name] for name in ((entry,) if isinstance(entry, str) else entry or ()))

    return tuple(map(count, spec))
