from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from slicebw.core.desired import Pod, Requirement, Selector, SelectorOperator, SliceKey, SliceSpec
from slicebw.core.membership import OLDER_HAS_IT, Membership, PodProblem, age, resolve, with_last_good_selectors
from tests.unit.core.builders import pod, spec

KEY = SliceKey("ns", "slice")
LABELS = ("app", "team")
VALUES = ("a", "b")


def test_every_pod_of_the_namespace_belongs_to_the_slice() -> None:
    found = resolve([spec()], [pod("ns/a", "10.0.0.1", "fd00::1"), pod("other/b", "10.0.0.2")])
    assert found.addresses == {"10.0.0.1": KEY, "fd00::1": KEY}
    assert found.present == {KEY}


def test_of_two_slices_that_select_a_pod_the_older_has_it_and_the_younger_is_told() -> None:
    old, young = spec("ns/z-old", created_s=1), spec("ns/a-young", created_s=2)
    for order in permutations([old, young]):
        found = resolve(order, [pod("ns/a", "10.0.0.1")])
        assert found.addresses == {"10.0.0.1": old.key}
        (problem,) = found.problems[young.key]
        assert problem.pod == "ns/a"
        assert "ns/z-old" in problem.reason


def test_of_two_made_in_one_second_the_name_decides() -> None:
    found = resolve([spec("ns/b"), spec("ns/a")], [pod("ns/p", "10.0.0.1")])
    assert found.addresses["10.0.0.1"] == SliceKey("ns", "a")


def test_pods_of_the_host_network_and_pods_without_an_address_are_named() -> None:
    pods = [pod("ns/host", "192.0.2.1", host_network=True), pod("ns/pending")]
    found = resolve([spec()], pods)
    assert found.present == frozenset()
    assert [problem.pod for problem in found.problems[KEY]] == ["ns/host", "ns/pending"]


def test_a_finished_pod_has_no_address_any_more() -> None:
    assert not resolve([spec()], [pod("ns/done", "10.0.0.1", finished=True)]).addresses


def test_an_address_passes_to_the_newer_pod_whatever_the_order_of_events() -> None:
    old = pod("ns/old", "10.0.0.1", created_s=1)
    for new in (pod("other/new", "10.0.0.1", created_s=2), pod("other/new", "10.0.0.1", created_s=0)):
        leaving = replace(old, deleting=new.created_s < old.created_s)
        for order in permutations([leaving, new]):
            found = resolve([spec(), spec("other/slice")], order)
            assert found.addresses == {"10.0.0.1": SliceKey("other", "slice")}


def test_an_address_that_a_slices_pod_had_is_not_charged_to_it_once_a_pod_of_no_slice_has_it() -> None:
    pods = [pod("ns/old", "10.0.0.1", created_s=1), pod("free/new", "10.0.0.1", created_s=2)]
    assert not resolve([spec()], pods).addresses


def test_selectors_mean_what_they_mean_in_kubernetes() -> None:
    table = [
        (Requirement("app", SelectorOperator.IN, ("web", "api")), [True, False, False]),
        (Requirement("app", SelectorOperator.NOT_IN, ("web",)), [False, True, True]),
        (Requirement("app", SelectorOperator.EXISTS), [True, True, False]),
        (Requirement("app", SelectorOperator.DOES_NOT_EXIST), [False, False, True]),
    ]
    for requirement, expected in table:
        selector = Selector((requirement,))
        assert [selector.matches(labels) for labels in ({"app": "web"}, {"app": "db"}, {})] == expected
    assert Selector().matches({})


def test_an_invalid_selector_selects_nothing() -> None:
    assert not resolve([replace(spec(), selector=None)], [pod("ns/a", "10.0.0.1")]).addresses


def test_a_selector_that_became_wrong_is_the_last_good_one_and_of_a_new_slice_none() -> None:
    good = replace(spec(), selector=Selector((Requirement("app", SelectorOperator.EXISTS),)))
    bad = replace(good, selector=None, generation=2, errors=("spec.podSelector: wrong",))
    new = replace(bad, key=SliceKey("ns", "new"))
    kept, unknown = with_last_good_selectors([bad, new], [good])
    assert kept == replace(bad, selector=good.selector)
    assert unknown == new
    assert with_last_good_selectors([good], [replace(good, selector=Selector())]) == (good,)


def test_a_selector_that_stays_wrong_leaves_the_slice_the_same_object() -> None:
    good = replace(spec(), selector=Selector((Requirement("app", SelectorOperator.EXISTS),)))
    bad = replace(good, selector=None, generation=2, errors=("spec.podSelector: wrong",))
    (kept,) = with_last_good_selectors([bad], [good])
    (again,) = with_last_good_selectors([bad], [kept])
    assert again is kept


