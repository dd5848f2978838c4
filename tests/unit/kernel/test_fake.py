"""The fake kernel's faults, and what is left of a batch after one. The contract suite in tests/kernel has the rest."""

import pytest

from slicebw.core.dataplane import ChangeClass, CreateClass, NftTable, RemoveTable, ReplaceTable, RootQdisc
from slicebw.core.errors import KernelError, UplinkError
from slicebw.core.plan import plan_tree
from slicebw.kernel.fake import FakeClassifier, FakeShaper, Fault
from tests.support.trees import LINE_RATE_BPS, creation, tree

DESIRED = tree()


@pytest.mark.parametrize(("fault", "made"), [(Fault.BEFORE, 0), (Fault.AFTER, 1)])
def test_a_fault_ends_the_batch_before_or_after_its_change(fault: Fault, made: int) -> None:
    shaper = FakeShaper()
    shaper.faults.append((CreateClass, fault))
    with pytest.raises(KernelError):
        shaper.apply("uplink0", creation(DESIRED), LINE_RATE_BPS)
    observed = shaper.read(None)
    assert (observed.root, len(observed.classes)) == (RootQdisc.OURS, made)
    assert shaper.apply("uplink0", plan_tree(DESIRED, observed, ()), LINE_RATE_BPS) == []
    assert plan_tree(DESIRED, shaper.read(None), ()) == ()


def test_a_refused_change_is_reported_and_the_rest_goes_on() -> None:
    shaper = FakeShaper()
    shaper.apply("uplink0", creation(DESIRED), LINE_RATE_BPS)
    shaper.faults.append((ChangeClass, Fault.REFUSED))
    changes = [ChangeClass(DESIRED[0x1001]), ChangeClass(DESIRED[0x1002])]
    assert [failed.change for failed in shaper.apply("uplink0", changes, LINE_RATE_BPS)] == changes[:1]
    assert shaper.applied[-1] == changes[1]


def test_torn_reads_end() -> None:
    shaper = FakeShaper()
    shaper.torn_reads = 2
    for _ in range(2):
        with pytest.raises(KernelError):
            shaper.read(None)
    assert shaper.read(None).device == "uplink0"


def test_counters_advance_and_go_with_the_tree() -> None:
    shaper = FakeShaper("wan0", "wan1")
    shaper.apply("wan0", creation(DESIRED), LINE_RATE_BPS)
    shaper.send(0x1001, 1500)
    first = shaper.read(None)
    shaper.send(0x1001, 1500)
    assert first.classes[0x1001].sent_bytes == 1500  # an earlier result does not change
    assert shaper.read("wan0").classes[0x1001].sent_bytes == 3000
    shaper.devices["wan0"].lose_tree()
    assert shaper.read("wan0").root is RootQdisc.DEFAULT
    shaper.default_device = None
    with pytest.raises(UplinkError, match="no default route"):
        shaper.read(None)


@pytest.mark.parametrize(("fault", "present"), [(Fault.BEFORE, False), (Fault.AFTER, True)])
def test_a_fault_of_the_table_is_before_or_after_the_transaction(fault: Fault, present: bool) -> None:
    classifier = FakeClassifier()
    classifier.faults.append(fault)
    with pytest.raises(KernelError):
        classifier.apply(ReplaceTable(NftTable({"10.0.0.1": 1})))
    assert classifier.read().present is present
    classifier.apply(RemoveTable())
    classifier.failing_reads = 1
    with pytest.raises(KernelError):
        classifier.read()
    assert not classifier.read().present


def test_a_spoilt_table_is_not_intact_and_keeps_its_elements() -> None:
    classifier = FakeClassifier()
    classifier.apply(ReplaceTable(NftTable({"10.0.0.1": 1})))
    classifier.spoil()
    assert classifier.read() == NftTable({"10.0.0.1": 1}, intact=False)
