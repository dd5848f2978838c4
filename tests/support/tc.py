"""Reads the tree from ``tc``'s output, without any of the product's code."""

import re
from dataclasses import dataclass
from typing import Final

from tests.support.topology import NetworkNamespace

_CLASS: Final = re.compile(
    r"class htb (?P<id>1:[0-9a-f]+) .*?rate (?P<rate>\S+)bit ceil (?P<ceil>\S+)bit.*?Sent (?P<sent>\d+) bytes"
    r".*?backlog \S+b (?P<waiting>\d+)p",
    re.DOTALL,
)
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class ShownClass:
    """One HTB class."""

    rate_bps: int
    ceil_bps: int
    sent_bytes: int
    waiting_packets: int = 0


def classes(namespace: NetworkNamespace, device: str) -> dict[str, ShownClass]:
    """Return all HTB classes of a device by classid. Rates are exact if tc prints them exactly."""
    shown = namespace.run("tc", "-s", "class", "show", "dev", device)
    found = {}
    for block in shown.split("\n\n"):
        match = _CLASS.match(block)
        if match:
            rates = (_bps(match["rate"]), _bps(match["ceil"]))
            found[match["id"]] = ShownClass(*rates, int(match["sent"]), int(match["waiting"]))
    return found


def _bps(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGT]?)", text)
    assert match is not None, text
    return int(match[1]) * _UNITS[match[2]]
