"""The report queue: it writes the latest state, in order of urgency, and retries until that is written."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from slicebw.agent.report_queue import ReportQueue
from slicebw.core.clock import TokenBucket
from slicebw.core.desired import SliceKey
from slicebw.core.errors import TryLater
from slicebw.core.reports import NodeWrite, ReportWrite, UsageRemoval, UsageReport, UsageWrite, object_of
from tests.support.reports import GB, capped_event, class_usage, node_report, usage_report

NOTE = capped_event("ns")
NOW_S = 1_700_000_000


def usage(name: str = "a", used_bytes: int = 0, *, capped: bool = False) -> UsageReport:
    return usage_report("ns", name, standard=class_usage(used_bytes, capped=capped))


def key(name: str = "a") -> SliceKey:
    return SliceKey("ns", name)


class Sink:
    """A sink that remembers writes. It fails as the test says, and blocks while it is closed."""

    def __init__(self) -> None:
        self.budget: TokenBucket | None = None
        self.previous: tuple[UsageReport, ...] = ()
        self.previous_failures: list[TryLater] = []
        self.failures: dict[object, list[Exception]] = {}
        self.read_s = 0.0
        self.reading = threading.Event()
        self.useless: set[object] = set()
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()
        self.tried: list[ReportWrite] = []
        self.written: list[ReportWrite] = []
        self.warnings: list[str] = []

    def start(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.thread = threading.Thread(target=self._keep_running, args=(run,), daemon=True)
        self.thread.start()

    async def previous_reports(self) -> tuple[UsageReport, ...]:
        self.reading.set()
        await asyncio.sleep(self.read_s)
        if self.previous_failures:
            raise self.previous_failures.pop(0)
        return self.previous

    async def write(self, write: ReportWrite) -> bool:
        self.asked.set()
        assert self.open.wait(10)
        self.tried.append(write)
        failures = self.failures.get(object_of(write))
        if failures:
            raise failures.pop(0)
        self.written.append(write)
        return object_of(write) not in self.useless

    def warn_full(self, message: str) -> None:
        self.warnings.append(message)

    def fail(self, name: object, *failures: Exception) -> None:
        """Let the next writes of an object fail."""
        self.failures[name] = list(failures)

    @property
    def order(self) -> list[object]:
        """The objects in the order in which they were written."""
        return [object_of(write) for write in self.written]

    def _keep_running(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                asyncio.run(run())
            except ExceptionGroup:
                time.sleep(0.01)
            else:
                return


class Desk:
    """A queue on a sink."""

    def __init__(self) -> None:
        self.sink = Sink()
        self.queue = ReportQueue(self.sink, wall_clock=lambda: NOW_S)

    def use(self, **options: Any) -> None:
        """Use a queue with other options."""
        self.queue = ReportQueue(self.sink, wall_clock=lambda: NOW_S, **options)

    def busy(self) -> None:
        """Start, and keep the sink busy with an object of no interest, so that later writes have to wait."""
        if not self.sink.written:
            self.queue.start()
        self.until(lambda: self.queue.previous_reports() is not None)
        self.sink.open.clear()
        self.sink.asked.clear()
        self.queue.report((), [key("first")], (), None)
        assert self.sink.asked.wait(10)

    def go_on(self) -> list[object]:
        """Open the sink. Returns the objects that are written then, without the one of no interest."""
        begun = len(self.sink.written)
        self.sink.open.set()
        self.settled()
        return self.sink.order[begun + 1 :]

    def settled(self) -> None:
        self.until(lambda: self.queue.waiting == 0)

    def until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10.0
        while not holds():
            assert time.monotonic() < deadline, self.sink.tried
            time.sleep(0.002)


@pytest.fixture
def desk() -> Iterator[Desk]:
    one = Desk()
    yield one
    one.sink.open.set()
    one.queue.stop()


def test_each_report_is_written_with_its_time(desk: Desk) -> None:
    desk.queue.report([usage()], [key("gone")], [NOTE], node_report())
    desk.queue.start()
    desk.settled()
    assert sorted(map(repr, desk.sink.written)) == sorted(
        map(repr, [UsageWrite(usage(), NOW_S), UsageRemoval(key("gone")), NodeWrite(node_report(), NOW_S), NOTE])
    )
    assert desk.queue.writes == 4


def test_only_the_latest_state_of_an_object_is_written(desk: Desk) -> None:
    desk.busy()
    for used in range(50):
        desk.queue.report([usage(used_bytes=used * GB)], (), (), node_report(host_bytes=used))
    desk.queue.report((), [key("b")], (), None)
    desk.queue.report([usage("b")], (), (), None)
    desk.go_on()
    assert desk.sink.written[1:] == [
        UsageWrite(usage(used_bytes=49 * GB), NOW_S),
        NodeWrite(node_report(host_bytes=49), NOW_S),
        UsageWrite(usage("b"), NOW_S),
    ]


def test_a_usage_that_is_as_it_was_written_replaces_another_that_waits(desk: Desk) -> None:
    desk.queue.report([usage()], (), (), None)
    desk.queue.start()
    desk.settled()
    desk.busy()
    for used in (GB, 0):
        desk.queue.report([usage(used_bytes=used)], (), (), None)
    desk.go_on()
    assert desk.sink.written[-1] == UsageWrite(usage(), NOW_S)


def test_events_and_caps_go_before_changes_and_those_before_figures(desk: Desk) -> None:
    desk.queue.report([usage("a"), usage("b"), usage("c")], (), (), node_report())
    desk.queue.start()
    desk.settled()
    desk.busy()
    desk.queue.report([usage("a", GB)], (), (), node_report(host_bytes=1))
    desk.queue.report([usage("new"), usage("b", 9 * GB, capped=True)], [key("c")], [NOTE], None)
    assert desk.go_on() == [NOTE.id, key("b"), key("new"), key("c"), key("a"), "node"]


def test_an_unchanged_usage_is_not_written_again_before_its_time(desk: Desk) -> None:
    desk.use(renew_s=0.3)
    desk.queue.start()
    for _ in range(3):
        desk.queue.report([usage()], (), (), None)
        desk.settled()
    assert desk.sink.order == [key()]
    time.sleep(0.35)
    desk.queue.report([usage()], (), (), None)
    desk.settled()
    assert desk.sink.order == [key()] * 2


def test_a_usage_that_was_removed_is_written_again_though_unchanged(desk: Desk) -> None:
    desk.queue.start()
    for _ in range(2):
        desk.queue.report([usage()], (), (), None)
        desk.settled()
        desk.queue.report((), [key()], (), None)
        desk.settled()
    assert [type(write) for write in desk.sink.written] == [UsageWrite, UsageRemoval] * 2


def test_usages_wait_until_the_previous_ones_are_read_and_nothing_else_does(desk: Desk) -> None:
    desk.sink.previous = (usage("old", GB),)
    desk.sink.previous_failures = [TryLater("away", pause_s=0.2), TryLater("refused", retry_s=0.2)]
    desk.queue.report([usage()], (), [NOTE], node_report())
    desk.queue.start()
    desk.until(lambda: len(desk.sink.written) == 2)
    assert desk.sink.order == [NOTE.id, "node"]
    assert desk.queue.previous_reports() is None
    desk.settled()
    assert desk.sink.order == [NOTE.id, "node", key()]
    assert desk.queue.previous_reports() == (usage("old", GB),)


def test_a_refused_write_lets_others_go_first_and_is_tried_again(desk: Desk) -> None:
    desk.sink.fail(NOTE.id, TryLater("refused", retry_s=0.2), TryLater("refused", retry_s=0.2))
    desk.queue.report([usage()], (), [NOTE], None)
    desk.queue.start()
    desk.until(lambda: desk.sink.order == [key()])
    assert desk.queue.acknowledged() == frozenset()
    desk.settled()
    assert desk.sink.order == [key(), NOTE.id]
    assert desk.queue.acknowledged() == {NOTE.id}
    assert desk.queue.writes == 2


def test_while_the_sink_is_away_nothing_is_tried_and_the_most_urgent_stays_first(desk: Desk) -> None:
    desk.sink.fail(NOTE.id, TryLater("away", pause_s=0.2), TryLater("away", pause_s=0.2))
    desk.queue.report((), [key("gone")], [NOTE], None)
    began = time.monotonic()
    desk.queue.start()
    desk.until(lambda: len(desk.sink.tried) == 1)
    desk.queue.report((), [key("also gone")], (), None)  # a new report does not end the pause
    desk.settled()
    assert time.monotonic() - began >= 0.4
    assert [object_of(write) for write in desk.sink.tried] == [NOTE.id] * 3 + [key("gone"), key("also gone")]


def test_a_busy_sink_is_left_alone_and_then_others_go_first(desk: Desk) -> None:
    desk.sink.fail(NOTE.id, TryLater("busy", pause_s=0.2, retry_s=0.4))
    desk.queue.report((), [key("gone")], [NOTE], None)
    began = time.monotonic()
    desk.queue.start()
    desk.until(lambda: desk.sink.written)
    assert time.monotonic() - began >= 0.2
    desk.settled()
    assert time.monotonic() - began >= 0.4
    assert desk.sink.order == [key("gone"), NOTE.id]


def test_a_newer_report_than_the_one_that_failed_may_go_at_once(desk: Desk) -> None:
    desk.sink.fail(key("first"), TryLater("refused", retry_s=3600.0))
    desk.busy()
    desk.queue.report([usage("first")], (), (), None)
    desk.go_on()
    assert desk.sink.written == [UsageWrite(usage("first"), NOW_S)]


def test_a_report_that_comes_while_its_object_is_written_is_written_too(desk: Desk) -> None:
    desk.busy()
    desk.queue.report([usage("first")], (), (), None)
    desk.go_on()
    assert desk.sink.written == [UsageRemoval(key("first")), UsageWrite(usage("first"), NOW_S)]


def test_an_event_is_written_and_delivered_once_however_often_it_is_pending(desk: Desk) -> None:
    desk.busy()
    for _ in range(3):
        desk.queue.report((), (), [NOTE], None)
    assert desk.go_on() == [NOTE.id]
    desk.queue.report((), (), (), None)
    desk.queue.report((), (), [NOTE], None)
    assert desk.queue.acknowledged() == {NOTE.id}
    desk.queue.report((), (), [NOTE], None)
    desk.settled()
    assert desk.sink.order[1:] == [NOTE.id]
    assert desk.queue.acknowledged() == frozenset()
    desk.queue.report((), (), [], None)
    desk.queue.report((), (), [NOTE], None)
    desk.settled()
    assert desk.sink.order[1:] == [NOTE.id] * 2, "its id is not remembered for longer than the ledger does"


def test_what_need_not_be_written_is_delivered_and_not_counted(desk: Desk) -> None:
    desk.sink.useless = {NOTE.id}
    desk.queue.report((), (), [NOTE], None)
    desk.queue.start()
    desk.settled()
    assert desk.queue.acknowledged() == {NOTE.id}
    assert desk.queue.writes == 0


def test_a_full_queue_says_so_and_takes_news_of_what_waits_but_nothing_further(desk: Desk) -> None:
    desk.use(max_waiting=2)
    desk.queue.report([usage("a"), usage("b")], (), (), None)
    assert desk.sink.warnings == []
    desk.queue.report([usage("c"), usage("a", GB)], (), (), None)
    assert desk.sink.warnings == ["2 reports wait already, further ones are dropped"]
    desk.queue.start()
    desk.settled()
    assert desk.sink.written == [UsageWrite(usage("a", GB), NOW_S), UsageWrite(usage("b"), NOW_S)]


def test_the_budget_of_the_sink_is_kept(desk: Desk) -> None:
    desk.sink.budget = TokenBucket(20.0, 5, time.monotonic())
    desk.queue.report([usage(f"s{number}") for number in range(15)], (), (), None)
    began = time.monotonic()
    desk.queue.start()
    desk.settled()
    assert time.monotonic() - began >= 0.45, "5 at once, then 10 at 20 a second"


def test_stopping_gives_what_waits_a_last_chance_and_what_failed_before_too(desk: Desk) -> None:
    desk.sink.fail(key("gone"), TryLater("refused", retry_s=3600.0))
    desk.sink.fail(key("hopeless"), *[TryLater("refused", retry_s=3600.0)] * 9)
    desk.queue.report((), [key("hopeless"), key("gone"), key("written")], (), None)
    desk.queue.start()
    desk.until(lambda: desk.sink.written)
    desk.queue.report([usage()], (), [NOTE], None)
    desk.queue.stop(10.0)
    assert set(desk.sink.order) == {key("written"), NOTE.id, key("gone"), key()}
    desk.sink.thread.join(10.0)
    assert not desk.sink.thread.is_alive()


def test_stopping_right_after_the_start_still_writes_everything(desk: Desk) -> None:
    desk.sink.previous_failures = [TryLater("refused", retry_s=0.1)]
    desk.queue.start()
    desk.queue.report([usage()], (), [NOTE], node_report())
    desk.queue.stop(10.0)
    assert set(desk.sink.order) == {NOTE.id, "node", key()}


def test_stopping_does_not_wait_for_a_sink_that_is_away(desk: Desk) -> None:
    desk.sink.fail(NOTE.id, *[TryLater("away", pause_s=3600.0)] * 9)
    desk.queue.start()
    desk.until(lambda: desk.queue.previous_reports() is not None)
    desk.queue.report((), (), [NOTE], None)
    desk.until(lambda: desk.sink.tried)
    began = time.monotonic()
    desk.queue.stop(10.0)
    assert time.monotonic() - began < 5.0
    assert len(desk.sink.tried) == 1


def test_stopping_does_not_wait_for_previous_reports_from_a_sink_that_is_away(desk: Desk) -> None:
    desk.sink.previous_failures = [TryLater("away", pause_s=3600.0)]
    desk.queue.start()
    desk.until(lambda: not desk.sink.previous_failures)
    desk.queue.report([usage()], (), (), None)
    began = time.monotonic()
    desk.queue.stop(10.0)
    assert time.monotonic() - began < 5.0


def test_stopping_during_the_first_failing_read_does_not_wait_for_the_sink(desk: Desk) -> None:
    desk.sink.previous_failures = [TryLater("away", pause_s=3600.0)]
    desk.sink.read_s = 0.3
    desk.queue.report([usage()], (), (), None)
    desk.queue.start()
    assert desk.sink.reading.wait(10)
    began = time.monotonic()
    desk.queue.stop(10.0)
    assert time.monotonic() - began < 5.0


def test_a_sink_that_can_be_read_and_not_written_to_is_away(desk: Desk) -> None:
    desk.sink.previous_failures = [TryLater("away", pause_s=0.3)]
    desk.sink.fail(NOTE.id, TryLater("away", pause_s=3600.0))
    desk.queue.report((), (), [NOTE], None)
    desk.queue.start()
    desk.until(lambda: desk.queue.previous_reports() is not None)
    began = time.monotonic()
    desk.queue.stop(10.0)
    assert time.monotonic() - began < 5.0


def test_a_sink_that_was_away_and_is_back_gets_the_last_writes(desk: Desk) -> None:
    desk.queue.start()
    desk.until(lambda: desk.queue.previous_reports() is not None)
    desk.sink.fail(NOTE.id, TryLater("away", pause_s=0.05))
    desk.queue.report((), (), [NOTE], None)
    desk.settled()
    desk.busy()
    desk.queue.report([usage()], (), (), None)
    threading.Timer(0.2, desk.sink.open.set).start()
    desk.queue.stop(10.0)
    assert desk.sink.order == [NOTE.id, key("first"), key()]


def test_stopping_waits_for_a_hanging_write_no_longer_than_it_is_told(desk: Desk) -> None:
    desk.busy()
    began = time.monotonic()
    desk.queue.stop(0.2)
    assert 0.2 <= time.monotonic() - began < 5.0


def test_after_an_error_that_nobody_expected_it_goes_on(desk: Desk) -> None:
    desk.sink.fail(key(), ValueError("a bug"))
    desk.queue.start()
    desk.queue.report([usage()], (), [NOTE], None)
    desk.settled()
    assert sorted(map(str, desk.sink.order)) == sorted(map(str, [NOTE.id, key()]))
