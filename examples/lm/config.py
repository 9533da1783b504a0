"""What a run of `pretrain.py` is told, checked once, when it is made; every helper gets the part that it needs.

The fields are named like the options of the command line, so that messages about them name the option.
"""

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any, Self

from .errors import UsageError
from .regularizing import Chosen, check_head, check_row_sparse
from .table_options import check_table_options

# The name of the run with row-sparse steps.
ROW_SPARSE = "ember, row-sparse"
# And of the one whose head has no gradient in an array.
FUSED = "ember, fused head"
_PADDED_MULTIPLE = 256


@dataclasses.dataclass(frozen=True)
class Part:
    """Options that belong together."""

    @classmethod
    def from_options(cls, options: Namespace) -> Self:
        """Takes the options that are named like the fields."""
        return cls(**{field.name: getattr(options, field.name) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class TextConfig(Part):
    """The text to train on, None for the standard library, and where its tokens are kept."""

    data: Path | None
    cache_dir: Path


@dataclasses.dataclass(frozen=True)
class ModelConfig(Part):
    """Sizes of the transformer; `tied` shares the embedding with the head, `table_dtype` is that of both tables.

    The tables have `rows` rows, the vocabulary padded to a multiple of 256: most meshes divide that, and because it does not
    depend on the mesh, a checkpoint can move to another one. Padding rows never get a gradient, and Ember leaves them where
    they are.
    """

    vocabulary_size: int
    width: int
    layers: int
    heads: int
    tied: bool
    table_dtype: str = "float32"

    def __post_init__(self):
        if self.width % (2 * self.heads):
            raise UsageError(f"--width {self.width} must be a multiple of 2 * --heads ({2 * self.heads}), for rotary positions")

    @property
    def rows(self) -> int:
        """Rows of the token tables, at least `vocabulary_size`."""
        return -(-self.vocabulary_size // _PADDED_MULTIPLE) * _PADDED_MULTIPLE


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Part):
    """How long, on what, and how often to validate."""

    steps: int
    batch_size: int
    sequence_length: int
    seed: int
    validate_every: int


@dataclasses.dataclass(frozen=True)
class RatesConfig(Part):
    """Peak learning rates: AdamW's for the body, Ember's and AdamW's for the tables."""

    learning_rate: float
    ember_learning_rate: float
    adamw_table_learning_rate: float


@dataclasses.dataclass(frozen=True)
class RunsConfig(Part):
    """Which runs to compare.

    `row_sparse` and `fused_head` add Ember with such steps, and the dense one to compare them with. `rounding` is that of tables
    in 16 bits.
    """

    optimizers: list[str]
    row_sparse: bool
    fused_head: bool = False
    rounding: str = "stochastic"

    @property
    def names(self) -> list[str]:
        """The runs in their order."""
        added = [name for name, wanted in ((ROW_SPARSE, self.row_sparse), (FUSED, self.fused_head)) if wanted]
        return [*dict.fromkeys([*self.optimizers, "ember"]), *added] if added else self.optimizers


@dataclasses.dataclass(frozen=True)
class DevicesConfig(Part):
    """The mesh, simulated devices, and how processes that train together find each other."""

    mesh: dict[str, int] | None
    cpu_devices: int | None
    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    distributed: bool
    heartbeat_timeout: int | None

    def __post_init__(self):
        if None in self.by_hand and self.by_hand != (None, None, None):
            raise UsageError(
                "--coordinator, --num-processes and --process-id belong together: give all three, or --distributed alone"
            )
        if self.process_id is not None and self.num_processes is not None and self.process_id >= self.num_processes:
            raise UsageError(f"--process-id {self.process_id} must be below --num-processes {self.num_processes}")
        if self.heartbeat_timeout is not None and not self.several_processes:
            raise UsageError("--heartbeat-timeout needs several processes: give --coordinator or --distributed too")

    @property
    def by_hand(self) -> tuple[str | None, int | None, int | None]:
        """What `jax.distributed.initialize` takes: address, number and place of the processes."""
        return self.coordinator, self.num_processes, self.process_id

    @property
    def several_processes(self) -> bool:
        """Whether this process joins others."""
        return self.distributed or self.coordinator is not None


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Part):
    """Where and how often to save, whether to go on from there; `stop_after` ends a session before the last step."""

    checkpoint_dir: Path | None
    checkpoint_every: int
    resume: bool
    stop_after: int | None

    def __post_init__(self):
        for option, value in (("--resume", self.resume), ("--stop-after", self.stop_after)):
            if value and self.checkpoint_dir is None:
                raise UsageError(f"{option} needs --checkpoint-dir")

    def last_step(self, steps: int) -> int:
        """The last step of this session, of a run of `steps` steps."""
        return min(steps, self.stop_after or steps)


@dataclasses.dataclass(frozen=True)
class OutputConfig(Part):
    """Where the results go."""

    name: str
    output_dir: Path

    @property
    def folder(self) -> Path:
        """The folder of this comparison's results."""
        return self.output_dir / self.name


@dataclasses.dataclass(frozen=True)
class GeometryConfig(Part):
    """Whether, and every how many steps, the tables and their gradients are measured."""

    geometry: bool
    geometry_every: int


@dataclasses.dataclass(frozen=True)
class RegularizerConfig(Part):
    """The regularizers of every run, in their order."""

    regularizer: list[Chosen]

    @property
    def names(self) -> list[str] | None:
        """As they are written, for settings; None without any, as runs have it that know of none."""
        return [str(one) for one in self.regularizer] or None


@dataclasses.dataclass(frozen=True)
class Config:
    """All of it."""

    text: TextConfig
    model: ModelConfig
    training: TrainingConfig
    rates: RatesConfig
    runs: RunsConfig
    devices: DevicesConfig
    checkpoints: CheckpointConfig
    output: OutputConfig
    geometry: GeometryConfig
    regularizers: RegularizerConfig

    def __post_init__(self):
        check_head(self.regularizers.regularizer, tied=self.model.tied)
        if self.runs.row_sparse:
            check_row_sparse(self.regularizers.regularizer)
        of_tables = self.model.table_dtype, self.runs.rounding
        check_table_options(self.regularizers.regularizer, *of_tables, fused_head=self.runs.fused_head)
        if self.runs.row_sparse and self.model.tied:
            raise UsageError(
                "--row-sparse needs an input table of its own: a tied one has a gradient in every row; leave out --tied"
            )

        if self.runs.fused_head and self.model.rows != self.model.vocabulary_size:
            raise UsageError(
                f"--fused-head needs a vocabulary without rows of padding, which its loss would count: give --vocabulary-size a "
                f"multiple of {_PADDED_MULTIPLE}"
            )

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides a run's trajectory: a checkpoint goes on, and processes work together, only where all of it is equal."""
        parts = (self.model, self.training, self.rates)
        told = {key: value for part in parts for key, value in dataclasses.asdict(part).items()}
        return told | {"regularizer": self.regularizers.names, "rounding": self.runs.rounding}

    @property
    def shared(self) -> dict[str, Any]:
        """What processes must do together, though all but `decisive` may change when a run is resumed."""
        together = {"mesh": self.devices.mesh, "optimizers": self.runs.names}
        return self.decisive | together | dataclasses.asdict(self.checkpoints) | dataclasses.asdict(self.geometry)

    @property
    def settings(self) -> dict[str, Any]:
        """All that JSON can hold: a path may be of one machine alone, and only the name of the text is kept."""
        flat = {key: value for part in dataclasses.asdict(self).values() for key, value in part.items()}
        plain = {key: value for key, value in flat.items() if not isinstance(value, Path)}
        data = "standard library" if self.text.data is None else self.text.data.name
        return plain | {"optimizers": self.runs.names, "data": data, "regularizer": self.regularizers.names}
