"""HtbShaper where only the real kernel can test it: whose the root qdisc is, cleanup, drift, scale."""

import re
from collections.abc import Callable
from contextlib import closing

import pytest

from slicebw.core.dataplane import (
    FIRST_ID,
    LAST_ID,
    ChangeClass,
    ClassSpec,
    CreateClass,
    CreateRoot,
    DeleteClass,
    RemoveRoot,
    ReplaceLeafQdisc,
    RootQdisc,
    leaf,
)
from slicebw.core.plan import plan_tree
from slicebw.kernel.htb import HtbShaper
from tests.support.topology import UPLINK, Namespace, Topology
from tests.support.trees import EXEMPT, LINE_RATE_BPS, STANDARD, creation, tree

OURS = "qdisc add dev wan0 root handle 1: htb default 1fff"


@pytest.fixture
def device(namespace: Namespace) -> Callable[[str], str]:
    """Make a device ``wan0`` whose default root qdisc is of this kind."""

    def make(kind: str) -> str:
        if kind == "noqueue":
            namespace.ip("link add name wan0 type veth peer name far\nlink set wan0 up\nlink set far up\n")
        elif kind == "noop":
            namespace.ip("link add name wan0 type ifb\n")
        else:
            queues = {"pfifo_fast": 1, "mq": 4}[kind]
            namespace.ip(f"link add name wan0 numtxqueues {queues} type ifb\nlink set wan0 up\n")
        return "wan0"

    return make


def tc(namespace: Namespace, *lines: str) -> None:
    namespace.run("tc", "-batch", "-", text="".join(f"{line}\n" for line in lines))


def listing(namespace: Namespace, device: str) -> tuple[str, str]:
    """Return how classes and qdiscs are set up, without figures, which neighbor discovery changes."""
    classes, qdiscs = (namespace.run("tc", what, "show", "dev", device) for what in ("class", "qdisc"))
    return classes, re.sub(r"direct_packets_stat \d+ ", "", qdiscs)


@pytest.mark.parametrize("kind", ["noqueue", "noop", "pfifo_fast", "mq"])
def test_what_the_kernel_put_there_is_default_and_comes_back(
    namespace: Namespace, device: Callable[[str], str], shaper: HtbShaper, kind: str
) -> None:
    wan = device(kind)
    before = namespace.run("tc", "qdisc", "show", "dev", wan)
    observed = shaper.read(wan)
    assert (observed.root, observed.root_kind) == (RootQdisc.DEFAULT, kind)
    assert shaper.apply(wan, creation(tree()), LINE_RATE_BPS) == []
    assert shaper.read(wan).root is RootQdisc.OURS
    assert shaper.apply(wan, [RemoveRoot()], LINE_RATE_BPS) == []
    assert namespace.run("tc", "qdisc", "show", "dev", wan) == before
    assert shaper.read(wan) == observed


MQ_MADE = "qdisc add dev wan0 root {}mq"


@pytest.mark.parametrize("handle", ["", "handle 1: ", "handle 7: "])
@pytest.mark.parametrize("kind", ["ifb", "veth"])
def test_an_mq_with_nothing_but_its_default_children_is_as_the_kernels_own(
    namespace: Namespace, shaper: HtbShaper, kind: str, handle: str
) -> None:
    peer = " peer name far" if kind == "veth" else ""
    namespace.ip(f"link add name wan0 numtxqueues 8 type {kind}{peer}\nlink set wan0 up\n")
    default = namespace.run("tc", "qdisc", "show", "dev", "wan0")
    tc(namespace, MQ_MADE.format(handle), "qdisc add dev wan0 clsact")
    seen = shaper.read("wan0")
    assert (seen.root, seen.root_kind, seen.lost_queues) == (RootQdisc.DEFAULT, "mq", 8)
    assert shaper.apply("wan0", [RemoveRoot()], LINE_RATE_BPS) == []
    assert shaper.read("wan0") == seen, "there is nothing of ours to remove"
    assert shaper.apply("wan0", plan_tree(tree(), seen, ()), LINE_RATE_BPS) == []
    ours = shaper.read("wan0")
    assert (ours.root, ours.lost_queues, plan_tree(tree(), ours, ())) == (RootQdisc.OURS, 8, ())
    assert shaper.apply("wan0", [RemoveRoot()], LINE_RATE_BPS) == []
    # The device has its queues again: on ifb, as on hardware, under an mq of the kernel's own.
    tc(namespace, "qdisc del dev wan0 clsact")
    assert namespace.run("tc", "qdisc", "show", "dev", "wan0") == default
    assert shaper.read("wan0").root_kind == {"ifb": "mq", "veth": "noqueue"}[kind]


def test_the_queues_that_our_root_replaces_are_known_to_the_next_agent(
    namespace: Namespace, device: Callable[[str], str], shaper: HtbShaper
) -> None:
    wan = device("mq")
    assert shaper.read(wan).lost_queues == 4
    shaper.apply(wan, creation(tree()), LINE_RATE_BPS)
    with closing(HtbShaper()) as after:
        assert (after.read(wan).root, after.read(wan).lost_queues) == (RootQdisc.OURS, 4)


