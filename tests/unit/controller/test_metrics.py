from slicebw.controller.metrics import ControllerMetrics
from slicebw.controller.stats import Stats
from slicebw.controller.status_loop import StatusLoop
from tests.unit.controller.cluster import World


def test_every_count_of_the_stats_is_a_metric() -> None:
    world = World()
    world.apply()
    world.report("n1")
    loop = StatusLoop(world, world)
    loop.step()
    assert loop.stats == Stats(writes=1, pod_lists=1, listed_pods=1)
    loop.stats.failed_writes, loop.stats.removed_usages, loop.stats.failures = 2, 3, 4
    samples = [sample for family in ControllerMetrics(world, loop).collect() for sample in family.samples]
    assert {sample.name.removeprefix("slicebw_controller_"): sample.value for sample in samples} == {
        "status_writes_total": 1,
        "failed_status_writes_total": 2,
        "pod_lists_total": 1,
        "listed_pods_total": 1,
        "removed_usages_total": 3,
        "failed_steps_total": 4,
        "slices": 1,
        "usages": 1,
        "waiting_statuses": 1,
    }
