"""Where probes are answered, and the errors if the address or the port cannot be used."""

import socket
import urllib.request

import pytest

from slicebw.cli.probe_server import ProbeServer
from slicebw.core.errors import UsageError


@pytest.mark.parametrize(("address", "asked"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("::", "127.0.0.1")])
def test_it_answers_at_its_address_of_either_family(address: str, asked: str) -> None:
    server = ProbeServer(address, 0, {"/healthz": lambda: None})
    server.start()
    try:
        with urllib.request.urlopen(f"http://{asked}:{server.port}/healthz", timeout=5) as answer:
            assert (answer.status, answer.read()) == (200, b"ok\n")
    finally:
        server.stop()


def test_it_answers_at_no_other_address() -> None:
    server = ProbeServer("127.0.0.1", 0, {})
    server.start()
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.port), timeout=5)
    finally:
        server.stop()


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(UsageError, match=r"--liveness-address 192\.0\.2\.1: cannot listen there .*this machine"):
        ProbeServer("192.0.2.1", 0, {})


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--liveness-port {port}: cannot listen there .*free the port"):
            ProbeServer("127.0.0.1", port, {})
