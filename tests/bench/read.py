"""Reading all classes of the uplink: handle, parent, rate, ceiling, quantum and 64-bit byte counter.

Nothing is sent between two reads, which is the best case for a reader that knows its last read. A reader without a last
read is measured, too: it costs somewhat more than a read after all slices have sent.
"""

import socket
import subprocess
from collections.abc import Callable, Iterator

from pyroute2 import IPRoute

from slicebw.kernel.codec import ROOT_HANDLE, RTM_GETTCLASS, TCMSG
from slicebw.kernel.dump import ClassDecoder, read_classes
from slicebw.kernel.netlink import HEADER, NLM_F_DUMP, NLM_F_REQUEST, NetlinkSocket
from tests.bench.frame import Row, Samples, at_least_times, at_most_times, count, in_turn, less, single, times, wall_ms
from tests.bench.nodes import node_with_tree
from tests.support.topology import UPLINK

SLICES = (10, 100, 1_000, 4_094)
FLOOR = "recv alone"
TC = "tc -s class show"
PYROUTE2 = "pyroute2"
WITHOUT_LAST = "slicebw without a last read"
NLMSG_DONE = 3


def rows(quick: bool) -> Iterator[Row]:
    """Compare slicebw at each size with the bare kernel dump, ``tc`` and pyroute2."""
    per_slice: list[float] = []
    for slices in SLICES[:2] if quick else SLICES:
        case = count(slices)
        with node_with_tree(slices):
            found = measure(rounds=2 if quick else max(15, 30_000 // slices // 10), generic_rounds=1 if quick else 3)
        mine = found["slicebw"]
        most = slices == SLICES[-1]
        yield times(case, "slicebw", mine, "ms", (FLOOR, found[FLOOR]), at_most_times(1.5) if most else None)
        yield less(case, "slicebw", mine, "ms", (TC, found[TC]), at_least_times(3) if most else None)
        yield times(case, "slicebw, without a last read", found[WITHOUT_LAST], "ms", (FLOOR, found[FLOOR]))
        yield less(case, "slicebw, without a last read", found[WITHOUT_LAST], "ms", (TC, found[TC]))
        yield less(case, "slicebw", found["slicebw again"], "ms", (PYROUTE2, found[PYROUTE2]))
        per_slice.append(mine.median / slices)
    case = f"{SLICES[len(per_slice) - 1]:,} against {SLICES[len(per_slice) - 2]:,}"
    growth = per_slice[-1] / per_slice[-2]
    yield single(case, "slicebw, time per slice", growth, "times")


def measure(rounds: int, generic_rounds: int) -> dict[str, Samples]:
    """Read in all ways, in turn. pyroute2 is so slow that it gets few rounds, with slicebw measured again beside it."""
    ifindex = socket.if_nametoindex(UPLINK)
    netlink, decoder = NetlinkSocket(), ClassDecoder()
    receive = floor(ifindex)

    def slicebw() -> float:
        return wall_ms(lambda: read_classes(netlink, ifindex, decoder))

    def without_last() -> float:
        return wall_ms(lambda: read_classes(netlink, ifindex, ClassDecoder()))

    with IPRoute() as route:
        subjects = {
            FLOOR: lambda: wall_ms(receive),
            "slicebw": slicebw,
            WITHOUT_LAST: without_last,
            TC: lambda: wall_ms(tc),
        }
        found = in_turn(rounds, subjects)
        found |= in_turn(
            generic_rounds, {"slicebw again": slicebw, PYROUTE2: lambda: wall_ms(lambda: pyroute2(route, ifindex))}
        )
    netlink.close()
    return found


def floor(ifindex: int) -> Callable[[], None]:
    """Make a function that receives the same dump and decodes nothing: no reader can be faster."""
    request = TCMSG.pack(0, ifindex, 0, ROOT_HANDLE, 0)
    plain = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    plain.bind((0, 0))
    buffer = memoryview(bytearray(1 << 16))
    message = HEADER.pack(HEADER.size + len(request), RTM_GETTCLASS, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + request

    def ends(datagram: memoryview) -> bool:
        position = 0
        while position < len(datagram):
            length, kind, *_ = HEADER.unpack_from(datagram, position)
            if kind == NLMSG_DONE:
                return True
            position += length
        return False

    plain.send(message)
    whole = 0
    while True:
        received = plain.recv_into(buffer)
        whole += received
        if ends(buffer[:received]):
            break

    def receive() -> None:
        # Count bytes to find the end: the kernel makes larger datagrams once it has seen the size of the buffer.
        plain.send(message)
        left = whole
        while left > 0:
            left -= plain.recv_into(buffer)

    return receive


def tc() -> None:
    """Read as a shell script does: text from a pipe, which is thrown away."""
    subprocess.run(["tc", "-s", "class", "show", "dev", UPLINK], stdout=subprocess.PIPE, check=True)


def pyroute2(route: IPRoute, ifindex: int) -> int:
    """Read with pyroute2's generic decoder, and pick the same fields. Returns the number of classes."""
    found = {}
    for message in route.get_classes(index=ifindex):
        parameters = message.get_nested("TCA_OPTIONS", "TCA_HTB_PARMS")
        basic = message.get_nested("TCA_STATS2", "TCA_STATS_BASIC")
        figures = (parameters["rate"], parameters["ceil"], parameters["quantum"], basic["bytes"])
        found[message["handle"]] = (message["parent"], *figures)
    return len(found)
