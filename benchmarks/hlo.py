"""The former name of `benchmarks.harness.compiled.collectives`, under which a test still imports it."""

from benchmarks.harness.compiled import collectives

__all__ = ["collectives"]
