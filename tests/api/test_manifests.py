"""The manifests on a real API server, installed as the documents say, with its own kubectl and a current one."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.api.cluster import REPOSITORY, Cluster

MANIFESTS: Final = REPOSITORY / "manifests"
CURRENT: Final = Path(sys.executable).parent / "kubectl"
NAMESPACE: Final = "slicebw-system"
ADMISSION: Final = "manifests/admission"
KUSTOMIZATIONS: Final = sorted(
    str(path.parent.relative_to(REPOSITORY))
    for top in (REPOSITORY / "crds", MANIFESTS)
    for path in top.rglob("kustomization.yaml")
)
SAMPLES: Final = sorted(str(path.relative_to(REPOSITORY)) for path in (MANIFESTS / "samples").rglob("*.yaml"))
BUILT_FOR_RULES: Final = 25
"""The first minor version of an API server that knows validation rules in CRDs."""

Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["its own", "current"])
def kubectl(request: pytest.FixtureRequest, cluster: Cluster) -> Kubectl:
    """Run kubectl: the API server's own version, and a current one."""
    binary = CURRENT if request.param == "current" else cluster.folder / "assets" / "kubectl"

    def run(*arguments: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
        command = [str(binary), "--kubeconfig", str(cluster.kubeconfig), *arguments]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=120, cwd=REPOSITORY, input=text
        )

    return run


@pytest.fixture
def validate(cluster: Cluster) -> list[str]:
    """Further arguments that `kubectl apply` needs, as docs/install.md has them."""
    version = json.loads(cluster.kubectl("get", "--raw", "/version"))
    return [] if int(version["minor"].rstrip("+")) >= BUILT_FOR_RULES else ["--validate=false"]


@pytest.fixture
def rendered(cluster: Cluster) -> list[Any]:
    """Return the objects of manifests/base."""
    return list(yaml.safe_load_all(cluster.kubectl("kustomize", str(MANIFESTS / "base"))))


@pytest.fixture
def clean(cluster: Cluster, rendered: list[Any]) -> Iterator[None]:
    """Remove afterwards all that is installed, except the kinds, which other tests use."""
    yield
    ours = [obj for obj in rendered if obj["kind"] not in {"CustomResourceDefinition", "Namespace"}]
    for obj in ours:
        place = ["--namespace", obj["metadata"]["namespace"]] if "namespace" in obj["metadata"] else []
        cluster.kubectl("delete", "--ignore-not-found", "--wait=false", obj["kind"], obj["metadata"]["name"], *place)
    cluster.delete_namespace(NAMESPACE)


def test_one_command_installs_it_whole_and_may_be_repeated(
    cluster: Cluster, kubectl: Kubectl, validate: list[str], rendered: list[Any], clean: None
) -> None:
    first = kubectl("apply", *validate, "-k", "manifests/base")
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.splitlines()) == len(rendered)
    for obj in rendered:
        place = ["--namespace", obj["metadata"]["namespace"]] if "namespace" in obj["metadata"] else []
        stored = cluster.kubectl("get", obj["kind"], obj["metadata"]["name"], *place, "-o", "json")
        assert missing(obj, json.loads(stored), knows_rules=not validate) == []
    second = kubectl("apply", *validate, "-k", "manifests/base")
    assert second.returncode == 0, second.stderr
    # (If the server has dropped a CRD's rules, kubectl never finds the CRD unchanged.)
    changed = [line for line in second.stdout.splitlines() if not line.endswith(" unchanged")]
    assert all(line.startswith("customresourcedefinition.") for line in changed)
    gone = kubectl("delete", "--wait=false", "--dry-run=server", "-k", "manifests/uninstall")
    assert gone.returncode == 0, gone.stderr
    assert len(gone.stdout.splitlines()) == len(rendered)


def missing(sent: Any, stored: Any, path: str = "", *, knows_rules: bool) -> list[str]:
    """Return the paths of sent fields that the server has dropped or changed."""
    if isinstance(sent, dict) and isinstance(stored, dict):
        found = []
        for key, inner in sent.items():
            if key == "x-kubernetes-validations" and not knows_rules:
                continue
            found += missing(inner, stored.get(key), f"{path}.{key}", knows_rules=knows_rules)
        return found
    if isinstance(sent, list) and isinstance(stored, list) and len(sent) == len(stored):
        pairs = enumerate(zip(sent, stored, strict=True))
        return [one for index, (a, b) in pairs for one in missing(a, b, f"{path}[{index}]", knows_rules=knows_rules)]
    return [] if sent == stored else [f"{path}: {sent!r} is {stored!r}"]


def test_the_server_accepts_every_manifest(
    cluster: Cluster, kubectl: Kubectl, validate: list[str], clean: None, named_namespaces: None
) -> None:
    done = kubectl("apply", *validate, "-k", "manifests/base")  # a dry run would not create the namespace
    assert done.returncode == 0, done.stderr
    has_policies = "validatingadmissionpolicies" in cluster.kubectl("api-resources", "-o", "name")
    for place in [*KUSTOMIZATIONS, *SAMPLES]:
        how = "-k" if (REPOSITORY / place).is_dir() else "-f"
        done = kubectl("apply", *validate, "--dry-run=server", how, place)
        if place == ADMISSION and not has_policies:
            assert 'no matches for kind "ValidatingAdmissionPolicy"' in done.stderr
        else:
            assert done.returncode == 0, (place, done.stderr)
            assert all(line.endswith("(server dry run)") for line in done.stdout.splitlines())
            assert done.stdout


@pytest.fixture
def named_namespaces(cluster: Cluster) -> Iterator[None]:
    """Return the namespaces that samples are for."""
    names = ("princeton-codeen", "nyu-coral")
    for name in names:
        cluster.core.create_namespace({"metadata": {"name": name}})
    yield
    for name in names:
        cluster.delete_namespace(name)
