"""The kinds that slicebw reads and writes, and their paths on the API server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from slicebw.api import kinds

Object = Mapping[str, Any]
"""One Kubernetes object as decoded JSON."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object, as the API server's paths name it."""

    group: str
    version: str
    plural: str
    namespaced: bool

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def custom(self) -> bool:
        """Whether a CustomResourceDefinition defines it, which may be missing or be removed."""
        return self.group == kinds.GROUP

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the path of a collection (of all namespaces if none is given), an object or a subresource."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/" + "/".join(parts)

    def path_of(self, obj: Object, subresource: str | None = None) -> str:
        """Return the path of an object, from the namespace and name in its metadata."""
        metadata = obj["metadata"]
        return self.path(metadata.get("namespace"), metadata["name"], subresource)


def not_installed_text(resource: Resource) -> str:
    """Return the warning for a kind that is not installed."""
    return f"CustomResourceDefinition {resource} is not installed: kubectl apply -f crds/"


def _own(kind: kinds.Kind) -> Resource:
    return Resource(kinds.GROUP, kinds.VERSION, kind.plural, kind.namespaced)


SLICE_BANDWIDTHS: Final = _own(kinds.SLICE_BANDWIDTH)
NODE_BANDWIDTHS: Final = _own(kinds.NODE_BANDWIDTH)
BANDWIDTH_USAGES: Final = _own(kinds.BANDWIDTH_USAGE)
PODS: Final = Resource("", "v1", "pods", namespaced=True)
NODES: Final = Resource("", "v1", "nodes", namespaced=False)
EVENTS: Final = Resource("", "v1", "events", namespaced=True)
CRDS: Final = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
