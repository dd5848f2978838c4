from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from slicebw.core.dataplane import (
    ChangeClass,
    ClassSpec,
    CreateRoot,
    DeleteClass,
    NftTable,
    ObservedClass,
    RemoveRoot,
    ReplaceLeafQdisc,
    ResetTokens,
    RootQdisc,
)
from slicebw.core.desired import NodeSpec, TrafficClass, settle
from slicebw.core.plan import frame, leaf_class, plan_table, plan_tree, unmet
from slicebw.core.policy import Rates
from tests.unit.core.builders import M, applied, from_spec, tree_of

FRAME = frame(settle(NodeSpec(cap_bps=100 * M), 1000 * M))
SLICE = leaf_class(TrafficClass.STANDARD, 5, Rates(8, 10 * M), 1)
WANTED = FRAME | {SLICE.minor: SLICE}


def observed(wanted: dict[int, ClassSpec]) -> dict[int, ObservedClass]:
    return {minor: from_spec(spec) for minor, spec in wanted.items()}


def test_a_bare_device_gets_the_whole_tree_parents_first() -> None:
    changes = plan_tree(WANTED, tree_of({}, RootQdisc.DEFAULT), ())
    assert [str(change) for change in changes] == [
        "qdisc add root handle 1: htb default 1fff",
        "class add parent 1: classid 1:1 htb rate 1000000000bit ceil 1000000000bit",
        "class add parent 1:1 classid 1:10 htb rate 8bit ceil 100000000bit",
        "class add parent 1:1 classid 1:20 htb rate 8bit ceil 1000000000bit",
        "class add parent 1:10 classid 1:1000 htb rate 8bit ceil 100000000bit quantum 8000",
        "class add parent 1:10 classid 1:1005 htb rate 8bit ceil 10000000bit quantum 1600",
        "class add parent 1:10 classid 1:1fff htb rate 8bit ceil 100000000bit quantum 1600",
        "class add parent 1:20 classid 1:2000 htb rate 8bit ceil 1000000000bit quantum 8000",
        "class add parent 1:20 classid 1:2fff htb rate 8bit ceil 1000000000bit quantum 1600",
    ]


def test_what_is_as_desired_is_left_alone() -> None:
    assert plan_tree(WANTED, tree_of(observed(WANTED)), ()) == ()


def test_another_hands_classful_tree_is_never_touched() -> None:
    for wanted in (WANTED, None):
        assert plan_tree(wanted, tree_of(observed(WANTED), RootQdisc.FOREIGN), WANTED) == ()


def test_a_tree_not_wanted_goes_by_its_root() -> None:
    assert plan_tree(None, tree_of(observed(WANTED)), ()) == (RemoveRoot(),)
    assert plan_tree(None, tree_of({}, RootQdisc.DEFAULT), ()) == ()


def test_a_changed_ceiling_is_one_change() -> None:
    seen = observed(WANTED)
    seen[SLICE.minor] = replace(seen[SLICE.minor], ceil_bps=50 * M)
    assert plan_tree(WANTED, tree_of(seen), ()) == (ChangeClass(SLICE),)


def test_a_class_let_up_from_a_few_bits_is_forgiven_its_debt() -> None:
    seen = observed(WANTED)
    seen[SLICE.minor] = replace(seen[SLICE.minor], ceil_bps=8)
    assert plan_tree(WANTED, tree_of(seen), ()) == (ResetTokens(SLICE),)


def test_a_cap_that_grows_a_little_is_an_ordinary_change() -> None:
    seen = observed(WANTED)
    seen[SLICE.minor] = replace(seen[SLICE.minor], ceil_bps=500_000)
    grown = replace(SLICE, ceil_bps=520_000)
    assert plan_tree(WANTED | {SLICE.minor: grown}, tree_of(seen), ()) == (ChangeClass(grown),)


def test_a_foreign_leaf_qdisc_is_replaced() -> None:
    seen = observed(WANTED)
    seen[SLICE.minor] = replace(seen[SLICE.minor], leaf_major=0x8001)
    assert plan_tree(WANTED, tree_of(seen), ()) == (ReplaceLeafQdisc(SLICE.minor, SLICE.minor),)


def test_an_orphan_goes_once_it_is_quiet_and_has_no_children() -> None:
    seen = observed(WANTED)
    orphan = ClassSpec(0x1123, 0x10, 8, 8, 1600, 0x1123)
    seen[0x1123] = from_spec(orphan)
    assert plan_tree(WANTED, tree_of(seen), quiet=()) == ()
    assert plan_tree(WANTED, tree_of(seen), quiet={0x1123}) == (DeleteClass(0x1123),)
    seen[0x1124] = from_spec(ClassSpec(0x1124, 0x1123, 8, 8))
    assert plan_tree(WANTED, tree_of(seen), quiet={0x1123, 0x1124}) == (DeleteClass(0x1124),)


def test_a_class_under_the_wrong_parent_is_made_again() -> None:
    seen = observed(WANTED)
    seen[SLICE.minor] = replace(seen[SLICE.minor], parent=0x20)
    assert plan_tree(WANTED, tree_of(seen), ()) == (DeleteClass(SLICE.minor),)


def test_what_a_later_dump_does_not_show_is_unmet() -> None:
    changes = plan_tree(WANTED, tree_of({}, RootQdisc.DEFAULT), ())
    assert unmet(changes, tree_of(observed(WANTED))) == ()
    without = observed(WANTED)
    del without[SLICE.minor]
    assert [str(change) for change in unmet(changes, tree_of(without))] == [f"class add {SLICE}"]
    assert unmet([CreateRoot(), RemoveRoot()], tree_of({}, RootQdisc.DEFAULT)) == (CreateRoot(),)


ADDRESSES = st.sampled_from([f"10.0.0.{n}" for n in range(1, 6)] + ["fd00::1"])
TABLES = st.builds(
    NftTable,
    slice_id_by_address=st.dictionaries(ADDRESSES, st.integers(1, 4)),
    exempt_destinations=st.frozensets(st.sampled_from(["10.9.0.0/16", "fd99::/64", "192.0.2.0/24"])),
    intact=st.booleans(),
)


@given(wanted=TABLES, seen=TABLES)
def test_a_table_change_carried_out_leaves_nothing_to_change(wanted: NftTable, seen: NftTable) -> None:
    wanted = replace(wanted, intact=True)
    after = applied(seen, plan_table(wanted, seen))
    assert (after.slice_id_by_address, after.exempt_destinations) == (
        wanted.slice_id_by_address,
        wanted.exempt_destinations,
    )
    assert plan_table(wanted, after) is None


def test_a_moved_address_moves_in_one_transaction() -> None:
    change = plan_table(NftTable({"10.0.0.1": 2}), NftTable({"10.0.0.1": 1}))
    assert str(change) == "table update -10.0.0.1 +10.0.0.1=002"


def test_a_table_change_is_a_short_line_however_much_it_changes() -> None:
    networks = frozenset(f"10.{number >> 8}.{number & 255}.0/24" for number in range(10_000))
    text = str(plan_table(NftTable({}, networks), NftTable({})))
    assert text.startswith("table update +exempt 10.0.0.0/24 ")
    assert text.endswith(" and 9900 more")


def test_no_table_is_wanted_and_none_is_there() -> None:
    assert plan_table(None, NftTable(intact=False, present=False)) is None
    assert str(plan_table(None, NftTable())) == "table delete"
