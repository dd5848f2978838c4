"""Round trips beside a stream with fq_codel as leaf queue: on this machine's kernel, or else on Debian's.

Debian's kernel runs as a process (``hack/debian-kernel``), slower than the machine's own, so rates end at 50 Mbit/s. It
has no nftables, so slicebw's default class is measured; its leaf is the same as every slice's.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from slicebw.kernel.codec import burst_bytes
from tests.bench.frame import Row, Samples, at_most, at_most_times, figure, in_turn_together, say, times
from tests.bench.packet import M, held
from tests.bench.shaping import LINE_RATE_BPS, ByCniPlugin, ByTree, Shaped
from tests.support.round_trips import has_fq_codel

ROOT: Final = Path(__file__).parents[2]
RATES_MBPS: Final = (1, 10, 50)
SLICEBW: Final = "slicebw"
CNI: Final = "the CNI plugin's, same burst"


def rows(quick: bool) -> Iterator[Row]:
    """Measure round trips of slicebw and the plugin at each ceiling, and whether both held the rate meanwhile."""
    kernel, measured = measure_somewhere(quick)
    for mbps, found in measured.items():
        case = f"ceiling {mbps} Mbit/s, Linux {kernel}"
        mine, its = ([Samples(tuple(column)) for column in zip(*found[name], strict=True)] for name in (SLICEBW, CNI))
        yield figure(case, "slicebw: rate error", mine[1], "%", at_most(3))
        yield figure(case, "CNI plugin, same burst: rate error", its[1], "%")
        yield times(case, "slicebw: round trip under load", mine[3], "ms", (CNI, its[3]), at_most_times(1.0))


Measured = dict[str, dict[str, list[list[float]]]]
"""By ceiling in Mbit/s and by way, for each round: rate, error, first second and round trip (:func:`held`)."""


def measure_somewhere(quick: bool) -> tuple[str, Measured]:
    """Measure on a kernel with fq_codel. Returns its release and the figures."""
    if has_fq_codel():
        return os.uname().release, measure(quick=quick)
    say("this kernel has no fq_codel: measuring round trips on Debian's")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [str(ROOT / "hack/debian-kernel"), sys.executable, "-m", "tests.bench.latency", str(file)]
        command += ["--quick"] if quick else []
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as script:
            try:
                output, _ = script.communicate()
            except BaseException:
                script.terminate()  # not kill, as subprocess.run would: the script must end its kernel
                raise
        if script.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit code {script.returncode}: {output[-2000:]}")
        found = json.loads(file.read_text())
    return found["kernel"], found["measured"]


def measure(*, quick: bool) -> Measured:
    """Measure both ways in turn, at each ceiling."""
    measured: Measured = {}
    for mbps in RATES_MBPS[1:2] if quick else RATES_MBPS:
        with ExitStack() as stack:
            burst_bits = burst_bytes(mbps * M, LINE_RATE_BPS) * 8
            ways: dict[str, Shaped] = {
                SLICEBW: stack.enter_context(ByTree(offloads=False)),
                CNI: stack.enter_context(ByCniPlugin(burst_bits=burst_bits, offloads=False)),
            }
            for shaped in ways.values():
                shaped.limit(mbps * M)
            subjects: dict[str, Callable[[], tuple[float, ...]]] = {
                name: held(shaped, mbps, 1 if quick else 5) for name, shaped in ways.items()
            }
            found = in_turn_together(0 if quick else 3, subjects)
        rounds = {name: zip(*(samples.values for samples in found[name]), strict=True) for name in ways}
        measured[str(mbps)] = {name: [list(values) for values in rounds[name]] for name in ways}
    return measured


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(
        json.dumps({"kernel": os.uname().release, "measured": measure(quick="--quick" in sys.argv[2:])})
    )
