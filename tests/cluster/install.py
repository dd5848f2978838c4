"""slicebw on the cluster, put there and taken off as docs/install.md says, for an API server older than 1.25."""

from typing import Final

from tests.api.cluster import REPOSITORY
from tests.cluster.lab import START_S, ClusterLab

NAMESPACE: Final = "slicebw-system"
MANIFESTS: Final = REPOSITORY / "manifests"
AGENTS: Final = "daemonset/slicebw-agent"
CONTROLLERS: Final = "deployment/slicebw-controller"
COMPONENT: Final = "app.kubernetes.io/component"


def install(cluster: ClusterLab) -> None:
    """kubectl apply -k manifests/base, and wait."""
    apply(cluster, "base")
    cluster.rollout(NAMESPACE, AGENTS)
    cluster.rollout(NAMESPACE, CONTROLLERS)


def clean_up(cluster: ClusterLab) -> None:
    """The first two commands of three that uninstall."""
    apply(cluster, "uninstall")
    cluster.rollout(NAMESPACE, AGENTS)


def apply(cluster: ClusterLab, folder: str) -> None:
    """kubectl apply -k."""
    cluster.kubectl_input("", "apply", "--validate=false", "-k", str(MANIFESTS / folder))


def remove(cluster: ClusterLab, folder: str) -> None:
    """kubectl delete -k, which waits until all of it is gone."""
    cluster.kubectl_input("", "delete", f"--timeout={START_S:.0f}s", "-k", str(MANIFESTS / folder))
