"""Round-trip times beside other traffic, and whether the kernel has fq_codel, which keeps them short."""

import re
import statistics
import subprocess

from tests.support.topology import UPLINK, Pod, Sink, Topology


def ping_ms(pod: Pod, sink: Sink, seconds: float) -> float:
    """Return the median round trip of pings from the pod, 20 a second. Raises RuntimeError if none comes back."""
    command = pod.command("ping", "-i", "0.05", "-c", str(max(5, round(seconds * 20))), sink.address)
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    trips = [float(trip) for trip in re.findall(r"time=([\d.]+) ms", shown)]
    if not trips:
        raise RuntimeError(f"no ping came back: {shown}")
    return statistics.median(trips)


def has_fq_codel() -> bool:
    """Tell whether this machine's kernel has fq_codel."""
    with Topology(pods=0) as lab:
        try:
            lab.node.run("tc", "qdisc", "add", "dev", UPLINK, "root", "fq_codel")
        except RuntimeError:
            return False
    return True
