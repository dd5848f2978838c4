"""Which pod and which address belong to which slice. Resolving again costs as much as has changed.

A :class:`Membership` carries an index of its inputs, and :func:`resolve` continues from the last Membership. It copies
what it changes: a pass may fail and start again from the same Membership.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import compress, takewhile
from operator import is_, is_not, truth
from typing import Final, NamedTuple, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from slicebw.core.desired import Pod, Selector, SelectorOperator, SliceKey, SliceSpec

OLDER_HAS_IT: Final = "it belongs to the older SliceBandwidth "
"""How the reason begins, followed by the winner, where two SliceBandwidths select one pod."""


class PodProblem(Struct, frozen=True, gc=False):
    """A pod that a SliceBandwidth selects and does not get, and why."""

    pod: str
    reason: str

    @property
    def is_conflict(self) -> bool:
        """Whether another SliceBandwidth has the pod; else the pod itself is why it is left out."""
        return self.reason.startswith(OLDER_HAS_IT)


_T = TypeVar("_T")

_Claim = tuple[SliceKey, ...]
"""The SliceBandwidths that select a pod, oldest first. The first one has the pod."""

_Bucket = tuple[str, str] | str | None
"""Pods with this label and value, with this label and any value, or (None) all pods."""

_Files = Mapping[_Bucket, tuple[SliceSpec, ...]]


@dataclass(frozen=True, slots=True)
class _Selectors:
    """The selectors of one namespace, indexed by one requirement of each."""

    files: _Files = field(default_factory=dict)
    """A spec here may be an older version with the same key, age and selector."""
    asked: Mapping[_Bucket, int] = field(default_factory=dict)
    """How many selectors have a requirement for this bucket."""

    def changed(self, gone: Iterable[SliceSpec], come: Iterable[SliceSpec]) -> "_Selectors":
        """Return the selectors without ``gone`` and with ``come``."""
        keys, asked, files = {spec.key for spec in gone}, Counter(self.asked), dict(self.files)
        asked.update(_all_buckets(come))
        asked.subtract(_all_buckets(gone))
        for bucket in set(_all_buckets(gone)):
            files[bucket] = tuple(spec for spec in files.get(bucket, ()) if spec.key not in keys)
        _file(files, come, asked)
        return _Selectors({bucket: specs for bucket, specs in files.items() if specs}, +asked)

    def only(self, specs: Iterable[SliceSpec]) -> _Files:
        """Index only these specs, by the requirements that are rare in this namespace."""
        files: dict[_Bucket, tuple[SliceSpec, ...]] = {}
        _file(files, specs, self.asked)
        return files


@dataclass(frozen=True, slots=True)
class _Index:
    """The inputs of a membership, and what is derived from them."""

    slices: tuple[SliceSpec, ...] = ()
    pods: tuple[Pod, ...] = ()
    """This also keeps the pods alive whose ``id()`` is a key of ``claims``."""
    selectors: Mapping[str, _Selectors] = field(default_factory=dict)
    """By namespace."""
    claims: Mapping[int, _Claim] = field(default_factory=dict)
    """By the pod's ``id()``."""
    holders: Mapping[str, tuple[Pod, ...]] = field(default_factory=dict)
    """The pods that have an address: one, except while an address passes to a new pod."""
    counts: Mapping[SliceKey, int] = field(default_factory=dict)
    """How many addresses a slice has."""


@dataclass(frozen=True, slots=True)
class Membership:
    """The outcome: addresses by slice, and what stands in the way of others.

    A slice is *present* on the node when at least one of its pods has an address here.
    """

    addresses: Mapping[str, SliceKey] = field(default_factory=dict)
    present: frozenset[SliceKey] = frozenset()
    problems: Mapping[SliceKey, tuple[PodProblem, ...]] = field(default_factory=dict)
    index: _Index = field(default_factory=_Index, repr=False, compare=False)
    """For :func:`resolve` only."""


