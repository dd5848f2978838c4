"""Pods: the fields of a core/v1 Pod that slicebw needs."""

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from slicebw.api.fields import Metadata
from slicebw.core.desired import Pod

_FINISHED_PHASES: Final = ("Succeeded", "Failed")
_BROADCAST: Final = IPv4Address("255.255.255.255")


def parse(obj: object) -> Pod:
    """Parse a pod. Never raises: a malformed field counts as absent.

    ``addresses`` are those of ``status.podIPs`` (``podIP`` from old kubelets) in canonical form. A pod in the host's
    network has the node's addresses. Addresses that cannot be one pod's own are left out: loopback, multicast,
    broadcast and unspecified ones, and those with a zone (``fe80::1%eth0``).
    """
    metadata = Metadata(obj)
    spec, status = _mapping(obj, "spec"), _mapping(obj, "status")
    return Pod(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        labels=metadata.labels,
        addresses=tuple(dict.fromkeys(_addresses(status))),
        host_network=spec.get("hostNetwork") is True,
        finished=status.get("phase") in _FINISHED_PHASES,
        created_s=metadata.created_s,
        deleting=metadata.deleting,
    )


def _addresses(status: Mapping[str, Any]) -> Iterator[str]:
    listed = status.get("podIPs")
    entries = listed if isinstance(listed, list | tuple) else ()
    values = [entry.get("ip") for entry in entries if isinstance(entry, Mapping)]
    for value in (*values, status.get("podIP")):
        if not isinstance(value, str):
            continue
        try:
            address = ip_address(value)
        except ValueError:
            continue
        if isinstance(address, IPv6Address):
            if address.scope_id is not None:
                continue  # nft would refuse it, and with it all other addresses of the transaction
            address = address.ipv4_mapped or address  # on the wire such packets are IPv4
        if not (address.is_loopback or address.is_multicast or address.is_unspecified or address == _BROADCAST):
            yield str(address)


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    inner = value.get(name) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}
