"""Tests that need fq_codel, which Debian's kernel has: ``make test-debian-kernel`` runs them there."""

import pytest

from tests.kernel.conftest import do_without, kernel, lab, shaper
from tests.support.round_trips import has_fq_codel

__all__ = ["fq_codel", "kernel", "lab", "shaper"]


@pytest.fixture(scope="session", autouse=True)
def fq_codel(kernel: None) -> None:
    """A kernel with fq_codel. Without one: skip the test, or fail if SLICEBW_REQUIRE_KERNEL=1."""
    if not has_fq_codel():
        do_without("this kernel has no fq_codel: run make test-debian-kernel")