class _Move(NamedTuple):
    """A pod whose claim changed. ``before`` is None for a new pod, ``after`` is None for a pod that is gone."""

    pod: Pod
    before: _Claim | None
    after: _Claim | None


def age(spec: SliceSpec) -> tuple[int, SliceKey]:
    """Sort key: the older SliceBandwidth first; of two made in one second, the one whose name sorts first."""
    return spec.created_s, spec.key


def with_last_good_selectors(slices: Iterable[SliceSpec], before: Iterable[SliceSpec]) -> tuple[SliceSpec, ...]:
    """Return the slices. One with an invalid selector keeps the selector from ``before``, and with it its pods.

    One that never had a valid selector has no pods: nobody knows which were meant. A result that equals the spec in
    ``before`` is the same object.
    """
    known = {spec.key: spec for spec in before}

    def mended(spec: SliceSpec) -> SliceSpec:
        was = known.get(spec.key)
        if was is None or was.selector is None:
            return spec
        made = replace(spec, selector=was.selector)
        return was if made == was else made

    return tuple(spec if spec.selector is not None else mended(spec) for spec in slices)


def resolve(slices: Iterable[SliceSpec], pods: Iterable[Pod], last: Membership | None = None) -> Membership:
    """Give every pod to the oldest SliceBandwidth of its namespace that selects it.

    Finished pods have no addresses any more. hostNetwork pods send as the node itself (host), and pods without an
    address send nothing yet: both are named as problems of the slice that would have them. An address that two
    pods claim is the newer pod's: the older one's deletion is on its way.

    Args:
        slices: every SliceBandwidth, each once.
        pods: every pod, each once.
        last: an earlier membership. It does not change the result. With it, only the slices and pods that are not
            the same objects as in ``last`` are matched, and parts of the result that are equal are the same objects.
    """
    last = Membership() if last is None else last  # from nothing is the same as after nothing
    was, slices, pods = last.index, tuple(slices), tuple(pods)
    if slices is was.slices and pods is was.pods:
        return last
    selectors, changed = _reselected(was, slices)
    moves = _moves(was, pods, selectors, changed)
    claims = dict(was.claims)
    # By id(), because hashing a pod with its labels costs more than all the rest; _Index keeps the pods alive.
    for pod, _, after in moves:
        if after is None:
            del claims[id(pod)]
        else:
            claims[id(pod)] = after
    holders = _holders(was.holders, moves)
    addresses, counts, present = _addresses(last, moves, claims, holders)
    index = _Index(slices, pods, selectors, claims, holders, counts)
    return Membership(addresses, present, _problems(last.problems, moves), index)


def _reselected(was: _Index, slices: tuple[SliceSpec, ...]) -> tuple[Mapping[str, _Selectors], Mapping[str, _Files]]:
    """Return by namespace all selectors, and an index of only the old and new versions of those that changed."""
    gone, come = _difference(was.slices, slices)
    earlier = {spec.key: (spec.created_s, spec.selector) for spec in gone}
    # New limits do not change which pods are selected.
    same = {spec.key for spec in come if earlier.get(spec.key) == (spec.created_s, spec.selector)}
    left, joined = defaultdict[str, list[SliceSpec]](list), defaultdict[str, list[SliceSpec]](list)
    for specs, by_namespace in ((gone, left), (come, joined)):
        for spec in specs:
            if spec.key not in same:
                by_namespace[spec.key.namespace].append(spec)
    selectors, changed = dict(was.selectors), {}
    for name in left.keys() | joined.keys():
        selectors[name] = selectors.get(name, _Selectors()).changed(left[name], joined[name])
        changed[name] = selectors[name].only((*left[name], *joined[name]))
        if not selectors[name].asked:
            del selectors[name]
    return selectors, changed


