"""Benchmarks run on the same machines as the tests on the real kernel, under the same rule about what is missing."""

from tests.kernel.conftest import kernel

__all__ = ["kernel"]
