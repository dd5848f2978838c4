"""``python -m slicebw``."""

from slicebw.cli import main

main()
