"""The names of slicebw's API: group, version, kinds, labels and field managers."""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from slicebw.api.quantity import shown

GROUP: Final = "slicebw.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
CATEGORY: Final = "slicebw"
"""``kubectl get slicebw`` lists all three kinds."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One of slicebw's kinds, with the names in its CustomResourceDefinition (``crds/<plural>.yaml``)."""

    name: str
    plural: str
    short_name: str
    namespaced: bool

    @property
    def crd(self) -> str:
        """The name of its CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


SLICE_BANDWIDTH: Final = Kind("SliceBandwidth", "slicebandwidths", "slbw", namespaced=True)
BANDWIDTH_USAGE: Final = Kind("BandwidthUsage", "bandwidthusages", "bwu", namespaced=True)
NODE_BANDWIDTH: Final = Kind("NodeBandwidth", "nodebandwidths", "nbw", namespaced=False)
ALL: Final = (SLICE_BANDWIDTH, BANDWIDTH_USAGE, NODE_BANDWIDTH)

DEFAULT_NODE_BANDWIDTH: Final = "default"
"""The NodeBandwidth that applies to every node. One named after a node overrides it field by field."""

LABEL_SLICE: Final = f"{GROUP}/slice"
LABEL_NODE: Final = f"{GROUP}/node"

AGENT_MANAGER: Final = "slicebw-agent"
"""The agents' field manager in server-side applies, and the source component of their Events."""
CONTROLLER_MANAGER: Final = "slicebw-controller"

MAX_NAME_LENGTH: Final = 253
"""Of an object's name, which is an RFC 1123 subdomain (apimachinery, util/validation)."""
MAX_LABEL_VALUE_LENGTH: Final = 63
_DIGEST_LENGTH: Final = 16
_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def name_error(name: str) -> str | None:
    """Return what is wrong with the name of an object or namespace, or None for a legal one."""
    if not name:
        return "must be given"
    if len(name) <= MAX_NAME_LENGTH and _NAME.fullmatch(name):
        return None
    return f"{shown(name)} is not a name: use up to {MAX_NAME_LENGTH} lower case letters, digits, - and . (codeen)"


def digest(*parts: str) -> str:
    """Return sixteen hex digits (64 bits) that identify ``parts``. They must never change: names are made of them."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_DIGEST_LENGTH]


def marked(text: str, mark: str, length: int = MAX_NAME_LENGTH) -> str:
    """Append ``-mark`` to a name or label value, cut to ``length`` characters in all. The result stays legal."""
    # Each part of a name must end in a letter or digit, so punctuation at the cut goes.
    return f"{text[: length - len(mark) - 1].rstrip('-._')}-{mark}"


def label_value(name: str) -> str:
    """Return the label value for an object's name: the name, or if that is too long, its start and a digest."""
    if len(name) <= MAX_LABEL_VALUE_LENGTH:
        return name
    return marked(name, digest(name), MAX_LABEL_VALUE_LENGTH)