def _buckets(selector: Selector | None) -> list[tuple[_Bucket, ...]]:
    """The buckets of each requirement that can be indexed (In, Exists); if there is none, the bucket of all pods."""
    if selector is None:
        return []
    found: list[tuple[_Bucket, ...]] = []
    for requirement in selector.requirements:
        if requirement.operator is SelectorOperator.IN:
            found.append(tuple((requirement.key, value) for value in dict.fromkeys(requirement.values)))
        elif requirement.operator is SelectorOperator.EXISTS:
            found.append((requirement.key,))
    return found or [(None,)]


def _all_buckets(specs: Iterable[SliceSpec]) -> Iterator[_Bucket]:
    return (bucket for spec in specs for buckets in _buckets(spec.selector) for bucket in buckets)


def _file(
    files: dict[_Bucket, tuple[SliceSpec, ...]], specs: Iterable[SliceSpec], asked: Mapping[_Bucket, int]
) -> None:
    """Add each spec under its rarest requirement: a label that all slices ask for would not tell them apart."""
    for spec in specs:
        rarest = min(_buckets(spec.selector), key=lambda buckets: sum(asked.get(one, 0) for one in buckets), default=())
        for bucket in rarest:
            files[bucket] = (*files.get(bucket, ()), spec)


def _may_select(files: _Files, labels: Mapping[str, str]) -> bool:
    """Return False if no selector can match. This check is much cheaper than :func:`_selecting`."""
    buckets = files.keys()
    return not buckets.isdisjoint(labels.items()) or not buckets.isdisjoint(labels) or None in buckets


def _selecting(files: _Files, labels: Mapping[str, str]) -> list[SliceSpec]:
    """Return the specs that select a pod with these labels."""
    return [
        spec
        for bucket in (*labels.items(), *labels, None)
        for spec in files.get(bucket, ())
        if spec.selector is not None and spec.selector.matches(labels)
    ]


def _claim(selectors: Mapping[str, _Selectors], pod: Pod) -> _Claim:
    known = selectors.get(pod.namespace)
    if known is None or pod.finished:
        return ()
    return tuple(spec.key for spec in sorted(_selecting(known.files, pod.labels), key=age))


def _moves(
    was: _Index, pods: tuple[Pod, ...], selectors: Mapping[str, _Selectors], changed: Mapping[str, _Files]
) -> list[_Move]:
    """List the pods that are gone, then those whose claim changed, then those that are new."""
    gone, come = _difference(was.pods, pods)
    moves = [_Move(pod, was.claims[id(pod)], None) for pod in gone]
    for pod in pods if changed else ():
        files, before = changed.get(pod.namespace), was.claims.get(id(pod))
        if files is None or before is None or not _may_select(files, pod.labels):
            continue
        if _selecting(files, pod.labels) and (after := _claim(selectors, pod)) != before:
            moves.append(_Move(pod, before, after))
    moves.extend(_Move(pod, None, _claim(selectors, pod)) for pod in come)
    return moves


def _difference(before: tuple[_T, ...], after: tuple[_T, ...]) -> tuple[list[_T], list[_T]]:
    """Return the objects that are only in ``before``, and those that are only in ``after``, by identity."""
    # Sets of 10,000 ids are slow. Usually a few objects are replaced, inserted or removed: skip the common start and
    # end first, then objects at the same position.
    start = _common(before, after)
    before, after = before[start:], after[start:]
    end = _common(before[::-1], after[::-1])
    before, after = before[: len(before) - end], after[: len(after) - end]
    if len(before) == len(after):
        differ = list(map(is_not, before, after))
        before, after = tuple(compress(before, differ)), tuple(compress(after, differ))
    old, new = set(map(id, before)), set(map(id, after))
    return [one for one in before if id(one) not in new], [one for one in after if id(one) not in old]


def _common(before: tuple[_T, ...], after: tuple[_T, ...]) -> int:
    """The length of the common start, by identity."""
    return sum(takewhile(truth, map(is_, before, after)))


