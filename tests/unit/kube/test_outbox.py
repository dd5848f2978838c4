"""The order in which reports go out."""

from slicebw.kube.backoff import Backoff
from slicebw.kube.outbox import Outbox, Urgency


def drained(outbox: Outbox[str], now: float = 0.0) -> list[str]:
    written = []
    while (entry := outbox.next(now)) is not None:
        written.append(entry.write)
        outbox.done(entry)
    return written


def test_the_urgent_goes_first_and_else_the_first_come() -> None:
    outbox: Outbox[str] = Outbox(10)
    outbox.put("a", "figures of a", Urgency.FIGURES)
    outbox.put("b", "change of b", Urgency.CHANGE)
    outbox.put("c", "figures of c", Urgency.FIGURES)
    outbox.put("d", "cap of d", Urgency.TRANSITION)
    assert drained(outbox) == ["cap of d", "change of b", "figures of a", "figures of c"]


def test_only_the_latest_state_of_an_object_is_written_at_its_place() -> None:
    outbox: Outbox[str] = Outbox(10)
    outbox.put("a", "old", Urgency.FIGURES)
    outbox.put("b", "b", Urgency.FIGURES)
    outbox.put("a", "new", Urgency.FIGURES)
    assert drained(outbox) == ["new", "b"]


def test_a_cap_is_not_delayed_by_figures_that_come_after_it() -> None:
    outbox: Outbox[str] = Outbox(10)
    outbox.put("a", "cap", Urgency.TRANSITION)
    outbox.put("b", "b", Urgency.CHANGE)
    outbox.put("a", "cap and newer figures", Urgency.FIGURES)
    assert drained(outbox) == ["cap and newer figures", "b"]


def test_figures_become_urgent_with_a_cap() -> None:
    outbox: Outbox[str] = Outbox(10)
    outbox.put("a", "a", Urgency.FIGURES)
    outbox.put("b", "b", Urgency.FIGURES)
    outbox.put("b", "b capped", Urgency.TRANSITION)
    assert drained(outbox) == ["b capped", "a"]


def test_what_is_queued_while_its_object_is_being_written_stays() -> None:
    outbox: Outbox[str] = Outbox(10)
    outbox.put("a", "old", Urgency.FIGURES)
    entry = outbox.next(0.0)
    assert entry is not None
    outbox.put("a", "new", Urgency.FIGURES)
    outbox.done(entry)
    assert drained(outbox) == ["new"]


def test_what_failed_lets_others_go_first_until_its_time() -> None:
    outbox: Outbox[str] = Outbox(10)
    outbox.put("a", "a", Urgency.TRANSITION)
    outbox.put("b", "b", Urgency.FIGURES)
    entry = outbox.next(0.0)
    assert entry is not None
    outbox.later(entry, 5.0)
    assert drained(outbox, now=4.9) == ["b"]
    assert outbox.next_due() == 5.0
    assert drained(outbox, now=5.0) == ["a"]
    assert outbox.next_due() is None


def test_a_full_outbox_takes_news_of_what_waits_but_nothing_further() -> None:
    outbox: Outbox[str] = Outbox(2)
    assert outbox.put("a", "a", Urgency.FIGURES)
    assert outbox.put("b", "b", Urgency.FIGURES)
    assert not outbox.put("c", "c", Urgency.TRANSITION)
    assert outbox.put("a", "newer", Urgency.TRANSITION)
    assert drained(outbox) == ["newer", "b"]


def test_pauses_double_up_to_a_limit_and_start_again_after_success() -> None:
    backoff = Backoff(1.0, 8.0)
    pauses = [backoff.next_s() for _ in range(8)]
    for pause_s, base_s in zip(pauses, [1, 2, 4, 8, 8, 8, 8, 8], strict=True):
        assert base_s * 0.5 <= pause_s <= base_s * 1.5
    backoff.reset()
    assert backoff.next_s() <= 1.5


def test_a_backoff_can_be_iterated_any_number_of_times_each_from_the_start_as_kopf_does() -> None:
    backoff = Backoff(1.0, 8.0)
    for _ in range(3):
        row = iter(backoff)
        assert next(row) <= 1.5
        assert 1.0 <= next(row) <= 3.0
