"""The store is right in whatever order lists and events arrive."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from slicebw.kube.store import MAX_TOMBSTONES, Change, Key, Store, deletion_of, key_of


def obj(name: str, version: int, uid: str = "u1", value: str = "a") -> dict[str, Any]:
    return {
        "metadata": {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": str(version)},
        "value": value,
    }


def store() -> Store[str]:
    return Store(lambda one: str(one["value"]))


def take_list(target: Store[str], version: int, *objects: dict[str, Any]) -> None:
    for one in objects:
        target.upsert(one, listed=True)
    for deletion in target.missing_from([key_of(one) for one in objects], version):
        target.delete(deletion)
    target.complete_list(version)


def test_a_new_object_a_change_and_a_deletion_are_reported_as_such() -> None:
    known = store()
    assert known.upsert(obj("a", 1)) == Change(None, "a")
    assert known.upsert(obj("a", 2, value="b")) == Change("a", "b")
    assert known.upsert(obj("a", 3, value="b")) is None, "nothing that is kept has changed"
    assert known.delete(deletion_of(obj("a", 4))) == Change("b", None)
    assert list(known) == []


def test_an_older_event_does_not_overwrite_a_newer_one() -> None:
    known = store()
    known.upsert(obj("a", 5, value="new"))
    assert known.upsert(obj("a", 4, value="old")) is None
    assert list(known) == ["new"]


def test_a_deletion_of_an_earlier_object_leaves_its_successor_alone() -> None:
    known = store()
    known.upsert(obj("a", 1, uid="first"))
    known.upsert(obj("a", 3, uid="second", value="b"))
    assert known.delete(deletion_of(obj("a", 2, uid="first"))) is None
    assert list(known) == ["b"]


def test_an_event_from_before_a_deletion_does_not_bring_the_object_back() -> None:
    known = store()
    known.upsert(obj("a", 1))
    known.delete(deletion_of(obj("a", 3)))
    assert known.upsert(obj("a", 2)) is None
    assert list(known) == []
    known.upsert(obj("a", 4, uid="second", value="b"))
    assert list(known) == ["b"]


def test_a_list_made_before_a_deletion_does_not_bring_the_object_back() -> None:
    known = store()
    known.upsert(obj("a", 1))
    known.delete(deletion_of(obj("a", 7)))
    take_list(known, 5, obj("a", 1))
    assert list(known) == []


def test_a_list_deletes_what_was_deleted_while_the_watch_was_broken() -> None:
    known = store()
    known.upsert(obj("a", 1))
    known.upsert(obj("b", 2, value="b"))
    take_list(known, 5, obj("b", 2, value="b"))
    assert list(known) == ["b"]


def test_a_list_keeps_what_came_after_it_was_made() -> None:
    known = store()
    known.upsert(obj("late", 9, value="late"))
    take_list(known, 5)
    assert list(known) == ["late"]


def test_an_event_older_than_the_last_list_is_ignored() -> None:
    known = store()
    take_list(known, 5)
    assert known.upsert(obj("a", 3)) is None
    assert list(known) == []


def test_an_empty_list_deletes_everything() -> None:
    known = store()
    known.upsert(obj("a", 1))
    take_list(known, 5)
    assert list(known) == []


def test_after_a_restored_etcd_lower_versions_are_taken_and_what_is_missing_is_deleted() -> None:
    known = store()
    take_list(known, 100, obj("a", 90, value="before"), obj("b", 95))
    known.reset_versions()
    assert sorted(known) == ["a", "before"], "until something better is known"
    take_list(known, 40, obj("a", 30, value="restored"))
    assert list(known) == ["restored"]


def test_deletions_are_not_remembered_without_end() -> None:
    known = store()
    for number in range(MAX_TOMBSTONES + 100):
        known.delete(deletion_of(obj(f"gone-{number}", 10 + number)))
    assert known.upsert(obj("gone-0", 5)), "the oldest are let go first"
    assert known.upsert(obj(f"gone-{MAX_TOMBSTONES + 99}", 5)) is None


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[str, dict[str, Any]]], dict[Key, str], list[int]]:
    """A history of one kind as etcd has it: (event type, object) in the order of versions, and how it ends."""
    alive: dict[str, tuple[str, str]] = {}
    events = []
    steps = draw(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=14))
    for version, (name, deletes) in enumerate(steps, start=1):
        value = f"v{version}"
        if name in alive and deletes:
            uid, last = alive.pop(name)
            events.append(("DELETED", obj(name, version, uid, last)))
        elif name in alive:
            alive[name] = (alive[name][0], value)
            events.append(("MODIFIED", obj(name, version, alive[name][0], value)))
        else:
            alive[name] = (f"uid{version}", value)
            events.append(("ADDED", obj(name, version, f"uid{version}", value)))
    order = draw(st.permutations(range(len(events))))
    return events, {Key("ns", name): value for name, (_, value) in alive.items()}, order


@given(histories())
def test_in_whatever_order_all_events_come_the_end_is_the_same(
    history: tuple[list[tuple[str, dict[str, Any]]], dict[Key, str], list[int]],
) -> None:
    events, expected, order = history
    known = store()
    for index in order:
        event_type, one = events[index]
        if event_type == "DELETED":
            known.delete(deletion_of(one))
        else:
            known.upsert(one)
    assert sorted(known) == sorted(expected.values())


@given(histories(), st.data())
def test_whatever_events_are_lost_the_next_list_puts_it_right(
    history: tuple[list[tuple[str, dict[str, Any]]], dict[Key, str], list[int]], data: st.DataObject
) -> None:
    events, expected, order = history
    kept = data.draw(st.sets(st.sampled_from(order)))
    late = data.draw(st.sets(st.sampled_from(order)))
    known = store()

    def play(chosen: set[int]) -> None:
        for index in order:
            if index in chosen:
                event_type, one = events[index]
                if event_type == "DELETED":
                    known.delete(deletion_of(one))
                else:
                    known.upsert(one)

    play(kept)
    newest = {key_of(one): one for event_type, one in events if event_type != "DELETED" and key_of(one) in expected}
    take_list(known, len(events), *newest.values())
    play(late)  # and events from before the list, still on their way, change nothing
    assert sorted(known) == sorted(expected.values())
