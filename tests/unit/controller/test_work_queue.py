"""The keyed queue: each key once, at its time, the lowest priority first."""

import math
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from slicebw.controller.work_queue import WorkQueue


def taken(queue: WorkQueue[str], now_s: float) -> list[str]:
    """Take all keys that are ready."""
    keys = []
    while (key := queue.get(now_s)) is not None:
        keys.append(key)
    return keys


def test_a_key_that_is_added_often_is_taken_once() -> None:
    queue = WorkQueue[str]()
    for _ in range(3):
        queue.add("a", 0.0)
    queue.add("b", 0.0)
    assert len(queue) == 2
    assert taken(queue, 0.0) == ["a", "b"]
    assert len(queue) == 0


def test_a_key_that_is_added_while_it_is_worked_on_is_taken_again() -> None:
    queue = WorkQueue[str]()
    queue.add("a", 0.0)
    assert queue.get(0.0) == "a"
    queue.add("a", 0.0)
    assert taken(queue, 0.0) == ["a"]


def test_a_delayed_key_is_taken_at_its_time_and_not_before() -> None:
    queue = WorkQueue[str]()
    queue.add_after("a", 10.0, 5.0)
    assert "a" in queue
    assert queue.wait_s(6.0) == 9.0
    assert taken(queue, 14.9) == []
    assert taken(queue, 15.0) == ["a"]
    assert "a" not in queue


def test_the_earlier_of_two_times_counts() -> None:
    queue = WorkQueue[str]()
    queue.add_after("a", 10.0, 0.0)
    queue.add_after("a", 2.0, 0.0)
    queue.add_after("a", 5.0, 0.0)
    assert queue.wait_s(0.0) == 2.0
    assert taken(queue, 2.0) == ["a"]
    assert taken(queue, 20.0) == [], "the later times went with it"
    assert queue.wait_s(20.0) == math.inf


def test_a_key_that_was_delayed_and_is_added_is_ready_at_once() -> None:
    queue = WorkQueue[str]()
    queue.add_after("a", 10.0, 0.0)
    queue.add("a", 1.0)
    assert queue.wait_s(1.0) == 0.0
    assert len(queue) == 1
    assert taken(queue, 1.0) == ["a"]


def test_of_ready_keys_the_lowest_priority_goes_first_and_then_the_first_that_was_ready() -> None:
    queue = WorkQueue[str]()
    queue.add("low", 0.0, (1, 0.0))
    queue.add("second", 0.0, (0, 2.0))
    queue.add_after("early", 0.5, 0.0, (0, 1.0))
    queue.add_after("earlier", 0.2, 0.0, (0, 1.0))
    assert taken(queue, 1.0) == ["earlier", "early", "second", "low"]


def test_a_key_keeps_the_lower_of_two_priorities() -> None:
    queue = WorkQueue[str]()
    queue.add("a", 0.0, (1, 0.0))
    queue.add("b", 0.0, (1, 0.0))
    queue.add("b", 0.0, (0, 0.0))
    queue.add("b", 0.0, (2, 0.0))
    assert taken(queue, 0.0) == ["b", "a"]


def test_a_discarded_key_is_not_taken() -> None:
    queue = WorkQueue[str]()
    queue.add("a", 0.0)
    queue.add_after("b", 1.0, 0.0)
    queue.discard("a")
    queue.discard("b")
    queue.discard("c")
    assert taken(queue, 2.0) == []
    assert queue.wait_s(2.0) == math.inf


def test_keys_from_a_priority_on_can_be_left_in_the_queue() -> None:
    queue = WorkQueue[str]()
    for number in range(3):
        queue.add(f"low-{number}", 0.0, (1, float(-number)))
    queue.add("normal", 0.0)
    queue.add_after("later", 4.0, 0.0)
    assert queue.get(0.0, (1, -math.inf)) == "normal"
    assert queue.get(0.0, (1, -math.inf)) is None
    assert queue.wait_s(0.0) == 4.0
    assert len(queue) == 4
    assert taken(queue, 0.0) == ["low-2", "low-1", "low-0"]


def test_a_key_that_is_added_again_and_again_takes_no_more_room() -> None:
    queue = WorkQueue[str]()
    tracemalloc.start()
    try:
        for number in range(10_000):
            queue.add("held", 0.0, (1, 0.0))
            queue.add("held", 0.0, (0, 0.0))
            queue.add_after(f"key-{number % 5}", 1e6 - number, 0.0)
            assert queue.get(0.0, (0, 1.0)) == "held"
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(queue) == 5
    assert kept_bytes < 50_000


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.integers(0, 2), st.booleans()), max_size=30))
def test_whatever_is_added_each_key_is_taken_once_at_its_earliest_time(
    added: list[tuple[str, int, int, bool]],
) -> None:
    """Compare with a dictionary that is searched from end to end."""
    queue, expected = WorkQueue[str](), dict[str, tuple[int, int]]()
    for now_s, (key, after_s, priority, discard) in enumerate(added):
        while (got := queue.get(now_s)) is not None:
            at_s, level = expected.pop(got)
            assert at_s <= now_s
            assert all(other > now_s or level <= theirs for other, theirs in expected.values())
        assert all(at_s > now_s for at_s, _ in expected.values())
        queue.add_after(key, after_s, now_s, (priority, 0.0))
        at_s, level = expected.get(key, (now_s + after_s, priority))
        expected[key] = min(at_s, now_s + after_s), min(level, priority)
        if discard:
            queue.discard(key)
            expected.pop(key)
        assert len(queue) == len(expected)
        assert queue.wait_s(now_s) == min((at_s - now_s for at_s, _ in expected.values()), default=math.inf)