@pytest.mark.parametrize("kind", ["noqueue", "noop", "pfifo_fast"])
def test_a_device_without_mq_loses_no_queues(device: Callable[[str], str], shaper: HtbShaper, kind: str) -> None:
    wan = device(kind)
    assert shaper.read(wan).lost_queues == 0
    shaper.apply(wan, creation(tree()), LINE_RATE_BPS)
    assert shaper.read(wan).lost_queues == 0


def test_an_mq_with_a_child_that_somebody_attached_is_foreign_and_never_touched(
    namespace: Namespace, device: Callable[[str], str], shaper: HtbShaper
) -> None:
    wan = device("mq")
    tc(namespace, MQ_MADE.format("handle 7: "), "qdisc add dev wan0 parent 7:3 pfifo limit 10")
    before = listing(namespace, wan)
    seen = shaper.read(wan)
    assert (seen.root, seen.root_kind) == (RootQdisc.FOREIGN, "mq")
    failed = shaper.apply(wan, [*creation(tree()), RemoveRoot()], LINE_RATE_BPS)
    assert len(failed) == len(creation(tree())) + 1
    assert listing(namespace, wan) == before


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["qdisc add dev wan0 root tbf rate 1mbit burst 10k limit 100k"], id="tbf"),
        pytest.param(["qdisc add dev wan0 root pfifo"], id="a plain queue, but asked for"),
        pytest.param(["qdisc add dev wan0 root handle 1: htb"], id="htb without a default class"),
        pytest.param(["qdisc add dev wan0 root handle 1: htb default 10"], id="htb with another default class"),
        pytest.param(["qdisc add dev wan0 root handle 2: htb default 1fff"], id="htb with another handle"),
        pytest.param([OURS, "class add dev wan0 parent 1: classid 1:5 htb rate 1mbit"], id="classes, but no 1:1"),
        pytest.param(
            [
                OURS,
                "class add dev wan0 parent 1: classid 1:1 htb rate 1mbit",
                "class add dev wan0 parent 1: classid 1:10 htb rate 1mbit",
            ],
            id="1:10 not under 1:1",
        ),
    ],
)
def test_what_somebody_put_there_is_foreign_and_never_touched(
    namespace: Namespace, device: Callable[[str], str], shaper: HtbShaper, lines: list[str]
) -> None:
    wan = device("noqueue")
    tc(namespace, *lines)
    observed = shaper.read(wan)
    assert (observed.root, observed.root_kind, observed.classes) == (
        RootQdisc.FOREIGN,
        lines[0].split("root ")[1].split()[2 if "handle" in lines[0] else 0],
        {},
    )
    assert plan_tree(tree(), observed, ()) == ()
    assert plan_tree(None, observed, ()) == ()


def test_nothing_is_changed_under_a_root_without_our_marks(
    namespace: Namespace, device: Callable[[str], str], shaper: HtbShaper
) -> None:
    wan = device("noqueue")
    tc(namespace, "qdisc add dev wan0 root handle 1: htb default 10")
    before = listing(namespace, wan)
    changes = [*creation(tree()), RemoveRoot()]
    failed = shaper.apply(wan, changes, LINE_RATE_BPS)
    assert [one.change for one in failed] == changes
    assert failed[1].reason == failed[-1].reason == "the root qdisc of wan0 is not ours: htb 1:"
    assert listing(namespace, wan) == before


def test_a_tree_is_ours_however_its_making_was_interrupted(device: Callable[[str], str], shaper: HtbShaper) -> None:
    wan = device("noqueue")
    desired = tree()
    for change in creation(desired):
        assert shaper.apply(wan, [change], LINE_RATE_BPS) == []
        observed = shaper.read(wan)
        assert observed.root is RootQdisc.OURS
        assert not any(isinstance(left, CreateRoot) for left in plan_tree(desired, observed, ()))


def test_strays_in_our_tree_are_drift_and_are_planned_away(
    namespace: Namespace, device: Callable[[str], str], shaper: HtbShaper
) -> None:
    wan = device("noqueue")
    desired = tree()
    shaper.apply(wan, creation(desired), LINE_RATE_BPS)
    tc(
        namespace,
        "class add dev wan0 parent 1: classid 1:30 htb rate 1mbit",
        "class add dev wan0 parent 1:20 classid 1:1005 htb rate 1mbit",
        "class change dev wan0 classid 1:1001 htb rate 8bit ceil 1mbit quantum 1600",
        "class del dev wan0 classid 1:2002",
        "qdisc replace dev wan0 parent 1:1002 handle 77: pfifo limit 10",
    )
    observed = shaper.read(wan)
    changes = plan_tree(desired, observed, quiet={0x30, 0x1005})
    assert set(changes) == {
        DeleteClass(0x30),
        DeleteClass(0x1005),
        ChangeClass(desired[0x1001]),
        CreateClass(desired[0x2002]),
        ReplaceLeafQdisc(0x1002, 0x1002),
    }
    assert shaper.apply(wan, changes, LINE_RATE_BPS) == []
    assert plan_tree(desired, shaper.read(wan), ()) == ()


