"""Regularizers of token tables: terms for a loss, and transformations of updates.

docs/regularizers.md has what they do to the geometry of a table and to the loss, measured on a small model. Some change the
geometry as intended, at a cost in loss. The caller chooses signs and coefficients.

    loss += regularizers.over_tables(functools.partial(regularizers.anisotropy, coefficient=0.1), params)
    tx = optax.chain(ember(1e-2, optax.adamw(1e-3)), regularizers.normalize_spectral_norm(10.0))

>>> from ember_optax import regularizers  # each of them has an example that runs

References:
  docs/regularizers.md
"""

from ._alignment import RareAndFrequent, frequency_alignment, sampled_tokens
from ._anisotropy import anisotropy
from ._frequency import FrequencyState, frequency_weights, scale_by_frequency, updated_counts
from ._rows import cap_row_steps, center_rows
from ._spectral import SpectralState, normalize_spectral_norm, singular_vector, spectral_penalty
from ._terms import over_tables

__all__ = [
    "FrequencyState",
    "RareAndFrequent",
    "SpectralState",
    "anisotropy",
    "cap_row_steps",
    "center_rows",
    "frequency_alignment",
    "frequency_weights",
    "normalize_spectral_norm",
    "over_tables",
    "sampled_tokens",
    "scale_by_frequency",
    "singular_vector",
    "spectral_penalty",
    "updated_counts",
]
