from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from slicebw.core.accounting import fold_counter, period_is_over, start_next_period
from slicebw.core.dataplane import ObservedClass
from slicebw.core.desired import DEFAULT_LIMITS, SliceKey, TrafficClass
from slicebw.core.ledger import ClassAccount, SliceAccount
from tests.unit.core.builders import START_S, at


def seen(sent_bytes: int) -> ObservedClass:
    return ObservedClass(0x1001, 0x10, 8, 8, 1600, sent_bytes, leaf_major=0x1001)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(0, 10**9)),
            st.tuples(st.just("read"), st.just(0)),
            st.tuples(st.just("lose and read"), st.just(0)),
        )
    )
)
def test_any_interleaving_of_counter_resets_adds_up_to_what_was_sent(steps: list[tuple[str, int]]) -> None:
    """Bytes sent after the last reading before a reset are the only ones that can be lost, so none are sent there."""
    account, counter, unread, sent = ClassAccount(), 0, 0, 0
    for step, size in steps:
        if step == "send":
            counter, unread = counter + size, unread + size
        elif step == "read":
            account, unread, sent = fold_counter(account, seen(counter)), 0, sent + unread
        else:
            account, sent, unread = fold_counter(account, seen(counter)), sent + unread, 0
            counter = 0
            account = fold_counter(account, None)
        assert account.used_bytes == account.total_bytes == sent
    assert fold_counter(account, seen(counter)).used_bytes == sent + unread


@given(first=st.integers(0, 10**12), second=st.integers(0, 10**12))
def test_a_counter_that_went_down_adds_what_it_shows(first: int, second: int) -> None:
    account = fold_counter(fold_counter(ClassAccount(), seen(first)), seen(second))
    assert account.used_bytes == (second if second >= first else first + second)


@given(st.lists(st.none() | st.integers(0, 10**12)))
def test_used_never_decreases_within_a_period(readings: list[int | None]) -> None:
    account = ClassAccount()
    for reading in readings:
        after = fold_counter(account, None if reading is None else seen(reading))
        assert after.used_bytes >= account.used_bytes
        account = after


def test_an_unmoved_counter_gives_back_the_same_object() -> None:
    account = fold_counter(ClassAccount(), seen(7))
    assert fold_counter(account, seen(7)) is account


def _account(used: int, period_s: int = 100) -> SliceAccount:
    return SliceAccount(
        SliceKey("ns", "s"),
        "uid",
        1,
        1,
        START_S,
        replace(DEFAULT_LIMITS, period_s=period_s),
        standard=ClassAccount(used_bytes=used, total_bytes=used, counter_bytes=used, capped_since_s=START_S),
    )


def test_a_period_ends_at_its_second_and_not_before() -> None:
    assert not period_is_over(_account(0), at(99.999))
    assert period_is_over(_account(0), at(100))


def test_periods_stay_in_step_with_the_first_however_late_the_end_is_seen() -> None:
    rolled = start_next_period(_account(5), _account(5), at(90), at(731))
    assert rolled.period_start_s == START_S + 700


def test_a_new_period_begins_uncapped_and_unnotified() -> None:
    before = _account(5)
    marked = replace(before.standard, notified_capped=True, notified_restored=True)
    before = before.with_class(TrafficClass.STANDARD, marked)
    rolled = start_next_period(before, before, at(90), at(100))
    assert rolled.standard == ClassAccount(used_bytes=0, total_bytes=5, counter_bytes=5)


def test_bytes_read_across_the_end_belong_to_both_periods_in_proportion() -> None:
    before, counted = _account(1000), _account(1900)
    rolled = start_next_period(before, counted, at(97), at(106))  # 3 s of 9 in the old period
    assert rolled.standard.used_bytes == 600
    assert rolled.standard.total_bytes == 1900


@given(delta=st.integers(0, 10**15), read=st.floats(0, 99.9), now=st.floats(100, 1000))
def test_no_more_bytes_arrive_in_the_new_period_than_were_read(delta: int, read: float, now: float) -> None:
    rolled = start_next_period(_account(7), _account(7 + delta), at(read), at(now))
    assert 0 <= rolled.standard.used_bytes <= delta