def test_every_leaf_has_a_queue_of_its_own_with_a_limit(lab: Topology, shaper: HtbShaper) -> None:
    assert shaper.apply(UPLINK, creation(tree()), LINE_RATE_BPS) == []
    qdiscs = lab.node.run("tc", "qdisc", "show", "dev", UPLINK)
    leaves = re.findall(r"qdisc (\S+) (\w+): parent 1:(\w+) .*?limit (\d+)p", qdiscs)
    assert {(major, minor) for _, major, minor, _ in leaves} == {
        (f"{leaf(kind, number):x}",) * 2 for kind in (STANDARD, EXEMPT) for number in (0, 1, 2, 0xFFF)
    }
    assert {(kind, limit) for kind, _, _, limit in leaves} <= {("fq_codel", "1000"), ("pfifo", "256")}
    assert len({kind for kind, *_ in leaves}) == 1
    assert "direct_qlen 1000" in qdiscs


def test_one_bad_change_is_reported_alone_and_the_others_hold(lab: Topology, shaper: HtbShaper) -> None:
    desired = tree(range(1, 301))
    assert shaper.apply(UPLINK, creation(desired), LINE_RATE_BPS) == []
    slower = [ClassSpec(m, s.parent, 8, 5_000_000, 3200, m) for m, s in desired.items() if 0x1001 <= m <= 0x112C]
    gone = ClassSpec(0x1500, 0x10, 8, 5_000_000, 1600, 0x1500)
    orphan = ClassSpec(0x1501, 0x10, 0, 8, 1600, 0x1501)
    changes = [ChangeClass(spec) for spec in slower]
    changes[150:150] = [ChangeClass(gone), CreateClass(orphan)]  # type: ignore[list-item]
    failed = shaper.apply(UPLINK, changes, LINE_RATE_BPS)
    assert [one.change for one in failed] == [ChangeClass(gone), CreateClass(orphan)]
    assert failed[0].reason == "there is no class 1:1500 (No such file or directory (ENOENT))"
    assert failed[1].reason.endswith("(EINVAL)")
    observed = shaper.read(UPLINK).classes
    assert {observed[spec.minor].ceil_bps for spec in slower} == {5_000_000}
    assert {observed[spec.minor].quantum_bytes for spec in slower} == {3200}
    assert 0x1500 not in observed


def test_a_full_node_is_made_read_changed_and_removed(lab: Topology, shaper: HtbShaper) -> None:
    desired = tree(range(FIRST_ID, LAST_ID + 1))
    assert len(desired) == 3 + 2 * 4096
    assert shaper.apply(UPLINK, creation(desired), LINE_RATE_BPS) == []
    observed = shaper.read(UPLINK)
    assert plan_tree(desired, observed, ()) == ()
    assert all(observed.classes[minor].leaf_major == spec.leaf_major for minor, spec in desired.items())
    assert {minor: one.parent for minor, one in observed.classes.items()} == {m: s.parent for m, s in desired.items()}
    slower = {
        minor: ClassSpec(minor, spec.parent, spec.rate_bps, 8_000_000 + 8 * minor, spec.quantum_bytes, spec.leaf_major)
        for minor, spec in desired.items()
        if spec.leaf_major
    }
    assert shaper.apply(UPLINK, [ChangeClass(spec) for spec in slower.values()], LINE_RATE_BPS) == []
    after = shaper.read(UPLINK).classes
    assert all(after[minor].ceil_bps == spec.ceil_bps for minor, spec in slower.items())
    assert shaper.apply(UPLINK, [RemoveRoot()], LINE_RATE_BPS) == []
    assert shaper.read(UPLINK).root is RootQdisc.DEFAULT


def test_another_device_of_the_same_name_is_another_one(
    namespace: Namespace, device: Callable[[str], str], shaper: HtbShaper
) -> None:
    wan = device("noqueue")
    assert shaper.apply(wan, creation(tree()), LINE_RATE_BPS) == []
    namespace.ip("link del wan0\n")
    device("noqueue")
    assert shaper.read(wan).root is RootQdisc.DEFAULT
    assert shaper.apply(wan, creation(tree()), LINE_RATE_BPS) == []
    assert plan_tree(tree(), shaper.read(wan), ()) == ()


def test_the_tree_outlives_its_shaper(lab: Topology) -> None:
    for first in (True, False):
        shaper = HtbShaper()
        changes = plan_tree(tree(), shaper.read(None), ())
        assert bool(changes) is first
        assert shaper.apply(UPLINK, changes, LINE_RATE_BPS) == []
        shaper.close()
