"""Fixtures that create namespaces on a folder's cluster and delete them afterwards.

The conftest.py that imports them must have a fixture ``any_cluster``.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

_numbers = itertools.count(1)


class _Cluster(Protocol):
    core: Any

    def delete_namespace(self, name: str) -> None:
        """Delete a namespace and all that tests have created in it."""


@pytest.fixture
def new_namespace(any_cluster: _Cluster) -> Iterator[Callable[[], str]]:
    """Create namespaces, and delete them afterwards with all that is in them."""
    made: list[str] = []

    def make() -> str:
        # Earlier sessions may have left namespaces in this cluster.
        name = f"test-{os.getpid()}-{next(_numbers)}"
        any_cluster.core.create_namespace({"metadata": {"name": name}})
        made.append(name)
        return name

    yield make
    for name in made:
        any_cluster.delete_namespace(name)


@pytest.fixture
def namespace(new_namespace: Callable[[], str]) -> str:
    """Create a namespace for one test."""
    return new_namespace()
