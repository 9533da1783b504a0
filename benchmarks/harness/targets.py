"""TPUs and GPUs that need not exist: their compilers run on any machine, and tell what a program would cost there.

The compilers are the extras `tpu-compiler` and `gpu-compiler`. What they tell is an account, not a clock.
"""

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


class Target(NamedTuple):
    """Chips of one kind.

    Attributes:
      platform: "tpu" or "cuda".
      topology: what `jax.experimental.topologies` calls a slice with at least `chips` of them.
      chips: how many of its chips a program uses.
      memory: bytes of one chip that a program can use; for TPUs the limit from which their compiler refuses a program.
    """

    platform: str
    topology: str
    chips: int
    memory: int


_GIB = 2**30
_MEMORY = {"v5e": int(15.75 * _GIB), "v5p": int(95.74 * _GIB), "v6e": int(31.25 * _GIB), "H100": 84_942_979_072}
_TOPOLOGIES = {
    "v5e": {1: "v5e:2x4", 8: "v5e:2x4", 256: "v5e:16x16"},
    "v5p": {1: "v5p:2x2x1", 8: "v5p:2x2x2", 256: "v5p:4x8x8"},
    "v6e": {1: "v6e:2x4", 8: "v6e:2x4", 256: "v6e:16x16"},
}
TARGETS = {
    name if chips == 1 else f"{chips} x {name}": Target("tpu", topology, chips, _MEMORY[name])
    for name, of_size in _TOPOLOGIES.items()
    for chips, topology in of_size.items()
} | {"H100": Target("cuda", "1x1x1", 1, _MEMORY["H100"])}

# What XLA has to know of an H100, a `GpuTargetConfigProto` (from that device's description in XLA's own tests).
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def use_compilers() -> None:
    """Call it before JAX does anything: nothing runs here but on the CPU, and the compilers look for no device."""
    jax.config.update("jax_platforms", "cpu")
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-8", TPU_WORKER_HOSTNAMES="localhost")
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # of a device there can be one user, of a compiler several
    if (nvcc := _folder_of_nvcc()) is not None:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_cuda_data_dir={nvcc}"


def _folder_of_nvcc() -> Path | None:
    """Where the package `nvidia-cuda-nvcc-cu12` has put its assembler."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) / "cuda_nvcc" for folder in (spec.submodule_search_locations or [])] if spec else []
    return next((folder for folder in folders if folder.exists()), None)


def has_compiler(target: Target) -> bool:
    """Whether the compiler for a target is installed."""
    package = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda12"}[target.platform]
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def available(names: list[str]) -> list[str]:
    """Those targets whose compiler is installed.

    Raises:
      SystemExit: none is.
    """
    found = [name for name in names if has_compiler(TARGETS[name])]
    if not found:
        raise SystemExit(f'no compiler for {", ".join(names)}: pip install -e ".[tpu-compiler,gpu-compiler]"')
    return found


@functools.cache  # arrays of one program have to lie on the very same devices
def _devices(target: Target) -> list[Any]:
    options: dict[str, Any] = {"topology": target.topology, "target_config": _H100} if target.platform == "cuda" else {}
    return topologies.get_topology_desc(target.topology, target.platform, **options).devices[: target.chips]


def mesh_of(name: str, **axes: int) -> Mesh:
    """A mesh of a target's chips: the given axes and sizes, or one axis "chips" over all of them."""
    target = TARGETS[name]
    axes = axes or {"chips": target.chips}
    return Mesh(np.array(_devices(target)).reshape(tuple(axes.values())), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def on_chip(name: str, tree: Any) -> Any:
    """The arrays of a tree as abstract arguments that lie on a target, whole on each of its chips."""
    whole = NamedSharding(mesh_of(name), PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree)
