"""The nftables table that puts every packet into its class, and how it is written and read.

One table, ``inet slicebw``, whose one base chain stands in the postrouting hook at mangle priority: before source
NAT, so a pod's address is still there, and on the way out of every device but lo. ``meta priority set`` names the
HTB class; no tc filter is needed, and on devices without our tree it does nothing.

Which packet goes where, in the order of the rules:

* From a mapped address: the slice's class, standard or exempt by the destination. Whatever priority the pod gave
  the packet is overwritten.
* A priority that names one of our leaves already: it stays. That is a tunnel's outer packet (VXLAN, IPIP, GRE,
  Geneve): the inner one passed here on the tunnel device, the encapsulated one passes again as the node's and still
  carries the priority (net/ipv4/ip_tunnel_core.c, iptunnel_xmit). WireGuard clears it (wg_reset_packet), so under
  it everything goes to default, where it can be seen. Only a process with CAP_NET_ADMIN on the node could set such a
  priority itself; forwarding sets it anew from the TOS (net/ipv4/ip_forward.c) or it was cleared on leaving the
  pod's namespace.
* Without an input device: made on this node, so the host's. Needs Linux 5.7, which shows the postrouting hook the input
  device of forwarded packets; unlike the source address, which a pod with CAP_NET_RAW may forge, it cannot be chosen.
* Anything else: default's. So is the node's own neighbour discovery and IGMP, which do have an input device.

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
"""What :func:`fingerprint` makes of the table as rendered here, with the nft versions it was tried with (1.0.6)."""

_NFT_MSG_GETTABLE: Final = 10 << 8 | 1
_NFT_MSG_GETGEN: Final = 10 << 8 | 16
_NFTA_TABLE_NAME: Final = 1
_NFTA_GEN_ID: Final = 1
_NFGENMSG_ANY: Final = bytes(4)
_NFGENMSG_INET: Final = b"\x01\0\0\0"
_REMEMBERED_PROCESSES: Final = 64


def render(wanted: NftTable) -> str:
    """The whole table as one nft transaction that replaces whatever is there. Same input, same text."""
    lines = [
        # Adding first makes deleting safe; both are in one transaction, so no packet passes without a table.
        f"add table inet {TABLE}",
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
    ]
    for traffic_class in TrafficClass:
        for version in _FAMILIES:
            elements = [
                f"{address} : {classid(leaf(traffic_class, slice_id))}"
                for address, slice_id in sorted(wanted.slice_id_by_address.items())
                if _version(address) == version
            ]
            kind = f"type ipv{version}_addr : classid"
            lines += [f"\tmap {traffic_class}{version} {{", f"\t\t{kind}", *_elements(elements), "\t}"]
    networks = sorted(collapse(wanted.exempt_destinations))
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
    """Of an address or network in canonical text."""
    return 6 if ":" in text else 4


def _destinations(version: int) -> str:
    return f"exempt_destinations{version}"


def _elements(elements: list[str]) -> list[str]:
    return [f"\t\telements = {{ {', '.join(elements)} }}"] if elements else []


def _charge(traffic_class: TrafficClass) -> Iterator[str]:
    """The rules that choose a class of one kind; see the module's text for why they are in this order."""
    host = classid(leaf(traffic_class, HOST_ID))
    default = classid(leaf(traffic_class, DEFAULT_ID))
    for version, family in _FAMILIES.items():
        yield f"\t\tmeta priority set {family} saddr map @{traffic_class}{version} accept"
    ours = f"{classid(leaf(_STANDARD, HOST_ID))}-{classid(leaf(_EXEMPT, DEFAULT_ID))}"
    yield f'\t\tmeta priority {ours} accept comment "outer packet of a tunnel: stays with the inner one"'
    yield f'\t\tiif 0 meta priority set {host} accept comment "sent by the node itself"'
    yield f'\t\tmeta priority set {default} comment "forwarded from no slice"'


def render_update(change: UpdateTable) -> str:
    """Element changes as one nft transaction. Deletions come first, so an address can move from class to class."""
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
    """What ``nft -j list table`` shows. ``intact`` speaks for the elements here: whether we could have written them."""
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
    # Split otherwise than we would: the same destinations, but a later change of one of ours would not find it.
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
    """A digest of everything in the table but its elements: chains, rules in their order, maps and sets.

    Handles are left out. Two tables are alike exactly where nft, of one version, lists them alike.
    """
    things = []
    for entry in listing.get("nftables", ()):
        for kind, thing in entry.items():
            if kind != "metainfo":
                things.append({kind: {key: value for key, value in thing.items() if key not in ("handle", "elem")}})
    return sha256(json.dumps(things, sort_keys=True).encode()).hexdigest()[:16]


