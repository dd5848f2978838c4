"""HTB trees like the core's, for tests of the kernel ports."""

from collections.abc import Iterable

from slicebw.core.dataplane import (
    DEFAULT_ID,
    HOST_ID,
    HOST_SHARE,
    MIN_KERNEL_RATE_BPS,
    PARENTS,
    QUANTUM_PER_SHARE_BYTES,
    TOP,
    ClassSpec,
    CreateClass,
    CreateRoot,
    TreeChange,
    leaf,
)
from slicebw.core.desired import TrafficClass

LINE_RATE_BPS = 10_000_000_000


def tree(slice_ids: Iterable[int] = (1, 2), *, line_rate_bps: int = LINE_RATE_BPS) -> dict[int, ClassSpec]:
    """Make a whole tree by minor: host, default and these slices. No class limits below the line rate."""
    specs = {TOP: ClassSpec(TOP, 0, line_rate_bps, line_rate_bps)}
    for parent in PARENTS.values():
        specs[parent] = ClassSpec(parent, TOP, MIN_KERNEL_RATE_BPS, line_rate_bps)
    for slice_id in (HOST_ID, DEFAULT_ID, *slice_ids):
        share = HOST_SHARE if slice_id == HOST_ID else 1
        for traffic_class, parent in PARENTS.items():
            minor = leaf(traffic_class, slice_id)
            quantum = share * QUANTUM_PER_SHARE_BYTES
            specs[minor] = ClassSpec(minor, parent, MIN_KERNEL_RATE_BPS, line_rate_bps, quantum, minor)
    return specs


def creation(specs: dict[int, ClassSpec]) -> list[TreeChange]:
    """Return the changes that create a tree on a device without one."""
    return [CreateRoot(), *(CreateClass(specs[minor]) for minor in sorted(specs))]


STANDARD, EXEMPT = TrafficClass.STANDARD, TrafficClass.EXEMPT
