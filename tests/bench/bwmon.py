"""The reference for whole passes: the loop of PlanetLab's bwmon, written plainly, with no more than it needs.

It runs ``tc -s class show``, parses the text by a regular expression, keeps an account per class, pickles all accounts,
and runs one ``tc class replace`` for each class whose ceiling is not the desired one.
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
    """The loop and its memory: bytes used, and the counter when it was last read, by classid."""

    def __init__(self, device: str, state: Path) -> None:
        self._device = device
        self._state = state
        self._used: dict[str, int] = {}
        self._counters: dict[str, int] = {}

    def run_once(self, ceilings_bps: Mapping[str, int]) -> int:
        """Make one pass, with the desired ceilings by classid. Returns how many classes it changed."""
        command = ["tc", "-s", "class", "show", "dev", self._device]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        changed = 0
        for classid, rate, ceil, sent in _CLASS.findall(shown):
            counter = int(sent)
            self._used[classid] = self._used.get(classid, 0) + max(0, counter - self._counters.get(classid, 0))
            self._counters[classid] = counter
            desired_bps = ceilings_bps.get(classid)
            if desired_bps is not None and desired_bps != _bps(ceil):
                self._replace(classid, _bps(rate), desired_bps)
                changed += 1
        with self._state.open("wb") as file:
            pickle.dump((self._used, self._counters), file)
        return changed

    def _replace(self, classid: str, rate_bps: int, ceil_bps: int) -> None:
        words = ["tc", "class", "replace", "dev", self._device, "parent", f"1:{classid[2]}0", "classid", classid]
        words += ["htb", "rate", f"{rate_bps}bit", "ceil", f"{ceil_bps}bit", "quantum", "1600"]
        subprocess.run(words, check=True)
