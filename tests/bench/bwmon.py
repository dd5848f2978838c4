"""The reference for whole passes: a loop as PlanetLab's bwmon had it, written plainly, doing no more than it must.

``tc -s class show`` in a subprocess, regular expressions over its text, an account per class, all accounts pickled,
and one ``tc class replace`` for each class whose ceiling is not the wanted one.
"""

import pickle
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_CLASS: Final = re.compile(
    r"class htb (1:[0-9a-f]+) parent 1:(?:10|20) .*?rate (\S+)bit ceil (\S+)bit.*?\n Sent (\d+) bytes"
)
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def _bps(text: str) -> int:
    if text[-1] in _UNITS:
        return int(text[:-1]) * _UNITS[text[-1]]
    return int(text)


class Bwmon:
    """The loop's memory: bytes used and the counter when it was last read, by slice id."""

    def __init__(self, device: str, state: Path) -> None:
        self._device = device
        self._state = state
        self._used: dict[str, int] = {}
        self._counters: dict[str, int] = {}

    def run_once(self, ceilings_bps: Mapping[str, int]) -> int:
        """One pass; how many classes it changed. ``ceilings_bps``: what is wanted, by slice id."""
        command = ["tc", "-s", "class", "show", "dev", self._device]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        changed = 0
        for slice_id, rate, ceil, sent in _CLASS.findall(shown):
            counter = int(sent)
            self._used[slice_id] = self._used.get(slice_id, 0) + max(0, counter - self._counters.get(slice_id, 0))
            self._counters[slice_id] = counter
            wanted_bps = ceilings_bps.get(slice_id)
            if wanted_bps is not None and wanted_bps != _bps(ceil):
                self._replace(slice_id, _bps(rate), wanted_bps)
                changed += 1
        with self._state.open("wb") as file:
            pickle.dump((self._used, self._counters), file)
        return changed

    def _replace(self, slice_id: str, rate_bps: int, ceil_bps: int) -> None:
        words = ["tc", "class", "replace", "dev", self._device, "parent", f"1:{slice_id[2]}0", "classid", slice_id]
        words += ["htb", "rate", f"{rate_bps}bit", "ceil", f"{ceil_bps}bit", "quantum", "1600"]
        subprocess.run(words, check=True)
