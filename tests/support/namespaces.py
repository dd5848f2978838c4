"""Fixtures that make namespaces on whatever cluster a folder of tests has, and delete them afterwards.

A conftest.py that imports them has a fixture ``any_cluster``.
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
        """Delete a namespace with what tests put into it."""


@pytest.fixture
def new_namespace(any_cluster: _Cluster) -> Iterator[Callable[[], str]]:
    """Makes namespaces, and deletes them afterwards with what is in them."""
    made: list[str] = []

    def make() -> str:
        # The cluster may be one that earlier sessions have left namespaces in.
        name = f"test-{os.getpid()}-{next(_numbers)}"
        any_cluster.core.create_namespace({"metadata": {"name": name}})
        made.append(name)
        return name

    yield make
    for name in made:
        any_cluster.delete_namespace(name)


@pytest.fixture
def namespace(new_namespace: Callable[[], str]) -> str:
    """A namespace of the test's own."""
    return new_namespace()
