"""Which pod belongs to which slice, and which address to which class."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from slicebw.core.model import Pod, SliceKey, SliceSpec
from slicebw.core.reports import OLDER_HAS_IT, PodProblem


class Membership(Struct, frozen=True):
    """The outcome: addresses by slice, and what stands in the way of others.

    A slice is *present* on the node when at least one of its pods has an address here.
    """

    addresses: Mapping[str, SliceKey] = field(default_factory=dict)
    present: frozenset[SliceKey] = frozenset()
    problems: Mapping[SliceKey, tuple[PodProblem, ...]] = field(default_factory=dict)


def age(spec: SliceSpec) -> tuple[int, SliceKey]:
    """Sort key: the older SliceBandwidth first; of two made in one second, the one whose name sorts first."""
    return spec.created_s, spec.key


def with_last_good_selectors(slices: Iterable[SliceSpec], before: Iterable[SliceSpec]) -> tuple[SliceSpec, ...]:
    """The slices; one whose selector is wrong keeps the one it had ``before``, and with it its pods and their limits.

    One that never had a right selector has no pods: nobody knows which were meant.
    """
    known = {spec.key: spec.selector for spec in before}
    return tuple(
        replace(spec, selector=known.get(spec.key)) if spec.selector is None and known.get(spec.key) else spec
        for spec in slices
    )


def resolve(slices: Iterable[SliceSpec], pods: Iterable[Pod]) -> Membership:
    """Give every pod to the oldest SliceBandwidth of its namespace that selects it.

    Finished pods have no addresses any more. hostNetwork pods send as the node itself (root), and pods without an
    address send nothing yet: both are named as problems of the slice that would have them. An address that two
    pods claim is the newer pod's: the older one's deletion is on its way.
    """
    by_namespace: dict[str, list[SliceSpec]] = defaultdict(list)
    for spec in sorted(slices, key=age):
        by_namespace[spec.key.namespace].append(spec)

    addresses: dict[str, SliceKey] = {}
    problems: dict[SliceKey, list[PodProblem]] = defaultdict(list)
    for pod in sorted(pods, key=lambda pod: (not pod.deleting, pod.created_s, pod.uid)):
        if pod.finished:
            continue
        winner = _winner(pod, by_namespace.get(pod.namespace, ()), problems)
        if winner is None:
            # Whoever claimed this address before is older: the new pod's packets must not be charged to it.
            for address in () if pod.host_network else pod.addresses:
                addresses.pop(address, None)
        elif pod.host_network:
            reason = "it is a hostNetwork pod: its traffic is the node's own and counts as root's"
            problems[winner.key].append(PodProblem(str(pod), reason))
        elif not pod.addresses:
            problems[winner.key].append(PodProblem(str(pod), "it has no address yet"))
        else:
            addresses.update(dict.fromkeys(pod.addresses, winner.key))
    return Membership(
        addresses,
        frozenset(addresses.values()),
        {key: tuple(sorted(found, key=lambda problem: problem.pod)) for key, found in problems.items()},
    )


def _winner(
    pod: Pod, candidates: Sequence[SliceSpec], problems: Mapping[SliceKey, list[PodProblem]]
) -> SliceSpec | None:
    """The oldest of the SliceBandwidths that select the pod; the younger ones get a problem each."""
    winner: SliceSpec | None = None
    for spec in candidates:
        if spec.selector is None or not spec.selector.matches(pod.labels):
            continue
        if winner is None:
            winner = spec
        else:
            reason = f"{OLDER_HAS_IT}{winner.key}"
            problems[spec.key].append(PodProblem(str(pod), reason))
    return winner
