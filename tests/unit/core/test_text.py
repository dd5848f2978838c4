import pytest

from slicebw.core.text import time_text


@pytest.mark.parametrize(
    ("wall_s", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_795_341_600, "2026-11-22T10:00:00Z"),
        (-62_135_596_800, "0001-01-01T00:00:00Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
        (253_402_300_800, "9999-12-31T23:59:59Z"),
        (1 << 62, "9999-12-31T23:59:59Z"),
        (-(1 << 62), "0001-01-01T00:00:00Z"),
    ],
)
def test_every_time_has_a_text_even_those_that_no_calendar_holds(wall_s: int, text: str) -> None:
    assert time_text(wall_s) == text
