"""Finds what a cluster has on this machine outside its own folder."""

import os
from pathlib import Path


class Traces:
    """Processes, mounts, network device and cgroups of the cluster in a folder. Create it while the cluster exists."""

    def __init__(self, home: Path) -> None:
        self._home = str(home)
        self._number = (home / "network").read_text().strip()

    def left(self) -> list[str]:
        """Return those that exist now; none after hack/cluster down."""
        processes = [one.parent.name for one in Path("/proc").glob("[0-9]*/cmdline") if self._is_ours(one)]
        mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if self._home in line]
        devices = Path("/sys/class/net").glob(f"slicebw-{self._number}")
        cgroups = Path("/sys/fs/cgroup").glob(f"**/slicebw-{self._number}-*")
        return [*processes, *mounts, *map(str, devices), *map(str, cgroups)]

    def _is_ours(self, cmdline: Path) -> bool:
        try:
            return cmdline.parent.name != str(os.getpid()) and self._home.encode() in cmdline.read_bytes()
        except OSError:  # it has ended meanwhile
            return False
