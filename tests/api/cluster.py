"""A real control plane for tests, driven with the kubernetes client. Tests can stop its API server."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kubernetes import client, config

from slicebw.api import kinds

_T = TypeVar("_T")

REPOSITORY = Path(__file__).resolve().parents[2]
HACK = REPOSITORY / "hack"
CRDS = REPOSITORY / "crds"

Object = Mapping[str, Any]


def eventually(look: Callable[[], _T | None], within_s: float = 5.0, every_s: float = 0.02) -> _T:
    """Call ``look`` until it returns something true, and return that. Raises AssertionError when the time is up."""
    deadline = time.monotonic() + within_s
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"still {seen!r} after {within_s} s"
        time.sleep(every_s)


def throughout(look: Callable[[], object], for_s: float, every_s: float = 0.02) -> None:
    """Call ``look`` for some time. Raises AssertionError as soon as it returns something false."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        assert look()
        time.sleep(every_s)


class ClusterClient:
    """The administrator's clients of a cluster's API: the kubernetes client, and kubectl.

    Args:
        kubeconfig: of an administrator.
        kubectl: the program.
    """

    def __init__(self, kubeconfig: Path, kubectl: Path) -> None:
        self.kubeconfig = kubeconfig
        self._kubectl = kubectl
        api = config.new_client_from_config(str(kubeconfig))
        self.core = client.CoreV1Api(api)
        self.custom = client.CustomObjectsApi(api)
        self.extensions = client.ApiextensionsV1Api(api)

    def kubectl_command(self, *arguments: str) -> list[str]:
        """A command line that runs kubectl."""
        return [str(self._kubectl), "--kubeconfig", str(self.kubeconfig), *arguments]

    def kubectl(self, *arguments: str) -> str:
        """What kubectl prints, as a person would see it."""
        return subprocess.run(
            self.kubectl_command(*arguments), check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def install_crds(self, *plurals: str) -> None:
        """Install the named kinds, or all, and wait until the API server serves them."""
        # Through the API, not with kubectl, whose check by the schema of Kubernetes 1.20 refuses CEL rules.
        names = plurals or tuple(kind.plural for kind in kinds.ALL)
        for plural in names:
            self.extensions.create_custom_resource_definition(yaml.safe_load((CRDS / f"{plural}.yaml").read_text()))
        for plural in names:
            eventually(lambda plural=plural: self.serves(plural), within_s=15)  # type: ignore[misc]

    def remove_crds(self, *plurals: str) -> None:
        """Remove the named kinds, or all, with all their objects, and wait until they are gone."""
        names = plurals or tuple(kind.plural for kind in kinds.ALL)
        for plural in names:
            self.extensions.delete_custom_resource_definition(f"{plural}.{kinds.GROUP}")
        for plural in names:
            eventually(lambda plural=plural: not self.has_crd(plural), within_s=15)  # type: ignore[misc]

    def has_crd(self, plural: str) -> bool:
        """Tell whether there is such a CustomResourceDefinition."""
        items = self.extensions.list_custom_resource_definition().items
        return any(item.metadata.name == f"{plural}.{kinds.GROUP}" for item in items)

    def serves(self, plural: str) -> bool:
        """Tell whether the objects of a kind can be listed."""
        try:
            self.custom.list_cluster_custom_object(kinds.GROUP, kinds.VERSION, plural)
        except client.ApiException as error:
            if error.status == 404:
                return False
            raise
        return True

    def create(self, obj: Object) -> Any:
        """Create an object of one of slicebw's kinds."""
        plural, namespace = _plural(obj), obj["metadata"].get("namespace")
        if namespace is None:
            return self.custom.create_cluster_custom_object(kinds.GROUP, kinds.VERSION, plural, obj)
        return self.custom.create_namespaced_custom_object(kinds.GROUP, kinds.VERSION, namespace, plural, obj)

    def merge(self, obj: Object) -> Any:
        """Merge fields into an object of one of slicebw's kinds."""
        plural, namespace, name = _plural(obj), obj["metadata"].get("namespace"), obj["metadata"]["name"]
        if namespace is None:
            return self.custom.patch_cluster_custom_object(kinds.GROUP, kinds.VERSION, plural, name, obj)
        return self.custom.patch_namespaced_custom_object(kinds.GROUP, kinds.VERSION, namespace, plural, name, obj)

    def read(self, kind: kinds.Kind, name: str, namespace: str | None = None) -> Any:
        """Return an object of one of slicebw's kinds; None if it does not exist."""
        try:
            if namespace is None:
                return self.custom.get_cluster_custom_object(kinds.GROUP, kinds.VERSION, kind.plural, name)
            return self.custom.get_namespaced_custom_object(kinds.GROUP, kinds.VERSION, namespace, kind.plural, name)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise

    def delete(self, kind: kinds.Kind, name: str, namespace: str | None = None) -> None:
        """Delete an object of one of slicebw's kinds."""
        if namespace is None:
            self.custom.delete_cluster_custom_object(kinds.GROUP, kinds.VERSION, kind.plural, name)
        else:
            self.custom.delete_namespaced_custom_object(kinds.GROUP, kinds.VERSION, namespace, kind.plural, name)

    def events(self, namespace: str) -> list[Any]:
        """All Events in a namespace."""
        return list(self.core.list_namespaced_event(namespace).items)


class Cluster(ClusterClient):
    """One control plane in a folder of its own (hack/control-plane), and clients for it."""

    def __init__(self, folder: Path) -> None:
        """Start it."""
        self.folder = folder
        self.start()
        super().__init__(folder / "kubeconfig", folder / "assets" / "kubectl")

    def start(self) -> None:
        """Start what does not run, and wait until the API server is ready."""
        self._control("start")

    def stop_api_server(self) -> None:
        """As in an outage; etcd keeps everything."""
        self._control("stop", "--only", "apiserver")

    def stop(self) -> None:
        """Stop and forget everything."""
        self._control("stop")

    def create_pod(self, namespace: str, name: str, node: str, *addresses: str, labels: Object | None = None) -> None:
        """Create a pod as if a kubelet ran it on the node: bound, running, with its addresses."""
        container = {"name": "main", "image": "none"}
        spec = {"nodeName": node, "containers": [container], "automountServiceAccountToken": False}
        self.core.create_namespaced_pod(namespace, {"metadata": {"name": name, "labels": labels}, "spec": spec})
        if addresses:
            status = {"phase": "Running", "podIP": addresses[0], "podIPs": [{"ip": address} for address in addresses]}
            self.core.patch_namespaced_pod_status(name, namespace, {"status": status})

    def delete_pod(self, namespace: str, name: str) -> None:
        """Delete a pod as a kubelet does when all its containers have ended."""
        self.core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)

    def delete_namespace(self, name: str) -> None:
        """Delete a namespace and all that tests have created in it: there is no controller manager to do it."""
        for kind in kinds.ALL:
            if kind.namespaced and self.serves(kind.plural):
                self.custom.delete_collection_namespaced_custom_object(kinds.GROUP, kinds.VERSION, name, kind.plural)
        self.core.delete_collection_namespaced_pod(name, grace_period_seconds=0)
        self.core.delete_collection_namespaced_event(name)
        self.core.delete_namespace(name)
        self.core.replace_namespace_finalize(name, {"metadata": {"name": name}, "spec": {"finalizers": []}})

    def _control(self, *arguments: str) -> None:
        command = [str(HACK / "control-plane"), *arguments, "--dir", str(self.folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200, env=os.environ)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _plural(obj: Object) -> str:
    return next(kind.plural for kind in kinds.ALL if kind.name == obj["kind"])


def slice_bandwidth(namespace: str, name: str, **spec: object) -> dict[str, Any]:
    """Make a SliceBandwidth."""
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": kinds.API_VERSION, "kind": "SliceBandwidth", "metadata": metadata, "spec": spec}


def node_bandwidth(name: str, **spec: object) -> dict[str, Any]:
    """Make a NodeBandwidth."""
    return {"apiVersion": kinds.API_VERSION, "kind": "NodeBandwidth", "metadata": {"name": name}, "spec": spec}
