"""What tests themselves rely on, where that is not obvious."""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.processes import with_default_signals

SLEEP = ("sleep", "60")


@pytest.fixture(params=[signal.SIGINT, signal.SIGQUIT])
def ignored(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that this process ignores, as one that a non-interactive shell has put into the background does."""
    number: signal.Signals = request.param
    before = signal.signal(number, signal.SIG_IGN)
    yield number
    signal.signal(number, before)


def test_a_child_of_a_process_that_ignores_a_signal_ends_by_it(ignored: signal.Signals) -> None:
    with subprocess.Popen(with_default_signals(SLEEP)) as child:
        # Before env has restored the default the signal is lost, so it is sent until the child ends.
        for _ in range(100):
            child.send_signal(ignored)
            try:
                assert child.wait(0.1) == -ignored
                return
            except subprocess.TimeoutExpired:
                continue
        child.kill()
    pytest.fail("the child ignored the signal")


def test_without_default_signals_it_would_go_on(ignored: signal.Signals) -> None:
    with subprocess.Popen(SLEEP) as child:
        child.send_signal(ignored)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.3)
        finally:
            child.kill()
