"""Runs one program: ``python hack/lab/__main__.py control-plane ARGUMENT...``. hack/lib.sh (run_lab) calls it."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    root = str(Path(__file__).resolve().parents[2])
    sys.path.insert(0, root)
    name = sys.argv.pop(1)
    sys.argv[0] = f"hack/{name}"
    console = importlib.import_module("hack.lab.console")
    console.run(importlib.import_module(f"hack.lab.{name.replace('-', '_')}").main)
