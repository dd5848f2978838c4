"""Which slice's pods run on which node, from the pods of a namespace. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from slicebw.core.membership import resolve
from slicebw.core.model import Pod, SliceKey, SliceSpec

Places = Mapping[str, int]
"""How many pods of a slice run on each node; nodes without any are left out."""


def places_of(specs: Sequence[SliceSpec], pods: Mapping[str, Iterable[Pod]]) -> dict[SliceKey, Places]:
    """For each slice of a namespace the nodes on which it has pods, by the agents' own rules (core.membership)."""
    places: dict[SliceKey, dict[str, int]] = {spec.key: {} for spec in specs}
    slices = tuple(specs)
    without_pods = resolve(slices, ())  # indexes the selectors once, not for every node
    for node, on_node in pods.items():
        found = list(on_node)
        owners = resolve(slices, found, without_pods).addresses
        counts = Counter(key for pod in found if (key := _owner(pod, owners)) is not None)
        for key, count in counts.items():
            places[key][node] = count
    return dict(places)


def _owner(pod: Pod, owners: Mapping[str, SliceKey]) -> SliceKey | None:
    if pod.host_network or pod.finished:
        return None
    return next((owners[address] for address in pod.addresses if address in owners), None)
