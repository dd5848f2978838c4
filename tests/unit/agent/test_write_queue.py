"""The order in which reports go out."""

from slicebw.agent.report_queue import Urgency, WriteQueue


def drained(queue: WriteQueue[str], now_s: float = 0.0) -> list[str]:
    written = []
    while (entry := queue.next(now_s)) is not None:
        written.append(entry.write)
        queue.done(entry)
    return written


def test_the_most_urgent_goes_first_then_the_oldest() -> None:
    queue: WriteQueue[str] = WriteQueue(10)
    queue.put("a", "figures of a", Urgency.FIGURES)
    queue.put("b", "change of b", Urgency.CHANGE)
    queue.put("c", "figures of c", Urgency.FIGURES)
    queue.put("d", "cap of d", Urgency.TRANSITION)
    assert drained(queue) == ["cap of d", "change of b", "figures of a", "figures of c"]


def test_only_the_latest_state_of_an_object_is_written_at_its_place() -> None:
    queue: WriteQueue[str] = WriteQueue(10)
    queue.put("a", "old", Urgency.FIGURES)
    queue.put("b", "b", Urgency.FIGURES)
    queue.put("a", "new", Urgency.FIGURES)
    assert drained(queue) == ["new", "b"]


def test_a_cap_is_not_delayed_by_figures_that_come_after_it() -> None:
    queue: WriteQueue[str] = WriteQueue(10)
    queue.put("a", "cap", Urgency.TRANSITION)
    queue.put("b", "b", Urgency.CHANGE)
    queue.put("a", "cap and newer figures", Urgency.FIGURES)
    assert drained(queue) == ["cap and newer figures", "b"]


def test_figures_become_urgent_with_a_cap() -> None:
    queue: WriteQueue[str] = WriteQueue(10)
    queue.put("a", "a", Urgency.FIGURES)
    queue.put("b", "b", Urgency.FIGURES)
    queue.put("b", "b capped", Urgency.TRANSITION)
    assert drained(queue) == ["b capped", "a"]


def test_what_is_queued_while_its_object_is_being_written_stays() -> None:
    queue: WriteQueue[str] = WriteQueue(10)
    queue.put("a", "old", Urgency.FIGURES)
    entry = queue.next(0.0)
    assert entry is not None
    queue.put("a", "new", Urgency.FIGURES)
    queue.done(entry)
    assert drained(queue) == ["new"]


def test_what_failed_lets_others_go_first_until_its_time() -> None:
    queue: WriteQueue[str] = WriteQueue(10)
    queue.put("a", "a", Urgency.TRANSITION)
    queue.put("b", "b", Urgency.FIGURES)
    entry = queue.next(0.0)
    assert entry is not None
    queue.retry_at(entry, 5.0)
    assert drained(queue, now_s=4.9) == ["b"]
    assert queue.next_due_s() == 5.0
    assert drained(queue, now_s=5.0) == ["a"]
    assert queue.next_due_s() is None


def test_a_full_queue_takes_newer_writes_of_waiting_objects_and_no_others() -> None:
    queue: WriteQueue[str] = WriteQueue(2)
    assert queue.put("a", "a", Urgency.FIGURES)
    assert queue.put("b", "b", Urgency.FIGURES)
    assert not queue.put("c", "c", Urgency.TRANSITION)
    assert queue.put("a", "newer", Urgency.TRANSITION)
    assert drained(queue) == ["newer", "b"]
