from msgspec.structs import replace

from slicebw.agent.report_throttle import ReportThrottle
from slicebw.core.clock import NS
from slicebw.core.desired import Mode, SliceKey
from slicebw.core.membership import PodProblem
from slicebw.core.reports import ClassUsage, NodeReport, UsageReport

KEY = SliceKey("ns", "slice")
CLASS = ClassUsage(
    used_bytes=0, budget_bytes=1000, percent=0, rate_bps=8000, capped=False, capped_since_s=None, counter_bytes=0
)
REPORT = UsageReport(KEY, 1, 1, 0, 3600, CLASS, CLASS)
NODE = NodeReport("eth0", Mode.ENFORCE, 10, 10, 1, 0, 0, 0, None, None, ready=True, message="")


def used(count: int, report: UsageReport = REPORT) -> UsageReport:
    return replace(report, standard=replace(report.standard, used_bytes=count))


def is_due(throttle: ReportThrottle, report: UsageReport, seconds: int) -> bool:
    return bool(throttle.due([report], seconds * NS)[0])


def test_the_first_report_goes_at_once_and_its_repetition_after_an_hour() -> None:
    throttle = ReportThrottle(60 * NS)
    assert is_due(throttle, REPORT, 0)
    assert not is_due(throttle, REPORT, 3599)
    assert is_due(throttle, REPORT, 3600)
    assert not is_due(throttle, REPORT, 3601)


def test_usage_that_moved_by_a_byte_waits_for_ten_minutes() -> None:
    throttle = ReportThrottle(60 * NS)
    is_due(throttle, REPORT, 0)
    assert not is_due(throttle, used(1), 599)
    assert is_due(throttle, used(1), 600)
    assert not is_due(throttle, used(1), 1200)


def test_usage_waits_for_one_percent_of_the_budget_and_the_interval() -> None:
    throttle = ReportThrottle(60 * NS)
    is_due(throttle, REPORT, 0)
    assert not is_due(throttle, used(500), 59)
    assert not is_due(throttle, used(9), 60)
    assert is_due(throttle, used(10), 60)


def test_changes_that_people_wait_for_are_reported_at_once() -> None:
    occasions = [
        replace(REPORT, standard=replace(CLASS, capped=True)),
        replace(REPORT, exempt=replace(CLASS, capped=True)),
        replace(REPORT, period_start_s=1),
        replace(REPORT, generation=2),
        replace(REPORT, slice_id=0),
        replace(REPORT, standard=replace(CLASS, rate_bps=16000)),
        replace(REPORT, problems=(PodProblem("ns/p", "x"),)),
        replace(REPORT, errors=("x",)),
    ]
    for occasion in occasions:
        throttle = ReportThrottle(60 * NS)
        is_due(throttle, REPORT, 0)
        assert is_due(throttle, occasion, 1)
        assert not is_due(throttle, occasion, 2)


def test_a_report_becomes_due_in_time_though_nothing_changes_meanwhile() -> None:
    """With the same report objects, nothing is compared again before the first of them is due."""
    other = replace(REPORT, key=SliceKey("ns", "other"))
    throttle = ReportThrottle(60 * NS)
    assert throttle.due([REPORT, other], 0) == ([REPORT, other], [])
    moved, crept = used(10), used(1, other)
    for seconds in (1, 59):
        assert throttle.due([moved, crept], seconds * NS) == ([], [])
    assert throttle.due([moved, crept], 60 * NS) == ([moved], [])
    for seconds in (61, 599):
        assert throttle.due([moved, crept], seconds * NS) == ([], [])
    assert throttle.due([moved, crept], 600 * NS) == ([crept], [])
    for seconds in (601, 3659):
        assert throttle.due([moved, crept], seconds * NS) == ([], [])
    assert throttle.due([moved, crept], 3660 * NS) == ([moved], [])
    assert throttle.due([moved], 3661 * NS) == ([], [other.key])


def test_the_rate_of_a_capped_class_moves_with_every_pass_and_waits() -> None:
    capped = replace(REPORT, standard=replace(CLASS, capped=True))
    throttle = ReportThrottle(60 * NS)
    is_due(throttle, capped, 0)
    assert not is_due(throttle, replace(capped, standard=replace(capped.standard, rate_bps=7992)), 1)


def test_a_slice_that_is_purged_expires_once() -> None:
    throttle = ReportThrottle(60 * NS)
    is_due(throttle, REPORT, 0)
    assert throttle.due([], NS) == ([], [KEY])
    assert throttle.due([], 2 * NS) == ([], [])


def test_the_nodes_bytes_wait_for_the_interval_and_its_state_does_not() -> None:
    throttle = ReportThrottle(60 * NS)
    assert throttle.node_due(NODE, 0)
    moved = replace(NODE, host_bytes=5)
    assert not throttle.node_due(moved, 59 * NS)
    assert throttle.node_due(moved, 60 * NS)
    assert not throttle.node_due(moved, 600 * NS)
    assert throttle.node_due(moved, 660 * NS)
    assert throttle.node_due(replace(moved, capped_slices=1), 661 * NS)
