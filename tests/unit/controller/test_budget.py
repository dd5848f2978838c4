from slicebw.controller.budget import BURST, WriteBudget


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


TRANSITIONS = [f"transition-{number}" for number in range(200)]
FIGURES = [f"figure-{number}" for number in range(200)]


def written(seconds: int, transitions: int, figures: int, nodes: int | None) -> tuple[int, int]:
    """How many of each are written in so many seconds after the first burst, where so many are due all the time."""
    clock = Clock()
    budget = WriteBudget(clock)
    budget.choose(TRANSITIONS[:transitions], FIGURES[:figures], nodes)
    found: list[str] = []
    for _ in range(seconds * 8):
        clock.now_s += 0.125  # exact in binary
        found += budget.choose(TRANSITIONS[:transitions], FIGURES[:figures], nodes)
    return sum(one.startswith("transition") for one in found), sum(one.startswith("figure") for one in found)


def test_there_is_a_burst_and_then_five_a_second() -> None:
    assert len(WriteBudget(Clock()).choose([], FIGURES, 10)) == BURST
    assert written(100, 0, 200, nodes=10) == (0, 500)


def test_figures_are_written_the_more_rarely_the_more_agents_are_told() -> None:
    assert written(100, 0, 200, nodes=500) == (0, 500)
    assert written(100, 0, 200, nodes=1000) == (0, 250)
    assert written(100, 0, 200, nodes=5000) == (0, 50)


def test_transitions_are_written_at_the_full_rate_and_first() -> None:
    assert written(100, 200, 200, nodes=5000) == (500, 0)
    chosen = WriteBudget(Clock()).choose(TRANSITIONS[:3], FIGURES, 5000)
    assert chosen[:3] == TRANSITIONS[:3]


def test_no_nodes_or_none_known_is_no_reason_to_write_less() -> None:
    assert written(10, 0, 200, nodes=None) == written(10, 0, 200, nodes=0) == (0, 50)


def test_after_the_pause_there_is_a_write_more() -> None:
    for nodes in (1, 5000):
        clock = Clock()
        budget = WriteBudget(clock)
        while budget.choose([], FIGURES, nodes):
            clock.now_s += 0.01
        assert not budget.choose([], FIGURES, nodes)
        clock.now_s += budget.pause_s * 1.001
        assert len(budget.choose([], FIGURES, nodes)) == 1
