"""Membership of pods in one namespace: one change, compared with computing all from nothing."""

import time
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from slicebw.core.desired import DEFAULT_LIMITS, Pod, Requirement, Selector, SelectorOperator, SliceKey, SliceSpec
from slicebw.core.membership import Membership, resolve
from tests.bench.frame import Row, at_least_times, count, in_turn, less

SIZES = ((100, 250), (4_000, 10_000))
MOVED_PODS = 100
NAMESPACE = "lab"
FROM_NOTHING = "from nothing"
NS_PER_MS = 1_000_000


def rows(quick: bool) -> Iterator[Row]:
    """Give one pod another address, and let one SliceBandwidth select a hundred pods of others."""
    for slices, pods in SIZES[:1] if quick else SIZES:
        case = f"{count(slices)}, {pods:,} pods"
        most = (slices, pods) == SIZES[-1]
        specs = tuple(_spec(number, [number]) for number in range(slices))
        here = tuple(_pod(number, slices) for number in range(pods))
        wide = (_spec(0, range(MOVED_PODS * slices // pods)), *specs[1:])
        half = pods // 2
        moved = (*here[:half], replace(here[half], addresses=("10.255.0.1",)), *here[half + 1 :])
        last = resolve(specs, here)
        found = in_turn(
            2 if quick else 15,
            {
                FROM_NOTHING: _cpu_ms(lambda: resolve(specs, here)),  # noqa: B023 - all are run in this iteration
                "pod": _cpu_ms(lambda: resolve(specs, moved, last)),  # noqa: B023
                "spec": _cpu_ms(lambda: resolve(wide, here, last)),  # noqa: B023
            },
        )
        reference = (FROM_NOTHING, found[FROM_NOTHING])
        yield less(case, "one pod changed: CPU", found["pod"], "ms", reference, at_least_times(30) if most else None)
        what = f"one selector changed, {MOVED_PODS} pods moved: CPU"
        yield less(case, what, found["spec"], "ms", reference, at_least_times(6) if most else None)


def _spec(number: int, selected: "range | list[int]") -> SliceSpec:
    """Make a SliceBandwidth that selects by two labels: one that all pods have, and one for each slice."""
    requirements = (
        Requirement("managed-by", SelectorOperator.IN, ("lab",)),
        Requirement("slice", SelectorOperator.IN, tuple(f"s{one}" for one in selected)),
    )
    name = f"slice-{number:05}"
    return SliceSpec(SliceKey(NAMESPACE, name), f"uid-{name}", 1, number, Selector(requirements), DEFAULT_LIMITS)


def _pod(number: int, slices: int) -> Pod:
    name = f"pod-{number:06}"
    labels = {"app": "web", "managed-by": "lab", "pod-template-hash": f"h{number}", "slice": f"s{number % slices}"}
    addresses = (f"10.0.{number >> 8}.{number & 255}", f"fd00::{number + 1:x}")
    return Pod(NAMESPACE, name, f"uid-{name}", labels, addresses, False, False, number)


def _cpu_ms(action: Callable[[], Membership]) -> Callable[[], float]:
    """Measure CPU time, which does not include the work of other programs on a busy machine."""

    def measure() -> float:
        begun_ns = time.process_time_ns()
        action()
        return (time.process_time_ns() - begun_ns) / NS_PER_MS

    return measure
