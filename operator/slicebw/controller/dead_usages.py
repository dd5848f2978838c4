"""Removes BandwidthUsages that no agent writes any more: of Nodes that are gone, and of periods that ended long ago.

Usually the garbage collector removes the usages of a deleted Node, because the Node owns them, and an agent removes
those of its slices that are over. DeadUsages removes what neither of them has
removed.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Final

from slicebw.api.bandwidth_usage import UsageRecord
from slicebw.controller.ports import ClusterFeed, ClusterWriter
from slicebw.controller.stats import Stats

log = logging.getLogger(__name__)

GRACE_S: Final = 3600
"""A usage is removed if its period ended, and it was last reported, longer ago than this."""

MAX_REMOVED: Final = 200
"""Usages removed at a time, so that the statuses do not wait for long."""


class DeadUsages:
    """Finds dead usages and deletes them."""

    def __init__(self, feed: ClusterFeed, writer: ClusterWriter, stats: Stats, wall_clock: Callable[[], float]) -> None:
        """Do nothing yet. ``wall_clock`` is in seconds since the epoch."""
        self._feed, self._writer, self._stats = feed, writer, stats
        self._wall_clock = wall_clock

    def remove(self, stopping: Callable[[], bool]) -> None:
        """Delete up to MAX_REMOVED dead usages; end early once ``stopping`` returns true."""
        nodes = self._feed.nodes()
        if nodes is None:
            # Before the first list of Nodes every node would look gone.
            return
        removed = 0
        for record, reason in self._find(nodes):
            if removed == MAX_REMOVED or stopping():
                return
            if self._writer.delete_usage(record.namespace, record.name, record.uid):
                removed += 1
                self._stats.removed_usages += 1
                log.info("usage removed name=%s/%s reason=%s", record.namespace, record.name, reason)

    def _find(self, nodes: frozenset[str]) -> Iterator[tuple[UsageRecord, str]]:
        """Give each dead usage and the reason why it is dead."""
        latest_dead_s = int(self._wall_clock()) - GRACE_S
        gone: dict[str, bool] = {}
        for record in list(self._feed.usages()):
            node = record.usage.node_name
            if max(record.usage.report.period_end_s, record.usage.reported_at_s) < latest_dead_s:
                yield record, "its period has ended and nobody reports it any more"
            # A usage without an owner comes from an agent outside Kubernetes: it never had a Node, so only time counts.
            elif node not in nodes and record.owned:
                if node not in gone:
                    # The watch may lag behind: ask the API server itself before anything is deleted.
                    gone[node] = self._writer.node_exists(node) is False
                if gone[node]:
                    yield record, f"node {node} is gone"
