"""`enable_x64(True)` as a context, under the name that each JAX has for it."""

import jax

if hasattr(jax, "enable_x64") and jax.__version_info__ >= (0, 8):
    enable_x64 = jax.enable_x64
else:
    from jax.experimental import enable_x64

__all__ = ["enable_x64"]
