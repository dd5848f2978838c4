"""slice ids where they run out; the rest of admission is tested by whole passes."""

from msgspec.structs import replace

from slicebw.core.dataplane import MAX_SLICES
from slicebw.core.desired import SliceKey
from tests.unit.core.builders import Node, at, pod, spec

NEW = SliceKey("new", "s")


def churned() -> Node:
    """A node on which as many slices as there are ids were, and are gone, within their periods."""
    count = range(MAX_SLICES)
    specs = tuple(spec(f"n{n:04}/s", period_s=3600 + n) for n in count)
    pods = tuple(pod(f"n{n:04}/p", f"10.{n >> 8}.{n & 255}.1") for n in count)
    node = Node(*specs, pods=pods)
    node.run(at(0))
    node.desired = replace(node.desired, slices=(), pods=())
    for second in (1, 2, 3):
        node.run(at(second))
    return node


def test_a_newcomer_gets_the_id_of_a_slice_that_is_gone_where_no_other_is_left() -> None:
    node = churned()
    node.desired = replace(node.desired, slices=(spec("new/s"),), pods=(pod("new/p", "10.200.0.1"),))
    node.run(at(4))
    assert not node.ledger.unplaced
    assert node.ledger.slices[NEW].slice_id == 1
    assert node.ledger.slices[SliceKey("n0000", "s")].slice_id == 0
    assert len(node.ledger.slices) == MAX_SLICES + 1


def test_one_whose_id_was_given_away_comes_back_with_its_usage_under_another() -> None:
    node = churned()
    gone = node.ledger.slices[SliceKey("n0000", "s")]
    used = replace(gone, standard=replace(gone.standard, used_bytes=5, total_bytes=5))
    node.ledger = replace(node.ledger, slices={**node.ledger.slices, gone.key: used})
    both = (spec("new/s"), spec("n0000/s"))
    node.desired = replace(node.desired, slices=both[:1], pods=(pod("new/p", "10.200.0.1"),))
    node.run(at(4))
    back = (*node.desired.pods, pod("n0000/p", "10.0.0.1"))
    node.desired = replace(node.desired, slices=both, pods=back)
    node.run(at(5))
    account = node.ledger.slices[gone.key]
    assert (account.slice_id, account.live, account.standard.used_bytes) == (2, True, 5)
    assert node.ledger.slices[NEW].slice_id == 1


def test_an_id_is_not_given_away_while_its_class_or_its_address_is_in_the_kernel() -> None:
    node = churned()
    everything = node.desired
    first = node.ledger.slices[SliceKey("n0000", "s")]
    node.desired = replace(everything, slices=(spec("n0000/s"),), pods=(pod("n0000/p", "10.0.0.1"),))
    node.run(at(4))
    node.send(0x1001, 1000)
    node.desired = replace(everything, slices=(spec("new/s"),), pods=(pod("new/p", "10.200.0.1"),))
    node.run(at(5))
    assert node.ledger.slices[first.key].slice_id == first.slice_id
    assert node.ledger.slices[NEW].slice_id == 2
