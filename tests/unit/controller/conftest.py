import pytest

from tests.unit.controller.cluster import Clocked, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def clocked(world: World) -> Clocked:
    return Clocked(world)
