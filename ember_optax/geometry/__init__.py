"""Token geometry, measured: what token tables, their gradients and their trajectories look like.

Every function takes arrays and returns numbers, and changes nothing. It can be compiled, gives the same result for sharded
tables, and costs O(V D) or O(V D^2 + D^3), never V x V. `report` returns the metrics of a training run in one flat dictionary.

    metrics = geometry.report(params, grads, opt_state)  # {"geometry/embed/embedding/effective_rank": ..., ...}

>>> from ember_optax import geometry  # `geometry.report` has an example that runs

References:
  Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; docs/geometry.md
"""

from ._buckets import FrequencyBuckets, by_frequency
from ._gradients import Autocorrelation, FactorizationError, active_rows, factorization_error, gradient_autocorrelation
from ._isotropy import iso_score, mean_cosine_similarity, partition_isotropy
from ._norms import mean_row_norm, row_norms
from ._report import report
from ._spectrum import effective_rank, spectrum, stable_rank
from ._step_sizes import cold_row_ratio, row_step, table_states
from ._streaming import Streaming
from ._trajectories import Rays, random_walk, ray
from ._under_trained import UnderTrainedTokens, under_trained_tokens

__all__ = [
    "Autocorrelation",
    "FactorizationError",
    "FrequencyBuckets",
    "Rays",
    "Streaming",
    "UnderTrainedTokens",
    "active_rows",
    "by_frequency",
    "cold_row_ratio",
    "effective_rank",
    "factorization_error",
    "gradient_autocorrelation",
    "iso_score",
    "mean_cosine_similarity",
    "mean_row_norm",
    "partition_isotropy",
    "random_walk",
    "ray",
    "report",
    "row_norms",
    "row_step",
    "spectrum",
    "stable_rank",
    "table_states",
    "under_trained_tokens",
]
