"""The nftables table that puts every packet into its class: renders it, reads it, and carries out changes by ``nft``.

The table is ``inet slicebw``. Its one base chain is in the postrouting hook at mangle priority: before source NAT, so
that a pod's address is still in the packet, and on the way out of every device but lo. ``meta priority set`` names the
HTB class. No tc filter is needed, and on devices without our tree the priority has no effect.

Which packet goes where, in the order of the rules:

* From a mapped address: the slice's class, standard or exempt by the destination. A priority that the pod has set is
  overwritten.
* With a priority that already names one of our leaves: that leaf. This is a tunnel's outer packet (VXLAN, IPIP, GRE,
  Geneve). The inner packet passed this hook on the tunnel device; the outer one passes it again as the node's, and
  still carries the priority (net/ipv4/ip_tunnel_core.c, iptunnel_xmit). WireGuard clears it (wg_reset_packet), so all
  its traffic goes to default, where it is visible. Only a process with CAP_NET_ADMIN on the node could set such a
  priority itself: a forwarded packet gets its priority from the TOS (net/ipv4/ip_forward.c), or it was cleared when the
  packet left the pod's namespace.
* Without an input device: made on this node, so the host's. This needs Linux 5.7, which shows the postrouting hook the
  input device of forwarded packets. A pod cannot choose it, unlike the source address, which a pod with CAP_NET_RAW may
  forge.
* Any other: default's. This includes the node's own neighbor discovery and IGMP, which do have an input device.

ARP and other packets that are not IP never come here; HTB puts them into its default class.
"""

import errno
import json
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any, Final

from msgspec.structs import replace

from slicebw.core.dataplane import (
    DEFAULT_ID,
    FIRST_ID,
    HANDLE_MAJOR,
    HOST_ID,
    LAST_ID,
    NftTable,
    RemoveTable,
    ReplaceTable,
    TableChange,
    UpdateTable,
    classid,
    leaf,
)
from slicebw.core.desired import TrafficClass, collapse
from slicebw.core.errors import KernelError
from slicebw.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket, RefusedError, attribute, attributes
from slicebw.kernel.table_cache import TableCache, boot_ns
from slicebw.kernel.watch import Watcher, watch_table

TABLE: Final = "slicebw"
_NFT: Final = "nft"
_TIMEOUT_S: Final = 60

_FAMILIES: Final = {4: "ip", 6: "ip6"}
_STANDARD: Final = TrafficClass.STANDARD
_EXEMPT: Final = TrafficClass.EXEMPT

_KNOWN_FINGERPRINTS: Final = frozenset({"9bae2c75eb00216e"})
"""The :func:`fingerprint` of the table as rendered here, for the nft versions that were tested (1.0.6)."""

_NFT_MSG_GETTABLE: Final = 10 << 8 | 1
_NFT_MSG_GETGEN: Final = 10 << 8 | 16
_NFTA_TABLE_NAME: Final = 1
_NFTA_GEN_ID: Final = 1
_NFGENMSG_ANY: Final = bytes(4)
_NFGENMSG_INET: Final = b"\x01\0\0\0"
_REMEMBERED_PROCESSES: Final = 64
"""How many of our last nft processes are remembered, to tell their notifications from those of other programs."""


