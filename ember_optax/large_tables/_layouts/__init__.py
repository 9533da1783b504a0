"""Where the rows of a table are: in one process, or split by id over the processes and devices of a mesh.

Both layouts have the same methods, so that `HostTable` has one way of a step:

    requests   the ids of a batch, on the host, without communication
    agreed     what all processes read, and where it goes; communication over a mesh
    put, read  arrays on the host to the devices of this process, and back
"""

from typing import Any

from .one_device import OneDevice
from .over_mesh import OverMesh

__all__ = ["Layout", "layout_of"]

Layout = OneDevice | OverMesh


def layout_of(mesh: Any) -> Layout:
    """The layout of a table. Raises TypeError or ValueError if the mesh is none, or not one of all processes."""
    return OneDevice() if mesh is None else OverMesh(mesh)
