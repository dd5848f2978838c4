"""When a table that was read is returned again. The contract suite tests that both classifiers use the cache."""

import pytest

from slicebw.core.dataplane import NftTable
from slicebw.core.errors import KernelError
from slicebw.kernel.table_cache import TABLE_CHECK_NS, TableCache


class Kernel:
    """Returns another table at each read, and counts reads."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.readings = 0
        self.failing = False
        self.cache = TableCache(lambda: self.now_ns)

    def read(self) -> NftTable:
        self.readings += 1
        if self.failing:
            raise KernelError("no answer")
        return NftTable({"10.0.0.1": self.readings})

    def get(self) -> NftTable:
        return self.cache.get(self.read)


@pytest.fixture
def kernel() -> Kernel:
    """A cache with notifications, after one read."""
    made = Kernel()
    made.cache.start()
    made.get()
    return made


def test_without_notifications_every_call_reads() -> None:
    kernel = Kernel()
    assert kernel.get() != kernel.get()


def test_what_was_read_before_notifications_came_is_not_kept() -> None:
    kernel = Kernel()
    kernel.get()
    kernel.cache.start()
    kernel.get()
    assert kernel.readings == 2


def test_with_notifications_the_same_object_is_given_for_ten_seconds(kernel: Kernel) -> None:
    kept = kernel.get()
    kernel.now_ns = TABLE_CHECK_NS - 1
    assert kernel.get() is kept
    kernel.now_ns = TABLE_CHECK_NS
    assert kernel.get() is not kept
    assert kernel.readings == 2


def test_when_notifications_end_every_call_reads(kernel: Kernel) -> None:
    kernel.cache.stop()
    assert kernel.get() != kernel.get()


def test_invalidate_causes_one_read(kernel: Kernel) -> None:
    kernel.cache.invalidate()
    assert kernel.get() is kernel.get()
    assert kernel.readings == 2


def test_invalidate_during_a_read_causes_another_one(kernel: Kernel) -> None:
    def read() -> NftTable:
        kernel.cache.invalidate()
        return kernel.read()

    kernel.cache.invalidate()
    kernel.cache.get(read)
    kernel.get()
    assert kernel.readings == 3


def test_after_a_reading_that_failed_the_next_call_reads(kernel: Kernel) -> None:
    kernel.cache.invalidate()
    kernel.failing = True
    with pytest.raises(KernelError):
        kernel.get()
    kernel.failing = False
    kernel.get()
    assert kernel.readings == 3
