"""What the controller has done since it started. Written by the loop's thread alone; any thread may read it."""

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """What the controller has done since it started."""

    writes: int = 0
    """Statuses of SliceBandwidths that were written."""
    failed_writes: int = 0
    pod_lists: int = 0
    """Calls that listed the pods of one namespace, answered or not."""
    listed_pods: int = 0
    """Pods in these lists."""
    removed_usages: int = 0
    failures: int = 0
    """Steps of the loop, or slices in them, that ended with an exception."""
