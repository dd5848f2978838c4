from itertools import permutations

from msgspec.structs import replace

from slicebw.core.membership import resolve, with_last_good_selectors
from slicebw.core.model import Requirement, Selector, SelectorOperator, SliceKey
from tests.unit.core.builders import pod, spec

KEY = SliceKey("ns", "slice")


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
