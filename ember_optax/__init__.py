"""Ember ("Token Geometry", arXiv 2607.01455) for Optax: embedding tables and LM heads with O(V + D) optimizer state."""

from . import row_sparse as row_sparse
from ._alias import ember as ember
from ._checkpoint import check_shapes as check_shapes
from ._convert import state_from_adam as state_from_adam
from ._describe import describe_token_tables as describe_token_tables
from ._dimension_numbers import EmberDimensionNumbers as EmberDimensionNumbers
from ._sharding import state_partition_specs as state_partition_specs
from ._sharding import state_shardings as state_shardings
from ._tables import token_table_labels as token_table_labels
from ._tables import token_tables as token_tables
from ._transform import ScaleByEmberState as ScaleByEmberState
from ._transform import scale_by_ember as scale_by_ember

__version__ = "0.1.0"
