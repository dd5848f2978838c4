"""The three lock files say the same: the image holds what slicebw imports, in the versions that the tests ran with."""

import re
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.processes import ROOT

IMAGE_PYTHON = {"python_version": "3.11", "python_full_version": "3.11.2", "extra": ""}


def pins(file: str) -> dict[str, str]:
    """Names and versions in a lock file."""
    found = re.findall(r"^(\S+)==(\S+)", (ROOT / file).read_text(), flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def closure(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """What a package needs in the image, and what that needs, as their metadata have it."""
    found: set[str] = set()
    todo = [(name, extras)]
    seen = set()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        for requirement in map(Requirement, requires(one[0]) or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({**IMAGE_PYTHON, "extra": extra}) for extra in ("", *one[1])):
                found.add(canonicalize_name(requirement.name))
                todo.append((requirement.name, frozenset(requirement.extras)))
    return found


def test_the_image_holds_what_slicebw_needs_and_no_more() -> None:
    assert set(pins("requirements-runtime.lock")) == closure("slicebw"), "run hack/lock image"


def test_the_image_holds_the_versions_that_the_tests_ran_with() -> None:
    tested = pins("requirements.lock")
    for name, version in pins("requirements-runtime.lock").items():
        assert tested[name] == version, f"{name}: run hack/lock image"
    assert pins("requirements-build.lock")["setuptools"] == tested["setuptools"], "run hack/lock image"


@pytest.mark.parametrize("file", ["requirements-runtime.lock", "requirements-build.lock"])
def test_every_package_of_the_image_is_held_to_a_hash(file: str) -> None:
    entries = (ROOT / file).read_text().replace("\\\n", " ").splitlines()
    assert len(pins(file)) == len([entry for entry in entries if not entry.startswith("#")])
    for entry in entries:
        assert entry.startswith("#") or re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry
