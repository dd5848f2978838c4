"""Reads CPU and memory of a process, and requests and bytes that an API server has served."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

_K = TypeVar("_K")

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process with all its threads so far, user and system, in seconds (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_mb(pid: int) -> float:
    """Return a process's resident memory in MB (10^6 bytes; proc(5), status)."""
    return _status_kb(pid, "VmRSS") * 1024 / 1e6


def peak_rss_mb(pid: int) -> float:
    """Return the peak of a process's resident memory in MB (10^6 bytes; proc(5), status)."""
    return _status_kb(pid, "VmHWM") * 1024 / 1e6


def threads(pid: int) -> int:
    """Return the number of a process's threads."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _status_kb(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(f"/proc/{pid}/status has no {name}")


@dataclass(frozen=True, slots=True)
class Served:
    """What an API server has served since it started: requests by (verb, resource), watch events by kind."""

    requests: Mapping[tuple[str, str], int]
    watch_events: Mapping[str, int]
    watch_bytes: Mapping[str, int]

    def since(self, before: "Served") -> "Served":
        """Return the difference to an earlier reading."""
        return Served(
            _minus(self.requests, before.requests),
            _minus(self.watch_events, before.watch_events),
            _minus(self.watch_bytes, before.watch_bytes),
        )


def _minus(after: Mapping[_K, int], before: Mapping[_K, int]) -> dict[_K, int]:
    return {key: value - before.get(key, 0) for key, value in after.items() if value > before.get(key, 0)}


def served(page: str) -> Served:
    """Parse an API server's /metrics page."""
    requests: Counter[tuple[str, str]] = Counter()
    events: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name, labels, value in _samples(page):
        match name:
            case "apiserver_request_total":
                requests[labels["verb"], labels["resource"]] += int(value)
            case "apiserver_watch_events_total":
                events[labels["kind"]] += int(value)
            case "apiserver_watch_events_sizes_sum":
                sizes[labels["kind"]] += int(value)
    return Served(requests, events, sizes)


def _samples(page: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in page.splitlines():
        found = re.fullmatch(r"(apiserver_\w+)\{(.*)\} (\S+)", line)
        if found:
            yield found[1], dict(re.findall(r'(\w+)="([^"]*)"', found[2])), float(found[3])
