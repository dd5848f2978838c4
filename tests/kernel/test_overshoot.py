"""The main promise: a slice that sends without a pause has used its budget at the end of the period, and no more.

Reports are due once a minute here, so that only the agent's pacing decides when passes take place.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from slicebw.core.node_pass import SHORTEST_NS
from tests.support.folder_lab import FolderLab, M, folder_lab
from tests.support.senders import Sender

pytestmark = pytest.mark.usefixtures("kernel")

NAME = "codeen"
LATE_NS = 150_000_000
"""How late a pass may start on a busy machine, in ns."""


@dataclass(frozen=True)
class Case:
    """A slice under constant overload, and how much of its budget it may use without being slowed."""

    rate_mbps: int
    period_s: int
    budget_bytes: int
    threshold: str = "80%"
    min_rate_bps: int = 8
    periods: int = 1

    @property
    def has_reserve(self) -> bool:
        """Whether budget is left when the threshold is crossed, so that later passes can make up for a late one."""
        return self.threshold != "100%"

    @property
    def allowed_bytes(self) -> int:
        """Budget and guarantee (which goes on after it); without a reserve also what can be sent before a late pass."""
        late_ns = 0 if self.has_reserve else SHORTEST_NS + LATE_NS
        guaranteed_bytes = self.min_rate_bps * self.period_s // 8
        return self.budget_bytes * 1002 // 1000 + guaranteed_bytes + self.rate_mbps * M * late_ns // 8 // 10**9

    def __str__(self) -> str:
        words = [f"{self.rate_mbps}M for {self.period_s}s", f"threshold {self.threshold}"]
        return ", ".join([*words, f"minRate {self.min_rate_bps // M}M"] if self.min_rate_bps >= M else words)


CASES = [
    Case(10, 15, 4 * M, periods=2),
    Case(100, 9, 30 * M, periods=2),
    Case(1000, 9, 300 * M, periods=2),
    Case(10, 9, 4 * M, threshold="100%"),
    Case(100, 9, 30 * M, threshold="100%"),
    Case(10, 9, 4 * M, min_rate_bps=2 * M),
]


@dataclass(frozen=True)
class Period:
    """One period: its usage by the ledger, and the bytes that had arrived at the sink when it ended."""

    used_bytes: int
    arrived_bytes: int


def send(lab: FolderLab, case: Case) -> Callable[[], None]:
    """Start to send more than the slice may. Returns a function that stops it."""
    pod, to = lab.pod(NAME), lab.net.sink.address
    if case.rate_mbps < 1000:
        return Sender(pod, to, case.rate_mbps * M * 5 // 4).stop
    return lab.net.traffic(pod, to, case.period_s * 4).stop  # only bundles of packets are fast enough


def periods(lab: FolderLab) -> Iterator[Period]:
    """Watch periods end: the ledger's usage of each, and what the sink received meanwhile.

    The usage at the end is the ledger's total after the next period has begun, minus the usage of that period.
    """
    account = lab.account(NAME)
    assert account is not None
    total_before = 0
    arrived_before = lab.net.sink.received_bytes(lab.net.uplink)
    while True:
        end_s, arrived = account.period_end_s, None
        while account.period_end_s == end_s:
            if arrived is None and time.time() >= end_s:
                arrived = lab.net.sink.received_bytes(lab.net.uplink)
            time.sleep(0.01)
            account = lab.account(NAME) or account
        if arrived is None:  # it ended while we slept
            arrived = lab.net.sink.received_bytes(lab.net.uplink)
        total = account.standard.total_bytes - account.standard.used_bytes
        yield Period(total - total_before, arrived - arrived_before)
        total_before, arrived_before = total, arrived


@pytest.mark.parametrize("case", CASES, ids=str)
def test_constant_overload_uses_the_budget_and_no_more(tmp_path: Path, case: Case) -> None:
    bundles = case.rate_mbps >= 1000
    standard = {
        "maxRate": f"{case.rate_mbps}M",
        "budget": str(case.budget_bytes),
        "threshold": case.threshold,
        "minRate": str(case.min_rate_bps),
    }
    with ExitStack() as stack:
        lab = stack.enter_context(folder_lab(tmp_path, NAME, offloads=bundles, cap="1G"))
        lab.write_slice(NAME, period=f"{case.period_s}s", standard=standard)
        lab.start("--report-interval", "60s")
        lab.slice_id(NAME)
        stack.callback(send(lab, case))
        ended = periods(lab)
        found = [next(ended) for _ in range(case.periods)]
    for number, period in enumerate(found, start=1):
        percent = period.used_bytes * 100 / case.budget_bytes
        print(
            f"{case!s:42} period {number}: budget {case.budget_bytes:>11,} used {period.used_bytes:>11,}"
            f" ({percent:6.2f} %) allowed {case.allowed_bytes:>11,} arrived {period.arrived_bytes:>11,}"
        )
    for period in found:
        assert period.used_bytes <= case.allowed_bytes
        # The slice was slowed to the rest of its budget, and not below. (The first period began before the flow.)
        assert period.used_bytes >= case.budget_bytes * 97 // 100
        # The sink agrees, up to what can be sent between the end of the period and our reading of it. It counts the
        # headers of a bundle of packets once, HTB counts those of every packet (at most 66 bytes in 1,514).
        least = period.used_bytes * (1514 - 66) // 1514 if bundles else period.used_bytes
        assert least - late_bytes(case) <= period.arrived_bytes <= period.used_bytes + late_bytes(case)


def late_bytes(case: Case) -> int:
    """Return what can be sent in a tenth of a second: so much later the sink may be read."""
    return case.rate_mbps * M // 80
