"""Two controllers at once: each status is written once, at a bounded rate, and never reverts to an older one."""

import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

from tests.api.cluster import Cluster, eventually, slice_bandwidth
from tests.api.proxy import FaultProxy
from tests.api.test_controller import condition, put_usage, status_of
from tests.support.processes import Slicebw
from tests.support.reports import GB, class_usage

INTERVAL_S = 2
STEP_S = 0.2
"""Between two changes of the usage: shorter than a controller's pause, which rolls up several changes at once."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A status that a watch has shown."""

    used_bytes: int
    capped: str


class Statuses:
    """Records every status of the slice, with ``kubectl get --watch`` in the background."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.seen: list[Seen] = []
        columns = '{.status.standard.bytesUsed} {.status.conditions[?(@.type=="Capped")].status}{"\\n"}'
        kubectl = [str(cluster.folder / "assets" / "kubectl"), "--kubeconfig", str(cluster.kubeconfig)]
        command = [*kubectl, "get", "slbw", "codeen", "-n", namespace, "--watch", "-o", f"jsonpath={columns}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def stop(self) -> None:
        self._process.kill()
        self._thread.join()
        self._process.communicate()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip():
                used, capped = line.split()
                self.seen.append(Seen(int(used), capped))

    def last(self) -> Seen | None:
        return self.seen[-1] if self.seen else None


@pytest.fixture
def statuses(cluster: Cluster, namespace: str) -> Iterator[Statuses]:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    made = Statuses(cluster, namespace)
    yield made
    made.stop()


@pytest.fixture
def controllers(proxy: FaultProxy, tmp_path: Path) -> Iterator[list[Slicebw]]:
    """Run two controllers, each in its own process."""
    arguments = ("controller", "--kubeconfig", str(proxy.kubeconfig), "--status-interval", f"{INTERVAL_S}s")
    made = [Slicebw(tmp_path / f"controller-{number}.log", *arguments) for number in range(2)]
    with made[0], made[1]:
        yield made


def attempts(proxy: FaultProxy, namespace: str) -> int:
    """Return how often a status was sent to the API server."""
    path = f"/namespaces/{namespace}/slicebandwidths/codeen/status"
    return sum(request.method == "PATCH" and request.path.endswith(path) for request in proxy.requests)


def used(statuses: Statuses) -> int:
    """Return the bytes used in the last status."""
    last = statuses.last()
    return -1 if last is None else last.used_bytes


def test_figures_that_move_all_the_time_are_written_once_an_interval_and_never_go_back(
    cluster: Cluster, proxy: FaultProxy, namespace: str, statuses: Statuses, controllers: list[Slicebw]
) -> None:
    put_usage(cluster, namespace, "n1", standard=class_usage(0))
    eventually(lambda: condition(status_of(cluster, namespace), "Enforced")[0] == "True", within_s=20)
    sent_before, first, began = attempts(proxy, namespace), len(statuses.seen), time.monotonic()
    step = 0
    while time.monotonic() - began < 12 * INTERVAL_S:
        step += 1
        put_usage(cluster, namespace, "n1", standard=class_usage(step * GB // 1000))
        time.sleep(STEP_S)  # the pace of the changes
    intervals = (time.monotonic() - began) / INTERVAL_S + 1
    amounts = [seen.used_bytes for seen in statuses.seen]
    assert amounts == sorted(amounts), "what one has written the other does not take back"
    assert 4 <= len(statuses.seen) - first <= intervals
    assert attempts(proxy, namespace) - sent_before <= 2 * intervals

    # One is killed meanwhile: the other goes on.
    controllers[0].kill()
    put_usage(cluster, namespace, "n1", standard=class_usage(9 * GB))
    eventually(lambda: used(statuses) == 9 * GB, within_s=15)
    # After its restart the next status is still one write.
    written = len(statuses.seen)
    controllers[0].start()
    controllers[0].wait_ready()
    put_usage(cluster, namespace, "n1", standard=class_usage(9 * GB + 1))
    eventually(lambda: used(statuses) == 9 * GB + 1, within_s=15)
    assert len(statuses.seen) == written + 1


def test_transitions_are_seen_once_each_in_their_order(
    cluster: Cluster, namespace: str, statuses: Statuses, controllers: list[Slicebw]
) -> None:
    put_usage(cluster, namespace, "n1")

    def capped() -> str:
        last = statuses.last()
        return "" if last is None else last.capped

    eventually(lambda: capped() == "False", within_s=20)
    for step in range(6):
        is_capped = step % 2 == 0
        put_usage(cluster, namespace, "n1", standard=class_usage(9 * GB, capped=is_capped))
        eventually(lambda is_capped=is_capped: capped() == str(is_capped), within_s=15)  # type: ignore[misc]
    assert [one.exit_code() for one in controllers] == [None, None]
    assert [status for status, _ in groupby(seen.capped for seen in statuses.seen)] == ["False", "True"] * 3 + ["False"]
    assert len(statuses.seen) <= 3 + 6, "one write each, after those in which the slice came up"