def _holders(before: Mapping[str, tuple[Pod, ...]], moves: Iterable[_Move]) -> Mapping[str, tuple[Pod, ...]]:
    moved = [move for move in moves if (move.before is None or move.after is None) and _own_addresses(move.pod)]
    if not moved:
        return before
    holders = dict(before)
    for pod, _, after in moved:
        for address in _own_addresses(pod):
            others = tuple(one for one in holders.pop(address, ()) if one is not pod)
            if after is not None:
                holders[address] = (*others, pod)
            elif others:
                holders[address] = others
    return holders


def _own_addresses(pod: Pod) -> tuple[str, ...]:
    return () if pod.finished or pod.host_network else pod.addresses


def _addresses(
    last: Membership, moves: Iterable[_Move], claims: Mapping[int, _Claim], holders: Mapping[str, tuple[Pod, ...]]
) -> tuple[Mapping[str, SliceKey], Mapping[SliceKey, int], frozenset[SliceKey]]:
    """Return the slice of each address, the number of addresses of each slice, and the slices that have any."""
    owners: dict[str, SliceKey | None] = {}
    for address in {address for move in moves for address in _own_addresses(move.pod)}:
        # The newest pod has the address, even if it belongs to no slice: an older pod's slice must not pay for it.
        pods = holders.get(address)
        claim = claims[id(max(pods, key=_newness))] if pods else ()
        owner = claim[0] if claim else None
        if owner != last.addresses.get(address):
            owners[address] = owner
    if not owners:
        return last.addresses, last.index.counts, last.present
    addresses, counts = dict(last.addresses), dict(last.index.counts)
    moved: set[SliceKey] = set()
    for address, owner in owners.items():
        before = addresses.pop(address, None)
        if before is not None:
            counts[before] -= 1
            moved.add(before)
        if owner is not None:
            addresses[address] = owner
            counts[owner] = counts.get(owner, 0) + 1
            moved.add(owner)
    for key in moved:
        if not counts[key]:
            del counts[key]
    same = all((key in counts) == (key in last.present) for key in moved)
    return addresses, counts, last.present if same else frozenset(counts)


def _newness(pod: Pod) -> tuple[bool, int, str, str, str]:
    return not pod.deleting, pod.created_s, pod.uid, pod.namespace, pod.name


def _problems(
    before: Mapping[SliceKey, tuple[PodProblem, ...]], moves: Iterable[_Move]
) -> Mapping[SliceKey, tuple[PodProblem, ...]]:
    drafts: dict[SliceKey, list[PodProblem]] = {}

    def draft(key: SliceKey) -> list[PodProblem]:
        if key not in drafts:
            drafts[key] = list(before.get(key, ()))
        return drafts[key]

    for move in moves:
        for key, problem in _problems_of(move.pod, move.before):
            del draft(key)[bisect_left(draft(key), _by_pod(problem), key=_by_pod)]
        for key, problem in _problems_of(move.pod, move.after):
            insort(draft(key), problem, key=_by_pod)
    edited = {key: has for key, found in drafts.items() if (has := tuple(found)) != before.get(key, ())}
    return {key: has for key, has in {**before, **edited}.items() if has} if edited else before


def _by_pod(problem: PodProblem) -> tuple[str, str]:
    return problem.pod, problem.reason


def _problems_of(pod: Pod, claim: _Claim | None) -> Iterator[tuple[SliceKey, PodProblem]]:
    """Yield the problems of a pod.

    For the slice that has it, if the pod sends nothing of its own; for each younger slice, that it does not get the
    pod.
    """
    if not claim:
        return
    winner, *younger = claim
    if pod.host_network:
        reason = "it is a hostNetwork pod: its traffic is the node's own and counts as the host's"
        yield winner, PodProblem(str(pod), reason)
    elif not pod.addresses:
        yield winner, PodProblem(str(pod), "it has no address yet")
    for key in younger:
        yield key, PodProblem(str(pod), f"{OLDER_HAS_IT}{winner}")
