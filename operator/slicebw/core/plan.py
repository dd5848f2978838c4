"""From desired and observed to the changes that make them equal. A second plan is empty."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from slicebw.core.dataplane import (
    DEFAULT_ID,
    HOST_ID,
    HOST_SHARE,
    MIN_KERNEL_RATE_BPS,
    NO_CEILING_BPS,
    PARENTS,
    QUANTUM_PER_SHARE_BYTES,
    TOP,
    ChangeClass,
    ClassSpec,
    CreateClass,
    CreateRoot,
    DeleteClass,
    NftTable,
    ObservedClass,
    ObservedTree,
    RemoveRoot,
    RemoveTable,
    ReplaceLeafQdisc,
    ReplaceTable,
    ResetTokens,
    RootQdisc,
    TableChange,
    TreeChange,
    UpdateTable,
    kernel_rate,
    leaf,
)
from slicebw.core.desired import Mode, NodeSettings, TrafficClass
from slicebw.core.policy import Rates, ceiling_bps, class_cap_bps, unclassified_ceiling_bps

DEBT_RATE_BPS: Final = 1_000_000
"""Below this rate one 64 KiB GSO packet puts a class into token debt for more than half a second."""


def frame(settings: NodeSettings) -> dict[int, ClassSpec]:
    """Return the classes that always exist: top, standard, exempt, and the leaves of host and default."""
    # Where a device reports no speed its line rate is a guess, which must not hold anyone in Monitor mode.
    line_bps = kernel_rate(settings.line_rate_bps) if settings.mode is Mode.ENFORCE else NO_CEILING_BPS
    classes = {TOP: ClassSpec(TOP, 0, line_bps, line_bps)}
    for traffic_class, parent in PARENTS.items():
        ceil_bps = kernel_rate(ceiling_bps(settings, traffic_class))
        # The smallest rate: standard and exempt share the line by their leaves' quanta, neither goes before the other.
        classes[parent] = ClassSpec(parent, TOP, MIN_KERNEL_RATE_BPS, ceil_bps)
        unclassified_bps = kernel_rate(unclassified_ceiling_bps(settings, traffic_class))
        for slice_id, share, most_bps in ((HOST_ID, HOST_SHARE, ceil_bps), (DEFAULT_ID, 1, unclassified_bps)):
            spec = leaf_class(traffic_class, slice_id, Rates(MIN_KERNEL_RATE_BPS, most_bps), share)
            classes[spec.minor] = spec
    return classes


def leaf_class(traffic_class: TrafficClass, slice_id: int, rates: Rates, share: int) -> ClassSpec:
    """Return one leaf. Its quantum is its weight for spare bandwidth (PlanetLab: share * 1600)."""
    minor = leaf(traffic_class, slice_id)
    quantum = share * QUANTUM_PER_SHARE_BYTES
    return ClassSpec(minor, PARENTS[traffic_class], rates.min_bps, rates.max_bps, quantum, leaf_major=minor)


def leaf_minors(slice_ids: Iterable[int]) -> frozenset[int]:
    """Return the minors of both leaves of each of these ids."""
    ids, standard, exempt = list(slice_ids), leaf(TrafficClass.STANDARD, 0), leaf(TrafficClass.EXEMPT, 0)
    return frozenset([*[standard | slice_id for slice_id in ids], *[exempt | slice_id for slice_id in ids]])


def overcommitment(settings: NodeSettings, desired: Mapping[int, ClassSpec]) -> str | None:
    """Say what the guarantees of all slices add up to, if that is more than the node can give; else return None."""
    total_bps = dict.fromkeys([*PARENTS.values(), TOP, 0], 0)
    for spec in desired.values():
        total_bps[spec.parent] += spec.rate_bps
    words = []
    for traffic_class, parent in PARENTS.items():
        limit_bps = class_cap_bps(settings, traffic_class)
        if total_bps[parent] > limit_bps:
            words.append(f"{traffic_class}: minRates add up to {total_bps[parent]} bit/s of {limit_bps} bit/s")
    return "; ".join(words) or None


def plan_tree(
    desired: Mapping[int, ClassSpec] | None,
    observed: ObservedTree,
    quiet: Collection[int],
    stuck: Collection[int] = (),
    planned: Iterable[TreeChange] | None = None,
) -> tuple[TreeChange, ...]:
    """Return the changes that bring the device's tree to ``desired``, parents before children.

    Args:
        desired: every class by minor; None: no tree at all.
        observed: one complete dump.
        quiet: minors of classes with an empty queue that nothing is sent to any more; unwanted ones are deleted.
        stuck: the same with a queue that does not move; that of an unwanted one is dropped. Others are left to drain.
        planned: the changes of the desired classes, if they are known already.
    """
    if observed.root is RootQdisc.FOREIGN:
        return ()
    if desired is None:
        return (RemoveRoot(),) if observed.root is RootQdisc.OURS else ()
    ours = observed.root is RootQdisc.OURS
    classes = observed.classes if ours else {}
    if planned is None:
        planned = (change for minor, spec in desired.items() for change in plan_class(spec, classes.get(minor)))
    changes: list[TreeChange] = [] if ours else [CreateRoot()]
    # By minor, because parents have smaller ones than their children.
    changes.extend(sorted(planned, key=_minor))
    changes.extend(_emptied(classes[minor]) for minor in sorted(stuck) if minor not in desired)
    changes.extend(DeleteClass(minor) for minor in _removable(desired, classes, quiet))
    return tuple(changes)


def plan_class(spec: ClassSpec, observed: ObservedClass | None) -> Iterable[TreeChange]:
    """Yield the changes that bring one class to ``spec``; nothing if it is so already."""
    if observed is None:
        yield CreateClass(spec)
    elif observed.parent != spec.parent:
        # HTB cannot move a class: the next pass makes it again under its parent.
        yield DeleteClass(spec.minor)
    elif not matches(spec, observed):
        yield ResetTokens(spec) if _may_be_in_debt(spec, observed) else ChangeClass(spec)
        if observed.leaf_major != spec.leaf_major:
            yield ReplaceLeafQdisc(spec.minor, spec.leaf_major)
    elif observed.leaf_major != spec.leaf_major:
        yield ReplaceLeafQdisc(spec.minor, spec.leaf_major)


def _emptied(observed: ObservedClass) -> TreeChange:
    """Drop the queue of a class. Then it sends no more, its counter stands, and the next pass can delete it."""
    same = ClassSpec(
        observed.minor,
        observed.parent,
        observed.rate_bps,
        observed.ceil_bps,
        observed.quantum_bytes,
        observed.minor,
    )
    return ResetTokens(same)


def matches(spec: ClassSpec, observed: ObservedClass) -> bool:
    """Tell whether a class has the desired rates and quantum. HTB ignores the quantum of inner classes."""
    same_rates = (observed.rate_bps, observed.ceil_bps) == (spec.rate_bps, spec.ceil_bps)
    return same_rates and (spec.quantum_bytes in (0, observed.quantum_bytes))


def _may_be_in_debt(spec: ClassSpec, observed: ObservedClass) -> bool:
    """Tell whether a leaf's rate or ceiling at least doubles from one so low that its debt may last many seconds."""
    if not spec.leaf_major:
        return False
    raised = ((observed.ceil_bps, spec.ceil_bps), (observed.rate_bps, spec.rate_bps))
    return any(old_bps < DEBT_RATE_BPS and new_bps >= 2 * old_bps for old_bps, new_bps in raised)


