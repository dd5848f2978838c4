"""Traffic that tests start, halt and stop: datagrams or a TCP stream, from a process in the sender's namespace.

iperf3 needs a control connection, which a full queue can block. These senders have none, so they go on whatever the
queues do, and halt at once.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final

from tests.support.topology import Namespace, Sink, wait_until

PORT: Final = 9

_SEND: Final = """
import random, socket, sys, time
kind, address, rate_bps, seconds, seed, *sizes = sys.argv[1:]
rate, draw, least, most = float(rate_bps) / 8, random.Random(int(seed)), *map(int, sizes)
family = socket.AF_INET6 if ":" in address else socket.AF_INET
out = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << (14 if kind == "tcp" else 20))
if kind == "tcp":
    out.connect((address, 9))
content, start, sent = bytes(most), time.monotonic(), 0
print("ready", flush=True)
while (now := time.monotonic()) - start < float(seconds):
    behind = (now - start) * rate - sent
    if behind > rate / 4:  # halted, or the stream was blocked: do not catch up
        sent += behind
    while sent < (now - start) * rate:
        size = draw.randint(least, most)
        try:
            out.sendall(content[:size]) if kind == "tcp" else out.sendto(content[:size], (address, 9))
        except OSError:  # the socket buffer is full
            pass
        sent += size
    time.sleep(0.004)
"""

_DISCARD: Final = """
import socket, threading
def discard(stream):
    while stream.recv(1 << 16):
        pass
server = socket.create_server(("::", 9), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    threading.Thread(target=discard, args=server.accept()[:1], daemon=True).start()
"""


@contextmanager
def discarding(sink: Sink) -> Iterator[None]:
    """Accept TCP streams at every address of the sink and discard them, within the context."""
    process = subprocess.Popen(sink.command(sys.executable, "-c", _DISCARD))
    try:
        wait_until(lambda: sink.listens(PORT), "the discard service listens")
        yield
    finally:
        process.kill()
        process.wait()


class Sender:
    """Sends packets from a namespace to an address until it is stopped, or for ``seconds``. Use as a context manager.

    Args:
        source: the namespace that sends.
        to: an address of the sink.
        rate_bps: of payload, at most.
        tcp: one stream (needs :func:`discarding`) instead of datagrams.
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
        tcp: bool = False,
        seconds: float = 120,
        sizes: tuple[int, int] = (1400, 1400),
        seed: int = 0,
    ) -> None:
        """Start to send."""
        arguments = ("tcp" if tcp else "udp", to, str(rate_bps), f"{seconds:g}", str(seed), *map(str, sizes))
        self._process = subprocess.Popen(
            source.command(sys.executable, "-c", _SEND, *arguments), stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def __enter__(self) -> "Sender":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def halt(self) -> None:
        """Send nothing new. Packets in queues still leave."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on at the same rate, without catching up."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the sender. Packets in queues still leave."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