requirements = st.builds(
    Requirement,
    st.sampled_from(LABELS),
    st.sampled_from(SelectorOperator),
    st.lists(st.sampled_from(VALUES), max_size=2).map(tuple),
)
selectors = st.none() | st.lists(requirements, max_size=3).map(lambda found: Selector(tuple(found)))
specs = st.builds(
    lambda name, created_s, selector, generation: replace(
        spec(name, created_s=created_s), selector=selector, generation=generation
    ),
    st.sampled_from([f"{namespace}/{number}" for namespace in ("ns", "other") for number in range(4)]),
    st.integers(0, 2),
    selectors,
    st.integers(1, 2),
)
pods = st.builds(
    lambda name, addresses, **changes: pod(name, *addresses, **changes),
    st.sampled_from([f"{namespace}/{number}" for namespace in ("ns", "other", "free") for number in range(4)]),
    st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]), max_size=2, unique=True),
    labels=st.dictionaries(st.sampled_from(LABELS), st.sampled_from(VALUES)),
    host_network=st.integers(0, 4).map(lambda one: one == 0),
    finished=st.integers(0, 4).map(lambda one: one == 0),
    deleting=st.booleans(),
    created_s=st.integers(0, 2),
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.lists(specs, max_size=3), st.lists(pods, max_size=3), st.none() | st.randoms()), max_size=12)
)
def test_whatever_comes_changes_and_goes_the_outcome_is_that_of_a_beginning(
    steps: list[tuple[list[SliceSpec], list[Pod], Random | None]],
) -> None:
    """A spec or a pod that is named again changes, or goes where it is the same; the others stay the same objects."""
    known: dict[object, SliceSpec] = {}
    here: dict[str, Pod] = {}
    last = Membership()
    for changed, moved, random in steps:
        for one in changed:
            known.pop(one.key) if known.get(one.key) == one else known.update({one.key: one})
        for each in moved:
            here.pop(str(each)) if here.get(str(each)) == each else here.update({str(each): each})
        slices, on_node = list(known.values()), list(here.values())
        if random is not None:
            random.shuffle(slices)
            random.shuffle(on_node)
        found = resolve(slices, on_node, last)
        assert found == resolve(slices, on_node) == _by_hand(slices, on_node)
        assert resolve(slices, on_node, last) == found, "the last one serves twice"
        _assert_equal_parts_are_the_same(found, last)
        last = found


def _by_hand(slices: Sequence[SliceSpec], pods: Sequence[Pod]) -> Membership:
    """What is documented, in the simplest way: every pod asks every SliceBandwidth."""
    owners: dict[str, SliceKey | None] = {}
    problems: defaultdict[SliceKey, list[PodProblem]] = defaultdict(list)
    for one in sorted(pods, key=lambda pod: (not pod.deleting, pod.created_s, pod.uid)):
        selecting = [
            each.key
            for each in sorted(slices, key=age)
            if each.key.namespace == one.namespace and each.selector and each.selector.matches(one.labels)
        ]
        if one.finished:
            continue
        for loser in selecting[1:]:
            problems[loser].append(PodProblem(str(one), f"{OLDER_HAS_IT}{selecting[0]}"))
        if one.host_network or not one.addresses:
            trouble = "it is a hostNetwork pod: its traffic is the node's own and counts as the host's"
            reason = trouble if one.host_network else "it has no address yet"
            for winner in selecting[:1]:
                problems[winner].append(PodProblem(str(one), reason))
        else:
            owners.update(dict.fromkeys(one.addresses, selecting[0] if selecting else None))
    addresses = {address: owner for address, owner in owners.items() if owner is not None}
    named = {key: tuple(sorted(found, key=lambda problem: problem.pod)) for key, found in problems.items()}
    return Membership(addresses, frozenset(addresses.values()), named)


def _assert_equal_parts_are_the_same(found: Membership, last: Membership) -> None:
    for part in ("addresses", "present", "problems"):
        assert (getattr(found, part) == getattr(last, part)) == (getattr(found, part) is getattr(last, part)), part
    for key, problems in found.problems.items():
        assert (problems == last.problems.get(key)) == (problems is last.problems.get(key)), key


class _Counted(Selector, frozen=True):
    """A selector that counts how often it was asked, in ``counted``."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        counted.append(self)
        return super().matches(labels)


counted: list[Selector] = []


def _labels(number: int) -> dict[str, str]:
    return {"managed-by": "lab", "slice": f"s{number}", "app": "web"}


def _slice(number: int, **changes: object) -> SliceSpec:
    asked = [(key, SelectorOperator.IN, (value,)) for key, value in list(_labels(number).items())[:2]]
    selector = _Counted(tuple(Requirement(*one) for one in asked))
    return replace(spec(f"ns/{number}"), **{"selector": selector, **changes})


@pytest.mark.parametrize("slices", [10, 400])
def test_a_pod_asks_only_slices_that_its_labels_lead_to(slices: int) -> None:
    """One changed pod, and then one changed spec, cost the same beside ten slices as beside four hundred."""
    known = tuple(_slice(number) for number in range(slices))
    here = tuple(pod(f"ns/{number}", f"10.0.{number % 8}.{number}", labels=_labels(number)) for number in range(slices))
    last = resolve(known, here)
    moved = (*here[:5], replace(here[5], labels=_labels(6)), *here[6:])
    other = (*known[:5], _slice(5, selector=_Counted(_slice(7).selector.requirements)), *known[6:])  # type: ignore[union-attr]
    limited = (*known[:5], replace(known[5], limits=None, generation=2), *known[6:])
    for given_slices, given_pods, most in ((known, moved, 1), (other, here, 6), (limited, here, 0)):
        counted.clear()
        found = resolve(given_slices, given_pods, last)
        assert len(counted) <= most
        assert found == resolve(given_slices, given_pods)