def _removable(
    desired: Mapping[int, ClassSpec], classes: Mapping[int, ObservedClass], quiet: Collection[int]
) -> list[int]:
    """Return the unwanted, quiet classes without children. A parent follows in the pass after its last child."""
    unwanted = [minor for minor in quiet if minor in classes and minor not in desired]
    if not unwanted:
        return []
    # HTB refuses to delete a class that has children.
    parents = {observed.parent for observed in classes.values()}
    return sorted(minor for minor in unwanted if minor not in parents)


def _minor(change: TreeChange) -> int:
    return minor_of(change) or 0


def minor_of(change: TreeChange) -> int | None:
    """Return the minor of the class that a change is about, or None for the whole tree."""
    match change:
        case CreateRoot() | RemoveRoot():
            return None
        case DeleteClass(minor=minor) | ReplaceLeafQdisc(minor=minor):
            return minor
        case CreateClass(spec=spec) | ChangeClass(spec=spec) | ResetTokens(spec=spec):
            return spec.minor


def drift_repairs(
    changes: Iterable[TreeChange], desired: Mapping[int, ClassSpec] | None, before: Mapping[int, ClassSpec] | None
) -> tuple[TreeChange, ...]:
    """Return the changes that repair drift: the same was desired ``before``, and it held then."""

    def is_repair(change: TreeChange) -> bool:
        minor = minor_of(change)
        if minor is None:
            return (before is not None) == isinstance(change, CreateRoot)
        return desired is not None and before is not None and minor in desired and desired[minor] == before.get(minor)

    return tuple(change for change in changes if is_repair(change))


def unmet(changes: Iterable[TreeChange], observed: ObservedTree) -> tuple[TreeChange, ...]:
    """Return the changes that a dump made after them does not show."""
    return tuple(change for change in changes if not _is_met(change, observed))


def _is_met(change: TreeChange, observed: ObservedTree) -> bool:
    match change:
        case CreateRoot():
            return observed.root is RootQdisc.OURS
        case RemoveRoot():
            return observed.root is not RootQdisc.OURS
        case DeleteClass(minor=minor):
            return minor not in observed.classes
        case ReplaceLeafQdisc(minor=minor, leaf_major=leaf_major):
            found = observed.classes.get(minor)
            return found is not None and found.leaf_major == leaf_major
        case CreateClass(spec=spec) | ChangeClass(spec=spec) | ResetTokens(spec=spec):
            found = observed.classes.get(spec.minor)
            return found is not None and matches(spec, found) and found.leaf_major == spec.leaf_major


def plan_table(desired: NftTable | None, observed: NftTable) -> TableChange | None:
    """Return the one transaction that brings the nftables table to ``desired``; None: no table."""
    if desired is None:
        return RemoveTable() if observed.present else None
    if not observed.intact:
        return ReplaceTable(desired)
    if (
        desired.slice_id_by_address == observed.slice_id_by_address
        and desired.exempt_destinations == observed.exempt_destinations
    ):
        return None  # almost always, and comparing whole dictionaries is twenty times as fast as finding differences
    # Comparing views is several times as fast as looking up each of thousands of addresses.
    differ = {address for address, _ in desired.slice_id_by_address.items() ^ observed.slice_id_by_address.items()}
    remove = sorted(differ & observed.slice_id_by_address.keys())
    add = sorted(
        (address, desired.slice_id_by_address[address]) for address in differ & desired.slice_id_by_address.keys()
    )
    exempt_remove = sorted(observed.exempt_destinations - desired.exempt_destinations)
    exempt_add = sorted(desired.exempt_destinations - observed.exempt_destinations)
    if not (remove or add or exempt_remove or exempt_add):
        return None
    return UpdateTable(tuple(remove), tuple(add), tuple(exempt_remove), tuple(exempt_add))
