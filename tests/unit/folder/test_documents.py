from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicebw.folder.documents import MAX_DEPTH, Document, DocumentError, documents


def error_of(content: bytes, *, is_json: bool = False) -> tuple[int, str]:
    with pytest.raises(DocumentError) as caught:
        list(documents(content, is_json=is_json))
    return caught.value.line, str(caught.value)


def test_each_document_comes_with_its_line_and_empty_ones_are_skipped() -> None:
    content = b"# a comment\na: 1\n---\n---\n# nothing\n---\n\nb: 2\n"
    assert list(documents(content)) == [Document({"a": 1}, 2), Document({"b": 2}, 8)]


def test_the_items_of_a_list_have_lines_of_their_own() -> None:
    content = b"kind: List\nitems:\n- a: 1\n\n- b: 2\n"
    assert next(iter(documents(content))).item_lines == (3, 5)


def test_documents_in_front_of_a_broken_one_are_given() -> None:
    found = documents(b"a: 1\n---\nb: [\n")
    assert next(found).value == {"a": 1}
    with pytest.raises(DocumentError):
        next(found)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"a: 1\nb:\n  c: 1\n  c: 2\n", 4, "the field c occurs twice"),
        (b"a: 1\nb: [1,\n", 3, "did not find expected"),
        (b"a:\n\tb: 2\n", 2, "cannot start any token"),
        (b"a: 1\nb: *other\n", 2, "undefined alias"),
        (b"a: 1\nb: !command x\n", 2, "!command"),
        (b"a: 1\n---\nb: !!int x\n", 3, "does not fit its tag"),
        (b"a: 1\nb: \xff\n", 2, "byte 0xff"),
        (b"a: 1\nb: \x00\n", 2, "control characters"),
        (b"a: " + b"1" * 5000, 1, "digits"),
    ],
)
def test_what_is_broken_is_named_with_its_line(content: bytes, line: int, words: str) -> None:
    found_line, text = error_of(content)
    assert found_line == line
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize("content", [b"[" * 300_000, b"- " * 300_000, b'{"a":' * 300_000])
def test_deep_nesting_is_refused_and_does_not_end_the_process(content: bytes) -> None:
    assert f"at most {MAX_DEPTH} levels" in error_of(content)[1]
    assert "too deeply" in error_of(content, is_json=True)[1] or content.startswith(b"-")


def test_times_stay_texts_as_in_json() -> None:
    content = b"a: 2026-11-22T10:00:00Z\nb: 2026-13-45\n"
    assert next(iter(documents(content))).value == {"a": "2026-11-22T10:00:00Z", "b": "2026-13-45"}


def test_anchors_and_merges_work_and_a_merged_field_may_be_given_again() -> None:
    content = b"a: &limits {x: 1, y: 1}\nb: {<<: *limits, y: 2}\n"
    assert next(iter(documents(content))).value == {"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 2}}


def test_json_may_be_indented_with_tabs_and_follow_each_other() -> None:
    content = b'{\n\t"a": 1\n}\n{"b": 2}\nnull\n'
    found = list(documents(content, is_json=True))
    assert found == [Document({"a": 1}, 1), Document({"b": 2}, 4)]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b'{"a": 1}\n{"b": ', 2, "Expecting value"),
        (b'{"a": 1,\n"a": 2}', 1, "the field a occurs twice"),
        (b"1" * 5000, 1, "digits"),
    ],
)
def test_broken_json_is_named_with_its_line(content: bytes, line: int, words: str) -> None:
    found_line, text = error_of(content, is_json=True)
    assert found_line == line
    assert words in text


_PIECES = st.sampled_from(
    ["a: ", "- ", "\n", "  ", "[", "]", "{", "}", "&x ", "*x", "<<: ", "!!int ", "? ", ": ", "'", '"', "|\n", "---\n"]
)


@given(st.one_of(st.binary(max_size=60), st.lists(_PIECES, max_size=30).map(lambda parts: "".join(parts).encode())))
def test_whatever_is_in_a_file_it_is_read_or_refused(content: bytes) -> None:
    for is_json in (False, True):
        with suppress(DocumentError):
            list(documents(content, is_json=is_json))


@pytest.mark.parametrize("is_json", [True, False])
def test_no_name_of_a_field_makes_a_message_of_two_lines(*, is_json: bool) -> None:
    _, text = error_of(b'{"x\\nERROR forged": 1, "x\\nERROR forged": 2}', is_json=is_json)
    assert '"x\\nERROR forged" occurs twice' in text
    assert "\n" not in text


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_not() -> None:
    line, text = error_of(b'{"a": 1}\n{"b": ["\\ud800"]}', is_json=True)
    assert (line, "half of a pair" in text) == (2, True)
    assert list(documents(b'"\\ud83d\\ude00"', is_json=True)) == [Document("\N{GRINNING FACE}", 1)]
