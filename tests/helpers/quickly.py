"""Compiling as little as XLA can be made to: compiling is most of what the tests cost."""

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest


def _private(name: str) -> Any:
    """A module of JAX's own, None where this version has none of this name."""
    try:
        return importlib.import_module(f"jax._src.{name}")
    except ImportError:
        return None


# For a step of `ember`: 0.46 s of CPU without, 0.18 s with LLVM's optimizations off and XLA's older emitters of fusions, 0.12 s
# if one thread makes the code of all of a program too.
OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
# JAX's settings with the same aim, here and as users have them. To keep the lines of Python out of programs saves a tenth of the
# time of a step. Written out, since a worker inherits the environment of a process that compiles quickly.
SETTINGS = {"jax_disable_most_optimizations": (True, False), "jax_traceback_in_locations_limit": (0, 10)}
QUICK, FULL = ({name: of[place] for name, of in SETTINGS.items() if name in jax.config.values} for place in (0, 1))
# A worker that had all programs of its files would come to gigabytes; below this, files share what they have in common.
MOST_MEMORY = 2e9
# What JAX has no setting for: the options of all compilations, and one context of MLIR for many programs. With one for each, a
# tiny program takes a third longer.
_compiler, _lowering = (_private(name) for name in ("compiler", "interpreters.mlir"))


@functools.cache
def _accepted() -> dict[str, bool | int]:
    """The options that this version of XLA knows; without the others tests take longer and that is all."""
    return {name: value for name, value in OPTIONS.items() if _knows(name, value)}


def _knows(name: str, value: bool | int) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value})(0.0)
    except jax.errors.JaxRuntimeError:
        return False
    return True


_now = SimpleNamespace(options={})


def _flags_of_users() -> str:
    return " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag[2:].partition("=")[0] not in OPTIONS)


@contextmanager
def quickly_compiled() -> Iterator[None]:
    """With `QUICK` settings and `OPTIONS` and in one context, also in processes started here."""
    os.environ["XLA_FLAGS"] = _flags_of_users()  # a worker inherits those of a process that compiles quickly, for all it compiles
    options = _accepted()
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())
    with _setting(QUICK, f"{os.environ['XLA_FLAGS']} {flags}".strip(), options) as patch:
        if hasattr(_compiler, "get_compile_options"):
            original = _compiler.get_compile_options

            @functools.wraps(original)
            def get_compile_options(*args, env_options_overrides=None, **kwargs):
                return original(*args, env_options_overrides=_now.options | dict(env_options_overrides or {}), **kwargs)

            patch.setattr(_compiler, "get_compile_options", get_compile_options)
        if hasattr(_lowering, "make_ir_context"):
            patch.setattr(_lowering, "make_ir_context", functools.cache(_lowering.make_ir_context))
        yield


def forget_programs() -> None:
    """Everything that was compiled, and what it was written in."""
    jax.clear_caches()
    if hasattr(context := getattr(_lowering, "make_ir_context", None), "cache_clear"):
        context.cache_clear()


def forget_programs_if_many() -> None:
    """Between two files, if this process has more than `MOST_MEMORY`, or cannot tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        if pages * os.sysconf("SC_PAGE_SIZE") < MOST_MEMORY:
            return
    except OSError:  # not Linux
        pass
    forget_programs()


@contextmanager
def fully_compiled() -> Iterator[None]:
    """As users compile, within `quickly_compiled`. The two do not share programs."""
    with _setting(FULL, _flags_of_users(), {}):
        forget_programs()
        yield
    forget_programs()


@contextmanager
def _setting(settings: dict[str, bool | int], flags: str, options: dict[str, bool | int]) -> Iterator[pytest.MonkeyPatch]:
    """The options, JAX's settings, and the environment of processes that are started here."""
    before = {name: jax.config.values[name] for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(int(value)))
        patch.setenv("XLA_FLAGS", flags)
        patch.setattr(_now, "options", options)
        try:
            _update(settings)
            yield patch
        finally:
            _update(before)


def _update(settings: dict[str, bool | int]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
