"""Ember ("Token Geometry", arXiv 2607.01455) for Optax: embedding tables and LM heads with O(V + D) optimizer state."""

from . import geometry as geometry
from . import large_tables as large_tables
from . import losses as losses
from . import regularizers as regularizers
from . import row_sparse as row_sparse
from . import vocab as vocab
from ._math.state import ScaleByEmberState as ScaleByEmberState
from ._optimizer.ember import ember as ember
from ._optimizer.scale_by_ember import scale_by_ember as scale_by_ember
from ._optimizer.stochastic import StochasticRoundingState as StochasticRoundingState
from ._optimizer.stochastic import stochastic_rounding as stochastic_rounding
from ._state.checkpoint import check_shapes as check_shapes
from ._state.checksums import checksums as checksums
from ._state.checksums import verify_checksums as verify_checksums
from ._state.convert import state_from_adam as state_from_adam
from ._state.sharding import state_partition_specs as state_partition_specs
from ._state.sharding import state_shardings as state_shardings
from ._state.skipped import check_skipped_batches as check_skipped_batches
from ._state.skipped import skipped_batches as skipped_batches
from ._tree.describe import describe_token_tables as describe_token_tables
from ._tree.dimension_numbers import EmberDimensionNumbers as EmberDimensionNumbers
from ._tree.finder import TokenTables as TokenTables
from ._tree.finder import token_table_labels as token_table_labels
from ._tree.finder import token_tables as token_tables

__version__ = "0.1.0"
