"""Traffic that tests start, change and stop: datagrams at a rate, from a process in the sender's namespace.

Unlike iperf3 it needs no connection to be set up, so that it goes on whatever the queues do, and ends at once.
"""

import subprocess
import sys
from types import TracebackType
from typing import Final

from tests.support.topology import Namespace

PORT: Final = 9

_SCRIPT: Final = """
import random, socket, sys, time
address, rate_bps, seconds, seed, *sizes = sys.argv[1:]
rate, draw, end = float(rate_bps) / 8, random.Random(int(seed)), time.monotonic() + float(seconds)
sizes = [int(size) for size in sizes]
out = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
content, start, sent = bytes(2000), time.monotonic(), 0
print("ready", flush=True)
while (now := time.monotonic()) < end:
    while sent < (now - start) * rate:
        size = draw.randint(*sizes)
        try:
            out.sendto(content[:size], (address, 9))
        except OSError:
            pass
        sent += size
    time.sleep(0.002)
"""


class Sender:
    """Datagrams from a namespace to an address until it is stopped, or for ``seconds``. Use as a context manager.

    Args:
        source: where they are sent.
        to: an address of the sink.
        rate_bps: of payload.
        seconds: at most this long.
        sizes: least and largest payload in bytes, drawn at random.
        seed: of the random numbers.
    """

    def __init__(
        self,
        source: Namespace,
        to: str,
        rate_bps: int,
        *,
        seconds: float = 120,
        sizes: tuple[int, int] = (1400, 1400),
        seed: int = 0,
    ) -> None:
        """Start to send."""
        arguments = (to, str(rate_bps), f"{seconds:g}", str(seed), *map(str, sizes))
        self._process = subprocess.Popen(
            source.command(sys.executable, "-c", _SCRIPT, *arguments), stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def __enter__(self) -> "Sender":
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def stop(self) -> None:
        """End it; what is in queues goes on its way."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