class NftClassifier:
    """The Classifier port, by the ``nft`` program.

    All calls come from one thread, those of :meth:`distrust` from any; nft runs in that thread's network namespace.
    The class may be made in any other.

    Args:
        clock_ns: any clock that never jumps; it tells how old a kept answer is.
    """

    def __init__(self, clock_ns: Callable[[], int] = boot_ns) -> None:
        self._netlink: NetlinkSocket | None = None
        self._own_processes: deque[int] = deque(maxlen=_REMEMBERED_PROCESSES)
        self._watcher: Watcher | None = None
        self._cache = TableCache(clock_ns)
        self._listed: tuple[int, NftTable] | None = None
        """What nft listed last, and the generation before it did."""
        self._learnt: str | None = None

    def read(self) -> NftTable:
        """What the table holds. Raises KernelError.

        The last answer is given again, without asking the kernel, for at most 10 s while the table is watched, until
        somebody is heard to change it or we change it ourselves. Otherwise the kernel is asked for its generation,
        and nft lists the table only if anybody has committed anything to nftables in this namespace since.

        ``intact`` compares the whole table with how nft lists ours: a rule put in, taken out or changed, a chain or
        set that is gone or new, a chain's hook or policy. Should this nft list it in a way not known, the way is
        learnt when the table is next written, which on the first read of a new agent costs one more writing.
        """
        return self._cache.get(self._read)

    def apply(self, change: TableChange) -> None:
        """Carry out one change as one transaction: all of it or nothing. Raises KernelError."""
        self._cache.distrust()  # also where the change fails: it may hold all the same
        match change:
            case ReplaceTable(wanted):
                before = self._generation()
                self._run("-f", "-", text=render(wanted))
                self._learn(before)
            case UpdateTable():
                self._run("-f", "-", text=render_update(change))
            case RemoveTable():
                self._run("-f", "-", text=f"add table inet {TABLE}\ndelete table inet {TABLE}\n")

    def watch(self, wake: Callable[[], None]) -> None:
        """From now on read the table again and call ``wake`` when somebody else changes it.

        ``wake`` is called from a thread of its own. Raises KernelError.
        """

        def changed() -> None:
            self._cache.distrust()
            wake()

        self._watcher = watch_table(TABLE, self._own_processes, changed)
        self._cache.start()

    def distrust(self) -> None:
        """Do not give the last answer again, as if somebody were heard to change the table."""
        self._cache.distrust()

    def close(self) -> None:
        """Free the socket, end the watching thread. Leaves the kernel as it is."""
        self._cache.stop()
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def _read(self) -> NftTable:
        # What is committed while nft lists raises the generation: then the next reading lists again.
        generation = self._generation()
        if self._listed is None or self._listed[0] != generation:
            self._listed = generation, self._list()
        return self._listed[1]

    def _list(self) -> NftTable:
        if not self._present():
            return NftTable(intact=False, present=False)
        listing = self._listing()
        found = parse(listing)
        known = fingerprint(listing) in _KNOWN_FINGERPRINTS | {self._learnt}
        return replace(found, intact=found.intact and known)

    def _learn(self, before: int) -> None:
        """Remember how nft lists the table just written, unless somebody else may have touched it meanwhile."""
        listing = self._listing()
        if self._generation() == before + 1:
            self._learnt = fingerprint(listing)

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
        """How many transactions this namespace's nftables has seen; the kernel counts them."""
        answer = self._socket().get(_NFT_MSG_GETGEN, _NFGENMSG_ANY, "asking for the nftables generation")
        if answer is not None:
            for kind, begin, _ in attributes(answer, len(_NFGENMSG_ANY), len(answer)):
                if kind == _NFTA_GEN_ID:
                    return int.from_bytes(answer[begin : begin + 4], "big")
        raise KernelError("the kernel does not tell its nftables generation")

    def _socket(self) -> NetlinkSocket:
        if self._netlink is None:
            self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        return self._netlink

    def _run(self, *arguments: str, text: str = "") -> str:
        """Run nft in the calling thread's network namespace; what it printed. Raises KernelError."""
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
    """What nft complains of, and the start of the line of ours that it points to."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return "; ".join(line[:100] for line in lines[:2]) or "failed without a word"
