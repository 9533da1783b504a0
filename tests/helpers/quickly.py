"""Compiling as little as XLA can be made to, for tests whose cost is compiling."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest

# XLA's older emitters of fusions take 40 % of the time: 0.14 s instead of 0.35 s for a step of `ember`.
OPTIONS = {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def _accepted() -> bool:
    """Whether this version of XLA still knows the options; without them tests take longer and that is all."""
    try:
        jax.jit(lambda x: x, compiler_options=OPTIONS)(0.0)
    except jax.errors.JaxRuntimeError:
        return False
    return True


@contextmanager
def quickly_compiled() -> Iterator[None]:
    """Without optimizations of XLA and with `OPTIONS`, which JAX has no setting for, here and in processes started here."""
    compiler = getattr(getattr(jax, "_src", None), "compiler", None)
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(compiler, "get_compile_options") and _accepted():
            original = compiler.get_compile_options

            @functools.wraps(original)
            def get_compile_options(*args, env_options_overrides=None, **kwargs):
                return original(*args, env_options_overrides=OPTIONS | dict(env_options_overrides or {}), **kwargs)

            patch.setattr(compiler, "get_compile_options", get_compile_options)
            flags = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
            patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip())
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", False)
            jax.clear_caches()  # other files must not inherit the programs