def render(desired: NftTable) -> str:
    """Return one nft transaction that replaces the whole table. The same input gives the same text."""
    lines = [
        # Deleting an absent table would fail, so it is added first. All is one transaction: no packet passes between.
        f"add table inet {TABLE}",
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
    ]
    for traffic_class in TrafficClass:
        for version in _FAMILIES:
            elements = [
                f"{address} : {classid(leaf(traffic_class, slice_id))}"
                for address, slice_id in sorted(desired.slice_id_by_address.items())
                if _version(address) == version
            ]
            kind = f"type ipv{version}_addr : classid"
            lines += [f"\tmap {traffic_class}{version} {{", f"\t\t{kind}", *_elements(elements), "\t}"]
    networks = sorted(collapse(desired.exempt_destinations))
    for version in _FAMILIES:
        elements = [network for network in networks if _version(network) == version]
        lines += [f"\tset {_destinations(version)} {{", f"\t\ttype ipv{version}_addr", "\t\tflags interval"]
        lines += [*_elements(elements), "\t}"]
    lines += [
        "\tchain postrouting {",
        "\t\ttype filter hook postrouting priority mangle; policy accept;",
        '\t\toif "lo" accept',
        *(f"\t\t{family} daddr @{_destinations(version)} goto exempt" for version, family in _FAMILIES.items()),
        *_charge(_STANDARD),
        "\t}",
        "\tchain exempt {",
        *_charge(_EXEMPT),
        "\t}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _version(text: str) -> int:
    """Return the IP version of an address or network in canonical text."""
    return 6 if ":" in text else 4


def _destinations(version: int) -> str:
    return f"exempt_destinations{version}"


def _elements(elements: list[str]) -> list[str]:
    return [f"\t\telements = {{ {', '.join(elements)} }}"] if elements else []


def _charge(traffic_class: TrafficClass) -> Iterator[str]:
    """Yield the rules that choose a class. The module docstring explains their order."""
    host = classid(leaf(traffic_class, HOST_ID))
    default = classid(leaf(traffic_class, DEFAULT_ID))
    for version, family in _FAMILIES.items():
        yield f"\t\tmeta priority set {family} saddr map @{traffic_class}{version} accept"
    ours = f"{classid(leaf(_STANDARD, HOST_ID))}-{classid(leaf(_EXEMPT, DEFAULT_ID))}"
    yield f'\t\tmeta priority {ours} accept comment "outer packet of a tunnel: stays with the inner one"'
    yield f'\t\tiif 0 meta priority set {host} accept comment "sent by the node itself"'
    yield f'\t\tmeta priority set {default} comment "forwarded from no slice"'


def render_update(change: UpdateTable) -> str:
    """Return changes of elements as one nft transaction. Deletions come first, so an address can change its class."""
    lines = []
    for verb, addresses, networks in (
        ("delete", [(address, None) for address in change.remove], change.exempt_remove),
        ("add", list(change.add), change.exempt_add),
    ):
        for version in _FAMILIES:
            of_version = [(text, number) for text, number in addresses if _version(text) == version]
            for traffic_class in TrafficClass:
                words = [_element(text, number, traffic_class) for text, number in sorted(of_version)]
                lines += _element_command(verb, f"{traffic_class}{version}", words)
            words = [network for network in sorted(networks) if _version(network) == version]
            lines += _element_command(verb, _destinations(version), words)
    return "".join(line + "\n" for line in lines)


def _element(address: str, slice_id: int | None, traffic_class: TrafficClass) -> str:
    return address if slice_id is None else f"{address} : {classid(leaf(traffic_class, slice_id))}"


def _element_command(verb: str, name: str, elements: list[str]) -> list[str]:
    return [f"{verb} element inet {TABLE} {name} {{ {', '.join(elements)} }}"] if elements else []


def parse(listing: Mapping[str, Any]) -> NftTable:
    """Parse the output of ``nft -j list table``. ``intact`` says whether slicebw could have written these elements."""
    slices: dict[TrafficClass, dict[str, int]] = {_STANDARD: {}, _EXEMPT: {}}
    networks: list[str] = []
    intact = True
    for entry in listing.get("nftables", ()):
        for kind, thing in entry.items():
            if kind not in ("map", "set"):
                continue
            elements = thing.get("elem", ())
            try:
                if kind == "set":
                    networks += map(_network, elements)
                else:
                    traffic_class = TrafficClass(thing["name"][:-1])
                    slices[traffic_class].update(_slice(element, traffic_class) for element in elements)
            except (ValueError, TypeError, KeyError):
                intact = False
    exempt_destinations = collapse(networks)
    # Networks that could be merged cover the same destinations, but deleting one of ours later would not find it.
    intact &= len(exempt_destinations) == len(networks) and slices[_STANDARD] == slices[_EXEMPT]
    return NftTable(slices[_STANDARD], exempt_destinations, intact)


def _slice(element: Any, traffic_class: TrafficClass) -> tuple[str, int]:
    address, text = element
    major, _, minor = text.partition(":")
    slice_id = int(minor, 16) - leaf(traffic_class, 0)
    if int(major, 16) != HANDLE_MAJOR or not FIRST_ID <= slice_id <= LAST_ID:
        raise ValueError(f"{text} is no slice's class")
    return str(ip_address(address)), slice_id


def _network(element: Any) -> str:
    if isinstance(element, str):
        return str(ip_network(element))
    if "prefix" in element:
        return f"{element['prefix']['addr']}/{element['prefix']['len']}"
    (network,) = summarize_address_range(*(ip_address(end) for end in element["range"]))
    return str(network)


def fingerprint(listing: Mapping[str, Any]) -> str:
    """Return a digest of everything in the table except elements and handles: chains, rules in order, maps, sets.

    Digests can be compared only if the same version of nft made both listings.
    """
    things = []
    for entry in listing.get("nftables", ()):
        for kind, thing in entry.items():
            if kind != "metainfo":
                things.append({kind: {key: value for key, value in thing.items() if key not in ("handle", "elem")}})
    return sha256(json.dumps(things, sort_keys=True).encode()).hexdigest()[:16]


class NftClassifier:
    """The Classifier port over the ``nft`` program.

    All calls but :meth:`invalidate` come from one thread. nft runs in that thread's network namespace, so the object
    may be made in another thread.

    Args:
        clock_ns: any clock that never jumps; it dates the table that is kept.
    """

    def __init__(self, clock_ns: Callable[[], int] = boot_ns) -> None:
        self._netlink: NetlinkSocket | None = None
        self._own_processes: deque[int] = deque(maxlen=_REMEMBERED_PROCESSES)
        self._watcher: Watcher | None = None
        self._cache = TableCache(clock_ns)
        self._listed: tuple[int, NftTable] | None = None
        """The nftables generation before the last listing, and the table that was listed."""
        self._learned: str | None = None
        """The fingerprint of our table in this nft's listing, once we have written it."""

    def read(self) -> NftTable:
        """Read the table. Raises KernelError.

        While the table is watched, the last answer is returned again without asking the kernel: for at most 10 s, and
        until a notification of a change arrives or we change the table. Otherwise the kernel is asked for its
        generation, and nft lists the table only if anything has been committed to nftables in this namespace since.

        ``intact`` is False if anything differs from our table as nft lists it: an added, removed or changed rule, a
        missing or additional chain or set, a chain's hook or policy. If this version of nft lists our table in an
        unknown way, that is learned when the table is next written; a new agent then writes it once without need.
        """
        return self._cache.get(self._read)

    def apply(self, change: TableChange) -> None:
        """Carry out one change as one transaction: all of it or none. Raises KernelError."""
        self._cache.invalidate()  # first: a change may take effect although nft fails
        match change:
            case ReplaceTable(desired):
                before = self._generation()
                self._run("-f", "-", text=render(desired))
                self._learn(before)
            case UpdateTable():
                self._run("-f", "-", text=render_update(change))
            case RemoveTable():
                self._run("-f", "-", text=f"add table inet {TABLE}\ndelete table inet {TABLE}\n")

    def watch(self, wake: Callable[[], None]) -> None:
        """From now on keep the table that was read last, and call ``wake`` when another program changes it.

        ``wake`` is called from a thread of its own. Raises KernelError.
        """

        def changed() -> None:
            self._cache.invalidate()
            wake()

        self._watcher = watch_table(TABLE, self._own_processes, changed)
        self._cache.start()

    def invalidate(self) -> None:
        """Read the table again at the next call of :meth:`read`, as after a notification. Callable from any thread."""
        self._cache.invalidate()

    def close(self) -> None:
        """Close the socket, and end the watching thread. Changes nothing in the kernel."""
        self._cache.stop()
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def _read(self) -> NftTable:
        # Before listing: a commit while nft lists raises the generation, so that the next read lists again.
        generation = self._generation()
        if self._listed is None or self._listed[0] != generation:
            self._listed = generation, self._list()
        return self._listed[1]

    def _list(self) -> NftTable:
        # By netlink: nft reports an absent table only as an error text.
        if not self._present():
            return NftTable(intact=False, present=False)
        listing = self._listing()
        found = parse(listing)
        known = fingerprint(listing) in _KNOWN_FINGERPRINTS | {self._learned}
        return replace(found, intact=found.intact and known)

    def _learn(self, before: int) -> None:
        """Remember how nft lists the table just written, unless another program may have changed it meanwhile."""
        listing = self._listing()
        if self._generation() == before + 1:  # ours was the only transaction
            self._learned = fingerprint(listing)

    def _listing(self) -> dict[str, Any]:
        output = self._run("-j", "list", "table", "inet", TABLE)
        try:
            listing = json.loads(output)
        except ValueError as error:
            raise KernelError(f"nft -j list table inet {TABLE}: not JSON: {error}") from error
        if not isinstance(listing, dict):
            raise KernelError(f"nft -j list table inet {TABLE}: no JSON object")
        return listing

    def _present(self) -> bool:
        request = _NFGENMSG_INET + attribute(_NFTA_TABLE_NAME, TABLE.encode() + b"\0")
        try:
            return self._socket().get(_NFT_MSG_GETTABLE, request, "looking for the nftables table") is not None
        except RefusedError as error:
            if error.refusal.errno == errno.ENOENT:
                return False
            raise

    def _generation(self) -> int:
        """Return how many transactions were committed to this namespace's nftables. The kernel counts them."""
        answer = self._socket().get(_NFT_MSG_GETGEN, _NFGENMSG_ANY, "asking for the nftables generation")
        if answer is not None:
            for kind, begin, _ in attributes(answer, len(_NFGENMSG_ANY), len(answer)):
                if kind == _NFTA_GEN_ID:
                    return int.from_bytes(answer[begin : begin + 4], "big")
        raise KernelError("the kernel does not report its nftables generation")

    def _socket(self) -> NetlinkSocket:
        if self._netlink is None:
            self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        return self._netlink

    def _run(self, *arguments: str, text: str = "") -> str:
        """Run nft in the calling thread's network namespace. Returns its output. Raises KernelError."""
        command = [_NFT, *arguments]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
            )
        except FileNotFoundError as error:
            raise KernelError("there is no nft program: apt install nftables") from error
        except OSError as error:
            raise KernelError(f"cannot run nft: {error.strerror}") from error
        self._own_processes.append(process.pid)
        with process:
            try:
                output, errors = process.communicate(text, timeout=_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise KernelError(f"{' '.join(command)}: no answer in {_TIMEOUT_S} s") from error
        if process.returncode != 0:
            raise KernelError(f"{' '.join(command)}: {_first_error(errors)}")
        return output


def _first_error(errors: str) -> str:
    """Return nft's first error, and the start of the line of our input that it points to."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return "; ".join(line[:100] for line in lines[:2]) or "failed without an error message"
