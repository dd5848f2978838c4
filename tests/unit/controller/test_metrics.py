from slicebw.controller.loop import Counts
from slicebw.controller.metrics import ControllerMetrics


def test_every_count_of_the_loop_is_a_metric() -> None:
    counts = Counts(writes=1, failed_writes=2, removed_usages=3, failures=4)
    samples = [sample for family in ControllerMetrics(counts).collect() for sample in family.samples]
    assert {sample.name.removeprefix("slicebw_controller_"): sample.value for sample in samples} == {
        "status_writes_total": 1,
        "failed_status_writes_total": 2,
        "removed_usages_total": 3,
        "failed_steps_total": 4,
    }
