"""Benchmarks need what the tests on the real kernel need, and are skipped, or fail, by the same rule without it."""

from tests.kernel.conftest import kernel

__all__ = ["kernel"]
