"""The manifests as kubectl sends them, rendered with kustomize by a current kubectl, without an API server."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[3]
MANIFESTS: Final = ROOT / "manifests"
KUBECTL: Final = Path(sys.executable).parent / "kubectl"
KUSTOMIZATIONS: Final = sorted(
    str(path.parent.relative_to(ROOT)) for top in (ROOT / "crds", MANIFESTS) for path in top.rglob("kustomization.yaml")
)
SAMPLES: Final = sorted(str(path.relative_to(ROOT)) for path in (MANIFESTS / "samples").rglob("*.yaml"))

Object = dict[str, Any]


@cache
def _rendered(folder: str) -> str:
    done = subprocess.run([KUBECTL, "kustomize", ROOT / folder], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def objects(place: str) -> list[Object]:
    """Return all objects of a kustomization or of one file, given as a path from the repository's root."""
    path = ROOT / place
    return list(yaml.safe_load_all(_rendered(place) if path.is_dir() else path.read_text()))


def one(kind: str, name: str, folder: str = "manifests/base") -> Object:
    """Return the object of a kind and name."""
    (found,) = (obj for obj in objects(folder) if (obj["kind"], obj["metadata"]["name"]) == (kind, name))
    return found


def pod(workload: Object) -> Object:
    """Return the spec of a workload's pods."""
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Object) -> Object:
    """Return the only container of a workload's pods."""
    (only,) = pod(workload)["containers"]
    found: Object = only
    return found


def environment(workload: Object) -> dict[str, str]:
    """Return the container's variables. One that comes from a field of the pod is given as ``{the.field}``."""
    found = {}
    for variable in container(workload)["env"]:
        origin = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        found[variable["name"]] = variable.get("value", f"{{{origin}}}")
    return found
