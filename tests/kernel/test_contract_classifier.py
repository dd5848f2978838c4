"""What every Classifier must do: the same tests over the fake and over nftables."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slicebw.agent.ports import Classifier
from slicebw.core.dataplane import NftTable, RemoveTable, ReplaceTable, UpdateTable
from slicebw.core.desired import collapse
from slicebw.core.errors import KernelError
from slicebw.core.plan import plan_table
from slicebw.kernel.fake import FakeClassifier
from slicebw.kernel.nft import NftClassifier
from slicebw.kernel.table_cache import TABLE_CHECK_NS
from tests.support.topology import wait_until

FIRST = NftTable({"10.0.0.1": 1, "10.0.0.2": 0xFFE, "fd00::1": 1}, frozenset({"192.0.2.0/24", "2001:db8::/32"}))
NOTHING = NftTable(intact=False, present=False)


@pytest.fixture(params=["fake", "kernel"])
def classifier(request: pytest.FixtureRequest) -> Iterator[Classifier]:
    """A classifier over nftables without our table."""
    if request.param == "fake":
        yield FakeClassifier()
        return
    request.getfixturevalue("namespace")
    made = NftClassifier()
    yield made
    made.close()


@dataclass
class Watched:
    """A classifier that watches its table, and another program that changes the table."""

    classifier: FakeClassifier | NftClassifier
    meddle: Callable[[], None]
    """Let another program change the table."""
    now_ns: int = 0
    wakes: int = field(default=0, init=False)

    def wake(self) -> None:
        self.wakes += 1


def watched(request: pytest.FixtureRequest) -> Watched:
    """By the parameter: over the fake or over nftables, with :data:`FIRST` written."""
    made: Watched
    if request.param == "fake":
        fake = FakeClassifier(lambda: made.now_ns)
        made = Watched(fake, fake.spoil)
    else:
        namespace = request.getfixturevalue("namespace")
        rule = ("nft", "insert rule inet slicebw exempt counter")
        made = Watched(NftClassifier(lambda: made.now_ns), lambda: namespace.run(*rule))
    made.classifier.watch(made.wake)
    made.classifier.apply(ReplaceTable(FIRST))
    return made


@pytest.fixture(params=["fake", "kernel"])
def notified(request: pytest.FixtureRequest) -> Iterator[Watched]:
    """A watched table whose changes by another program cause notifications."""
    made = watched(request)
    if isinstance(made.classifier, FakeClassifier):
        made.meddle = partial(made.classifier.spoil, notified=True)
    yield made
    made.classifier.close()


class Deaf:
    """A watcher that receives nothing."""

    def close(self) -> None:
        pass


@pytest.fixture(params=["fake", "kernel"])
def unnotified(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """A watched table of which all notifications are lost."""
    monkeypatch.setattr("slicebw.kernel.nft.watch_table", lambda *_: Deaf())
    made = watched(request)
    yield made
    made.classifier.close()


def test_no_table_is_neither_present_nor_intact(classifier: Classifier) -> None:
    assert classifier.read() == NOTHING


def test_what_was_written_is_read_and_nothing_is_left_to_do(classifier: Classifier) -> None:
    classifier.apply(ReplaceTable(FIRST))
    assert classifier.read() == FIRST
    assert plan_table(FIRST, classifier.read()) is None


def test_an_empty_table_is_a_table(classifier: Classifier) -> None:
    classifier.apply(ReplaceTable(NftTable()))
    assert classifier.read() == NftTable()


def test_addresses_come_go_and_move_in_one_transaction(classifier: Classifier) -> None:
    classifier.apply(ReplaceTable(FIRST))
    desired = NftTable(
        {"10.0.0.1": 7, "fd00::1": 1, "fd00::2": 9, "10.0.0.9": 2}, frozenset({"192.0.2.0/25", "2001:db8::/32"})
    )
    change = plan_table(desired, classifier.read())
    assert change == UpdateTable(
        remove=("10.0.0.1", "10.0.0.2"),
        add=(("10.0.0.1", 7), ("10.0.0.9", 2), ("fd00::2", 9)),
        exempt_remove=("192.0.2.0/24",),
        exempt_add=("192.0.2.0/25",),
    )
    classifier.apply(change)
    assert classifier.read() == desired


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(UpdateTable(add=(("10.0.0.8", 8),), remove=("10.0.0.77",)), id="removes an address not there"),
        pytest.param(UpdateTable(add=(("10.0.0.8", 8), ("10.0.0.1", 2))), id="gives an address to a second slice"),
        pytest.param(UpdateTable(add=(("10.0.0.8", 8),), exempt_remove=("192.0.2.0/25",)), id="removes half a network"),
        pytest.param(UpdateTable(add=(("10.0.0.8", 8),), exempt_add=("192.0.0.0/16",)), id="adds around a network"),
    ],
)
def test_a_transaction_is_carried_out_whole_or_not_at_all(classifier: Classifier, bad: UpdateTable) -> None:
    classifier.apply(ReplaceTable(FIRST))
    with pytest.raises(KernelError):
        classifier.apply(bad)
    assert classifier.read() == FIRST


def test_the_same_address_for_the_same_slice_again_is_no_error(classifier: Classifier) -> None:
    classifier.apply(ReplaceTable(FIRST))
    classifier.apply(UpdateTable(add=(("10.0.0.1", 1),), exempt_add=("192.0.2.0/24",)))
    assert classifier.read() == FIRST


def test_an_update_without_a_table_is_an_error(classifier: Classifier) -> None:
    with pytest.raises(KernelError, match="No such file or directory"):
        classifier.apply(UpdateTable(add=(("10.0.0.1", 1),)))


def test_a_table_can_be_removed_twice(classifier: Classifier) -> None:
    classifier.apply(ReplaceTable(FIRST))
    for _ in range(2):
        classifier.apply(RemoveTable())
        assert classifier.read() == NOTHING


def test_a_change_with_a_notification_is_read_at_once(notified: Watched) -> None:
    assert notified.classifier.read() == FIRST
    notified.meddle()
    wait_until(lambda: notified.wakes > 0, "we are woken", 1)
    assert not notified.classifier.read().intact


def test_a_change_without_a_notification_is_read_after_ten_seconds(unnotified: Watched) -> None:
    kept = unnotified.classifier.read()
    unnotified.meddle()
    unnotified.now_ns = TABLE_CHECK_NS - 1
    assert unnotified.classifier.read() is kept
    unnotified.now_ns = TABLE_CHECK_NS
    assert not unnotified.classifier.read().intact


def test_a_kept_table_that_is_invalidated_is_read_at_once(unnotified: Watched) -> None:
    unnotified.classifier.read()
    unnotified.meddle()
    unnotified.classifier.invalidate()
    assert not unnotified.classifier.read().intact


@pytest.mark.parametrize("change", [UpdateTable(add=(("10.0.0.9", 9),)), RemoveTable(), ReplaceTable(NftTable())])
def test_our_own_change_is_read_at_once(unnotified: Watched, change: UpdateTable | RemoveTable | ReplaceTable) -> None:
    unnotified.classifier.read()
    unnotified.classifier.apply(change)
    assert plan_table(FIRST, unnotified.classifier.read()) is not None


def test_after_a_change_that_failed_the_table_is_read_at_once(unnotified: Watched) -> None:
    unnotified.classifier.read()
    unnotified.meddle()
    with pytest.raises(KernelError):
        unnotified.classifier.apply(UpdateTable(remove=("10.0.0.77",)))
    assert not unnotified.classifier.read().intact


@pytest.mark.parametrize(
    "given_networks",
    [
        {"10.0.0.0/8", "10.1.0.0/16"},
        {"10.0.0.0/9", "10.128.0.0/9"},
        {"10.0.0.0/8", "11.0.0.0/8", "10.255.255.255/32", "11.0.0.0/32"},
        {"0.0.0.0/0", "::/0"},
        {"255.255.255.255/32", "224.0.0.0/4", "ffff::/16", "::1/128"},
    ],
)
def test_overlapping_and_adjacent_destinations_are_one_network(
    classifier: Classifier, given_networks: set[str]
) -> None:
    classifier.apply(ReplaceTable(NftTable({}, frozenset(given_networks))))
    collapsed = NftTable({}, collapse(given_networks))
    assert classifier.read() == collapsed
    assert plan_table(collapsed, classifier.read()) is None


addresses = st.one_of(
    st.integers(0, 40).map(lambda number: f"10.0.0.{number}"),
    st.integers(1, 40).map(lambda number: f"fd00::{number:x}"),
)
networks = st.one_of(
    st.tuples(st.sampled_from([0, 64, 128, 192, 255]), st.integers(8, 32)).map(
        lambda pair: str(ip_network(f"10.{pair[0]}.0.0/{pair[1]}", strict=False))
    ),
    st.tuples(st.sampled_from([0, 1, 0x8000, 0xFFFF]), st.integers(16, 128)).map(
        lambda pair: str(ip_network(f"2001:{pair[0]:x}::/{pair[1]}", strict=False))
    ),
)
classifications = st.builds(
    lambda slices, destinations: NftTable(slices, collapse(destinations)),
    st.dictionaries(addresses, st.integers(1, 0xFFE), max_size=12),
    st.lists(networks, max_size=6),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(classifications, min_size=2, max_size=4))
def test_from_any_table_to_any_other_by_its_differences(classifier: Classifier, steps: list[NftTable]) -> None:
    classifier.apply(ReplaceTable(steps[0]))
    for desired in steps[1:]:
        change = plan_table(desired, classifier.read())
        if change is not None:
            assert isinstance(change, UpdateTable)
            classifier.apply(change)
        assert classifier.read() == desired
        assert plan_table(desired, classifier.read()) is None
