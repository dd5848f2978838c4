"""Quantities: exact in, short and clear errors out, whatever comes."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slicebw.api.quantity import (
    MAX_BYTES,
    MAX_RATE_BPS,
    MIN_RATE_BPS,
    QuantityError,
    duration_text,
    parse_bytes,
    parse_duration,
    parse_percent,
    parse_rate,
    parse_time,
    shown,
)
from slicebw.core.errors import SlicebwError
from slicebw.core.text import bytes_text, rate_text, time_text

RATE_USAGE = "use bit/s with an optional suffix k, M, G, T, Ki, Mi, Gi (10M is 10,000,000 bit/s)"
BYTES_USAGE = "use bytes with an optional suffix k, M, G, T, Ki, Mi, Gi, Ti (10Gi is 10,737,418,240 bytes)"
PARSERS = (parse_rate, parse_bytes, parse_percent, parse_duration, parse_time)


@pytest.mark.parametrize(
    ("text", "rate_bps"),
    [
        (8, 8),
        ("8", 8),
        ("512k", 512_000),
        ("10M", 10_000_000),
        ("1.5G", 1_500_000_000),
        ("10Ki", 10_240),
        ("1.5Mi", 1_572_864),
        ("2Gi", 2_147_483_648),
        ("1T", 10**12),
        ("1P", 10**15),
        ("0.5Ti", 549_755_813_888),
        ("1e6", 10**6),
        ("1E6", 10**6),
        ("1.25e+3", 1250),
        ("80000e-4", 8),
        ("+10M", 10_000_000),
        (".5k", 500),
        ("9.", 9),
        ("0010", 10),
        ("8.1", 9),
        ("1.0005k", 1001),
        ("0.1Ki", 103),
        (MAX_RATE_BPS, MAX_RATE_BPS),
    ],
)
def test_a_rate_is_read_exactly_and_a_fraction_of_a_bit_is_rounded_up(text: object, rate_bps: int) -> None:
    assert parse_rate(text) == rate_bps


@pytest.mark.parametrize(
    ("text", "count"),
    [("10Gi", 10_737_418_240), ("10800M", 10_800_000_000), (1, 1), ("1.1Gi", 1_181_116_007), ("1000P", MAX_BYTES)],
)
def test_bytes_are_read_exactly(text: object, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "value",
    ["", " ", "10 M", " 10M", "10M ", "10M\n", "M", "k8", "10K", "10m", "5u", "5n", "1E", "1Ei", "-10M", "--8", "+",
     ".", "1,5M", "1_000", "1.2.3", "0x10", "10Mbit", "10MB", "1e", "1e1.5", "1e100", "1e+-1", "e6", "inf", "nan",
     "\u0967\u0966M", "10\u00b2", "10M\0", "9" * 33, True, False, None, 1.5, 8.0, float("nan"), [], [8], {},
     {"a": 1}, b"8"],
)  # fmt: skip
@pytest.mark.parametrize("parse", [parse_rate, parse_bytes])
def test_what_is_no_quantity_is_refused_with_value_and_usage(parse: object, value: object) -> None:
    with pytest.raises(QuantityError) as caught:
        parse(value)  # type: ignore[operator]
    noun, usage = ("a rate", RATE_USAGE) if parse is parse_rate else ("a number of bytes", BYTES_USAGE)
    text = str(caught.value)
    assert text.startswith(f"{shown(value)} is not {noun}: ")
    assert usage in text or "write it as a string" in text or "m means thousandths" in text


def test_errors_name_the_value_and_what_is_allowed() -> None:
    cases: dict[Callable[[object], int], dict[object, str]] = {
        parse_rate: {
            "10 M": f'"10 M" is not a rate: {RATE_USAGE}',
            "10m": '"10m" is not a rate: m means thousandths; millions are 10M',
            1.5: '1.5 is not a rate: write it as a string ("1.5G") or a whole number',
            7: "7 is too low: at least 8 bit/s, one byte a second",
            "0.007k": '"0.007k" is too low: at least 8 bit/s, one byte a second',
            -1: "-1 is too low: at least 8 bit/s, one byte a second",
            "1.1P": '"1.1P" is too high: at most 1P, 10^15 bit/s',
            10**15 + 1: "1000000000000001 is too high: at most 1P, 10^15 bit/s",
            10**5000: "a number of more than 30 digits is too high: at most 1P, 10^15 bit/s",
            True: f"true is not a rate: {RATE_USAGE}",
        },
        parse_bytes: {
            "x": f'"x" is not a number of bytes: {BYTES_USAGE}',
            0: "0 is too low: at least 1 byte",
            "0.9": '"0.9" is too low: at least 1 byte',
            "1001P": '"1001P" is too high: at most 1000P, 10^18 bytes',
        },
        parse_percent: {
            "80": '"80" is not a percentage: use a whole one from 1% to 100% (80%)',
            "101%": '"101%" is not a percentage: use a whole one from 1% to 100% (80%)',
            80: "80 is not a percentage: use a whole one from 1% to 100% (80%)",
        },
        parse_duration: {
            "24": '"24" is not a duration: use whole hours, minutes and seconds, in that order (24h, 1h30m, 90s)',
            "7d": '"7d" is not a duration: use whole hours, minutes and seconds, in that order (24h, 1h30m, 90s);'
            " 7 days are 168h",
            90: "90 is not a duration: use whole hours, minutes and seconds, in that order (24h, 1h30m, 90s)",
        },
        parse_time: {"yesterday": '"yesterday" is not a time: use RFC 3339 (2026-11-22T10:00:00Z)'},
    }
    for parse, expected in cases.items():
        for value, text in expected.items():
            with pytest.raises(QuantityError) as caught:
                parse(value)
            assert str(caught.value) == text
            assert isinstance(caught.value, SlicebwError)


@pytest.mark.parametrize(("text", "percent"), [("1%", 1), ("9%", 9), ("80%", 80), ("99%", 99), ("100%", 100)])
def test_a_percentage_is_whole_and_has_its_sign(text: str, percent: int) -> None:
    assert parse_percent(text) == percent


@pytest.mark.parametrize(
    "text", ["0%", "00%", "08%", "101%", "80", "80 %", "%", "+80%", "80.5%", "80%\n", 80, 0.8, None]
)
def test_other_percentages_are_refused(text: object) -> None:
    with pytest.raises(QuantityError):
        parse_percent(text)


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("24h", 86_400),
        ("1h30m", 5_400),
        ("90s", 90),
        ("90m", 5_400),
        ("1h0m5s", 3_605),
        ("8784h", 31_622_400),
        ("0s", 0),
    ],
)
def test_a_duration_is_in_hours_minutes_and_seconds(text: str, duration_s: int) -> None:
    assert parse_duration(text) == duration_s


@pytest.mark.parametrize(
    "text",
    ["", "h", "24", "24H", "1.5h", "30m1h", "1h1h", "-1h", "1h 30m", "1d", "1w", "100ms", "1us", "24h\n", 24, None],
)
def test_other_durations_are_refused(text: object) -> None:
    with pytest.raises(QuantityError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "wall_s"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-22T10:00:00Z", 1_795_341_600),
        ("2026-11-22T11:00:00+01:00", 1_795_341_600),
        ("2026-11-22t10:00:00.999999z", 1_795_341_600),
        ("1969-12-31T23:59:59Z", -1),
        (datetime(2026, 11, 22, 10, tzinfo=timezone.utc), 1_795_341_600),
        (datetime(2026, 11, 22, 12, tzinfo=timezone(timedelta(hours=2))), 1_795_341_600),
        (datetime(2026, 11, 22, 10), 1_795_341_600),  # noqa: DTZ001 - what PyYAML makes of a time without a zone
    ],
)
def test_a_time_is_read_in_whole_seconds(text: object, wall_s: int) -> None:
    assert parse_time(text) == wall_s


@pytest.mark.parametrize(
    "text",
    ["", "2026-11-22", "10:00:00Z", "2026-11-22T10:00:00", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z",
     "2026-11-22T24:00:01Z", "2026-11-22T10:00:60Z", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+05:00",
     "2026-11-22T10:00:00Z\n", "2026-11-22 10:00:00Z", "2026-11-22T10:00:00.Z", 0, 1_795_341_600, None, []],
)  # fmt: skip
def test_other_times_are_refused(text: object) -> None:
    with pytest.raises(QuantityError, match="is not a time: use RFC 3339"):
        parse_time(text)


@given(st.integers(MIN_RATE_BPS, MAX_RATE_BPS))
def test_a_rate_in_full_is_read_back_as_text_and_as_number(rate_bps: int) -> None:
    assert parse_rate(rate_bps) == parse_rate(str(rate_bps)) == rate_bps


@given(
    st.from_regex(r"[0-9]{1,12}(\.[0-9]{0,8})?", fullmatch=True),
    st.sampled_from(["", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "Pi"]),
)
@example("0.1", "Ki")
def test_a_quantity_is_what_exact_arithmetic_makes_of_it(digits: str, suffix: str) -> None:
    power = " kMGTP".index(suffix[:1].replace("K", "k") or " ")
    exact = Fraction(digits.rstrip(".") or "0") * (1024 if suffix.endswith("i") else 1000) ** power
    try:
        assert parse_bytes(digits + suffix) == ceil(exact)
    except QuantityError:
        assert not 1 <= exact <= MAX_BYTES


@given(st.integers(0, 99_999 * 3600))
def test_a_duration_is_read_back_as_it_was_written(duration_s: int) -> None:
    assert parse_duration(duration_text(duration_s)) == duration_s


@given(st.integers(-62_135_596_800, 253_402_300_799))
@example(-62_135_596_800)
@example(253_402_300_799)
def test_every_second_of_the_calendar_is_read_back_as_it_was_written(wall_s: int) -> None:
    assert parse_time(datetime.fromtimestamp(wall_s, timezone.utc).isoformat()) == wall_s


@given(st.integers(946_684_800, 4_102_444_800))
def test_times_and_figures_as_slicebw_shows_them_can_be_read(wall_s: int) -> None:
    assert parse_time(time_text(wall_s)) == wall_s
    assert parse_rate(rate_text(wall_s)) <= wall_s
    assert parse_bytes(bytes_text(wall_s)) <= wall_s + 1


@given(
    st.one_of(
        st.text(max_size=60),
        st.text(alphabet="0123456789.+-eEkKMGTPimhsdZ:T% \n", max_size=40),
        st.integers(),
        st.floats(),
        st.booleans(),
        st.none(),
        st.binary(),
        st.lists(st.integers()),
        st.dictionaries(st.text(), st.integers()),
        st.datetimes(),
    )
)
def test_whatever_comes_a_parser_gives_an_exact_integer_or_a_one_line_error(value: object) -> None:
    for parse in PARSERS:
        try:
            parsed = parse(value)
        except QuantityError as error:
            refusal = str(error)
        else:
            refusal = ""
            assert type(parsed) is int
        assert refusal.isprintable()
        assert len(refusal) < 400


@pytest.mark.parametrize("value", ["1" * 1_000_000, "0." + "0" * 1_000_000, "1e" + "9" * 1_000_000, "a" * 1_000_000])
def test_a_megabyte_of_digits_is_refused_at_once_and_not_repeated_in_the_error(value: str) -> None:
    started = time.perf_counter()
    for parse in PARSERS:
        with pytest.raises(QuantityError) as caught:
            parse(value)
        assert len(str(caught.value)) < 400
    assert time.perf_counter() - started < 0.5


def test_a_shown_value_is_short_and_on_one_line() -> None:
    assert shown("a\nb") == '"a\\nb"'
    assert shown("x" * 41) == f'"{"x" * 40}"...'
    assert shown("\ud800") == '"\\ud800"'
    assert shown([1] * 1000) == "a list"
    assert shown({"a": 1}) == "an object"
    assert shown(b"x") == "a bytes"
    assert shown(None) == "null"


def test_a_time_of_a_yaml_reader_that_is_before_the_year_1_is_refused() -> None:
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=23)))
    with pytest.raises(QuantityError, match="is not a time: it is outside the years 1 to 9999"):
        parse_time(early)
