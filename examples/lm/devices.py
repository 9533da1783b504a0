"""Processes, devices and the mesh over them; how parameters and batches lie on it."""

import argparse
import hashlib
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .config import DevicesConfig
from .errors import UsageError

MESH_AXES = ("data", "fsdp", "tp")
# By the name of the layer: vocabulary over fsdp, the wide side of a block over tp. Norms are replicated.
_SPECS = {
    "embed": P("fsdp", "tp"),
    "lm_head": P("tp", "fsdp"),
    "qkv": P("fsdp", "tp"),
    "gate_up": P("fsdp", "tp"),
    "attention_out": P("tp", "fsdp"),
    "mlp_out": P("tp", "fsdp"),
}


def mesh_sizes(text: str) -> dict[str, int]:
    """Parses `data=2,fsdp=4`; axes that are not named have size one."""
    sizes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in MESH_AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise argparse.ArgumentTypeError(f"{text} is not a list like data=2,fsdp=4 with axes of {', '.join(MESH_AXES)}")
        sizes[name] = int(size)
    return {name: sizes.get(name, 1) for name in MESH_AXES}


def start_processes(config: DevicesConfig) -> None:
    """Simulates CPU devices and joins the other processes; before any other use of JAX.

    Raises:
      UsageError: JAX finds no other processes.
    """
    if config.cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if config.several_processes:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            heartbeat: dict[str, Any] = (
                {} if config.heartbeat_timeout is None else {"heartbeat_timeout_seconds": config.heartbeat_timeout}
            )
            jax.distributed.initialize(*config.by_hand, **heartbeat)
        except ValueError as error:
            raise UsageError(f"--distributed: JAX found no cluster here ({error}); name it with --coordinator") from error


def check_same_in_all_processes(settings: dict[str, Any]) -> None:
    """Raises UsageError in every process if one has other settings, which would otherwise wait for the rest for ever."""
    digests = [hashlib.sha256(repr(value).encode()).digest() for value in settings.values()]
    ours = np.frombuffer(b"".join(digests), np.uint32).reshape(len(settings), -1)
    everywhere = multihost_utils.process_allgather(ours).reshape(-1, *ours.shape)
    if differing := [name for name, same in zip(settings, (everywhere == ours).all((0, 2)), strict=True) if not same]:
        here = ", ".join(f"{name} = {settings[name]}" for name in differing)
        raise UsageError(f"the processes were started with different {', '.join(differing)}; this one has {here}")


def make_mesh(sizes: dict[str, int] | None, batch_size: int) -> Mesh:
    """A mesh of these sizes; None means one device, or data parallelism over all devices of several processes.

    Raises:
      UsageError: the sizes do not fit the devices or the batch.
    """
    devices = jax.device_count() if jax.process_count() > 1 else 1
    sizes = sizes or {"data": devices, "fsdp": 1, "tp": 1}
    wanted, found = math.prod(sizes.values()), jax.device_count()
    described = ",".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "data=1"
    if wanted > found or (jax.process_count() > 1 and wanted != found):
        raise UsageError(f"--mesh {described} needs {wanted} devices, there are {found}; --cpu-devices {wanted} simulates them")
    if batch_size % (sizes["data"] * sizes["fsdp"]):
        raise UsageError(
            f"--batch-size {batch_size} does not divide by the {sizes['data'] * sizes['fsdp']} parts of --mesh {described}: "
            f"data and fsdp split the batch"
        )
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """A tree of the parameters' structure with their shardings.

    Raises:
      UsageError: an axis of a parameter does not divide by its part of the mesh.
    """

    def sharding(path, leaf) -> NamedSharding:
        names = [key.key for key in path]
        spec = next((spec for layer, spec in _SPECS.items() if layer in names), P())
        for size, mesh_axis in zip(leaf.shape, spec, strict=False):
            if size % mesh.shape[mesh_axis]:
                raise UsageError(
                    f"--mesh {mesh_axis}={mesh.shape[mesh_axis]}: {'/'.join(names)} of shape {leaf.shape} does not divide by it"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, params)


def place_batch(batch: np.ndarray, mesh: Mesh) -> jax.Array:
    """Splits a batch, which every process has whole, over the data and fsdp axes."""
    sharding = NamedSharding(mesh, P(("data", "fsdp")))
    return jax.make_array_from_callback(batch.shape, sharding, lambda index: batch[index])


def report(text: str) -> None:
    """Prints, once for all processes."""
    if is_main_process():
        print(text, flush=True)


def is_main_process() -> bool:
    """Whether this process prints and writes results."""
    return jax.process_index() == 0
