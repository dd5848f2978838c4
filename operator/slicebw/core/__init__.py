"""Everything that decides, as values and pure functions: no I/O, no clock, no Kubernetes, no kernel."""
