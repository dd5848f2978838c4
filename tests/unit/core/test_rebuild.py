from msgspec.structs import replace

from slicebw.core.accounting import restore_from_reports
from slicebw.core.desired import SliceKey
from slicebw.core.ledger import Ledger, Reason
from slicebw.core.reports import UsageReport
from tests.unit.core.builders import M, Node, at, pod, spec

KEY = SliceKey("ns", "slice")
STANDARD = 0x1001


def lost() -> tuple[Node, tuple[UsageReport, ...]]:
    """A node with a capped slice that has reported, sent on, and then lost its ledger; and what it had reported."""
    node = Node(spec(), pods=(pod("ns/pod", "10.0.0.1"),))
    node.run(at(0))
    node.send(STANDARD, 85 * M)
    reports = node.run(at(10)).usages
    node.send(STANDARD, 1 * M)
    node.ledger = Ledger(rebuilding=True)
    return node, reports


def test_where_the_class_survived_not_a_byte_is_lost() -> None:
    node, reports = lost()
    node.run(at(20))
    node.send(STANDARD, 2 * M)
    node.run(at(30))
    node.ledger = restore_from_reports(node.ledger, reports, at(31))
    result = node.run(at(32))
    account = node.ledger.slices[KEY]
    assert account.standard.used_bytes == (85 + 1 + 2) * M
    assert account.period_start_s == reports[0].period_start_s
    assert result.usages[0].standard.capped_since_s == reports[0].standard.capped_since_s
    assert Reason.CAPPED not in [note.reason for note in node.ledger.pending_events]
    assert not node.ledger.rebuilding


def test_a_slice_that_is_not_there_is_remembered_and_gets_a_class_when_it_comes_back() -> None:
    _, reports = lost()
    node = Node(spec(), pods=(pod("ns/pod", "10.0.0.1"),))
    here = node.desired
    node.desired = replace(here, slices=(), pods=())
    node.run(at(20))
    node.ledger = restore_from_reports(node.ledger, reports, at(21))
    node.run(at(22))
    assert node.ledger.slices[KEY].slice_id == 0
    node.desired = here
    node.run(at(23))
    account = node.ledger.slices[KEY]
    assert (account.slice_id, account.live, account.standard.used_bytes) == (1, True, 85 * M)
    assert node.classes[STANDARD].ceil_bps < 10 * M


def test_a_report_of_a_period_that_is_over_says_nothing() -> None:
    _, reports = lost()
    assert restore_from_reports(Ledger(rebuilding=True), reports, at(3600)) == Ledger()


def test_a_period_that_would_begin_later_than_now_begins_now() -> None:
    node, (report,) = lost()
    node.run(at(20))
    ahead = replace(report, period_start_s=report.period_start_s + 10**9, period_end_s=report.period_end_s + 10**9)
    account = restore_from_reports(node.ledger, (ahead,), at(21)).slices[KEY]
    assert account.period_start_s == at(21).wall_s
    remembered = restore_from_reports(Ledger(rebuilding=True), (ahead,), at(21)).slices[KEY]
    assert (remembered.period_start_s, remembered.limits.period_s) == (at(21).wall_s, 3600)


def test_a_report_of_a_period_that_ends_before_it_begins_says_nothing() -> None:
    _, (report,) = lost()
    backwards = replace(report, period_start_s=report.period_end_s)
    assert restore_from_reports(Ledger(rebuilding=True), (backwards,), at(0)) == Ledger()
