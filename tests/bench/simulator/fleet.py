"""The simulated nodes: which slices run on which node, and how much they send. No I/O."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from slicebw.api import kinds
from slicebw.core.desired import DEFAULT_LIMITS, ClassLimits, Mode, SliceKey
from slicebw.core.ledger import PendingEvent, Reason
from slicebw.core.reports import ClassUsage, NodeReport, UsageReport
from slicebw.core.text import rate_text

BUSY_BPS: Final = 20_000_000
"""A busy slice uses 1.4 % of its default budget a minute, so that it is reported every minute."""
QUIET_BPS: Final = 8_000
"""A quiet slice sends, but never 1 % of its budget in a period."""
CAP_BPS: Final = 512_000
NODE_CAP_BPS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Fleet:
    """``nodes`` nodes with ``per_node`` slices each, of ``slices`` slices altogether.

    Slice j runs on nodes * per_node / slices nodes. ``busy_percent`` of what runs is busy, ``idle_percent`` sends
    nothing at all, the rest is quiet.
    """

    nodes: int
    per_node: int
    slices: int
    busy_percent: int = 10
    idle_percent: int = 50

    def __post_init__(self) -> None:
        """Raise ValueError if a node had to run a slice twice."""
        if not 1 <= self.per_node <= self.slices:
            raise ValueError(f"{self.per_node} slices a node of {self.slices} slices: use 1 to {self.slices}")

    @property
    def usages(self) -> int:
        """The number of BandwidthUsages."""
        return self.nodes * self.per_node

    def node(self, number: int) -> str:
        """Return the name of a node."""
        return f"sim-node-{number:05}"

    def key(self, number: int) -> SliceKey:
        """Return the key of a slice; each has a namespace of its own."""
        return SliceKey(f"sim-tenant-{number:05}", "slice")

    def slices_on(self, node: int) -> Iterator[int]:
        """Give the numbers of the slices that run on a node."""
        return ((node * self.per_node + index) % self.slices for index in range(self.per_node))

    def rate_bps(self, node: int, index: int) -> int:
        """Return the rate at which the slice of this index on a node sends; busy slices are spread over the fleet."""
        lot = (node * self.per_node + index) * 7919 % 100
        if lot < self.busy_percent:
            return BUSY_BPS
        return 0 if lot < self.busy_percent + self.idle_percent else QUIET_BPS

    def slice_bandwidth(self, number: int) -> dict[str, Any]:
        """Make a SliceBandwidth as an administrator writes it."""
        key = self.key(number)
        limits = {"minRate": "512k", "maxRate": "100M", "budget": "10800M", "threshold": "80%"}
        return {
            "apiVersion": kinds.API_VERSION,
            "kind": kinds.SLICE_BANDWIDTH.name,
            "metadata": {"namespace": key.namespace, "name": key.name},
            "spec": {"period": "24h", "standard": limits, "exempt": {"maxRate": "1G", "budget": "32400M"}},
        }


@dataclass(slots=True)
class SimulatedNode:
    """One node's slices and the bytes they have sent, reported as by an agent's pass."""

    fleet: Fleet
    number: int
    begun_s: int
    """When all its periods began, in seconds since the epoch."""
    capped: dict[SliceKey, int] = field(default_factory=dict)
    """Since when slices are capped, in seconds since the epoch."""

    @property
    def name(self) -> str:
        """The node's name."""
        return self.fleet.node(self.number)

    def usages(self, now_s: float) -> list[UsageReport]:
        """Return the usage reports of a pass at this time (seconds since the epoch)."""
        found = []
        for index, number in enumerate(self.fleet.slices_on(self.number)):
            key = self.fleet.key(number)
            used_bytes = int(self.fleet.rate_bps(self.number, index) // 8 * max(0.0, now_s - self.begun_s))
            found.append(
                UsageReport(
                    key=key,
                    slice_id=index + 1,
                    generation=1,
                    period_start_s=self.begun_s,
                    period_end_s=self.begun_s + DEFAULT_LIMITS.period_s,
                    standard=_class_usage(DEFAULT_LIMITS.standard, used_bytes, self.capped.get(key)),
                    exempt=_class_usage(DEFAULT_LIMITS.exempt, 0, None),
                )
            )
        return found

    def node_report(self, now_s: float) -> NodeReport:
        """Return the node's report. The host's own traffic never stops."""
        sent_bytes = int(max(0.0, now_s - self.begun_s) * 1_000)
        return NodeReport(
            device="eth0",
            mode=Mode.ENFORCE,
            cap_bps=NODE_CAP_BPS,
            line_rate_bps=NODE_CAP_BPS,
            slices=self.fleet.per_node,
            capped_slices=len(self.capped),
            host_bytes=sent_bytes,
            default_bytes=sent_bytes // 10,
            foreign_qdisc=None,
            overcommitted=None,
            ready=True,
            message="limits are in force",
        )

    def cap(self, index: int, now_s: float) -> tuple[SliceKey, PendingEvent]:
        """Cap the slice of this index. Returns its key and the Event that the ledger would hold."""
        key = self.fleet.key(list(self.fleet.slices_on(self.number))[index])
        self.capped[key] = int(now_s)
        return key, PendingEvent(
            id=f"{Reason.CAPPED}/{key}/standard/{self.begun_s}/{int(now_s)}",
            key=key,
            uid="",
            reason=Reason.CAPPED,
            warning=True,
            message=f"Slowed standard traffic of slice {key} on {self.name} to {rate_text(CAP_BPS)}bit/s",
            at_s=int(now_s),
        )


def _class_usage(limits: ClassLimits, used_bytes: int, capped_since_s: int | None) -> ClassUsage:
    capped = capped_since_s is not None
    return ClassUsage(
        used_bytes=used_bytes,
        budget_bytes=limits.budget_bytes,
        percent=used_bytes * 100 // limits.budget_bytes,
        rate_bps=CAP_BPS if capped else NODE_CAP_BPS,
        capped=capped,
        capped_since_s=capped_since_s,
        counter_bytes=used_bytes,
    )
