"""slicebw on the cluster, put there and taken off as docs/install.md says."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import yaml

from slicebw.api import kinds
from tests.api.cluster import REPOSITORY
from tests.cluster.lab import START_S, AnyCluster

NAMESPACE: Final = "slicebw-system"
MANIFESTS: Final = REPOSITORY / "manifests"
AGENTS: Final = "daemonset/slicebw-agent"
CONTROLLERS: Final = "deployment/slicebw-controller"
COMPONENT: Final = "app.kubernetes.io/component"


CEL_SINCE_MINOR: Final = 25
"""Older API servers know no validation rules in CRDs, and kubectl then wants no validation."""


def install(cluster: AnyCluster) -> None:
    """kubectl apply -k manifests/base, and wait."""
    apply(cluster, "base")
    cluster.rollout(NAMESPACE, AGENTS)
    cluster.rollout(NAMESPACE, CONTROLLERS)


def clean_up(cluster: AnyCluster) -> None:
    """The first two commands of three that uninstall."""
    apply(cluster, "uninstall")
    cluster.rollout(NAMESPACE, AGENTS)


def apply(cluster: AnyCluster, folder: str) -> None:
    """kubectl apply -k, with the image that the cluster's nodes can pull."""
    validate = [] if cluster.server_minor >= CEL_SINCE_MINOR else ["--validate=false"]
    with _kustomization(cluster, folder) as path:
        cluster.kubectl_input("", "apply", *validate, "-k", str(path))


def remove(cluster: AnyCluster, folder: str) -> None:
    """kubectl delete -k, which waits until all of it is gone."""
    cluster.kubectl_input("", "delete", f"--timeout={START_S:.0f}s", "-k", str(MANIFESTS / folder))


def installed(cluster: AnyCluster) -> bool:
    """Whether any of it is there."""
    namespaces = {one.metadata.name for one in cluster.core.list_namespace().items}
    return NAMESPACE in namespaces or any(cluster.has_crd(kind.plural) for kind in kinds.ALL)


def agent_pods(cluster: AnyCluster) -> list[Any]:
    """The pods of slicebw's agents."""
    return component_pods(cluster, "agent")


def component_pods(cluster: AnyCluster, component: str) -> list[Any]:
    """The pods of slicebw's agents or controllers."""
    return list(cluster.core.list_namespaced_pod(NAMESPACE, label_selector=f"{COMPONENT}={component}").items)


@contextmanager
def _kustomization(cluster: AnyCluster, folder: str) -> Iterator[Path]:
    """One of the manifests' folders, or one over it that names another image."""
    if cluster.image is None:
        yield MANIFESTS / folder
        return
    with TemporaryDirectory() as over:
        document = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "bases": [os.path.relpath(MANIFESTS / folder, Path(over).resolve())],
            "images": [{"name": "slicebw.io/slicebw"} | _image_fields(cluster.image)],
        }
        Path(over, "kustomization.yaml").write_text(yaml.safe_dump(document))
        yield Path(over)


def _image_fields(image: str) -> dict[str, str]:
    """An image's name as kustomize takes it apart; a colon before the last slash is a port's."""
    name, at, digest = image.partition("@")
    if at:
        return {"newName": name, "digest": digest}
    name, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        return {"newName": image, "newTag": "latest"}
    return {"newName": name, "newTag": tag}
