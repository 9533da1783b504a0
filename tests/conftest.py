"""Eight CPU devices; warnings are errors by pyproject.toml."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture
def strict_promotion():
    """No implicit promotion of dtypes or ranks. Not for tests with optax.adam, whose bias correction promotes."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
