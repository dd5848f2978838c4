"""slicebw's kinds: parses, defaults and validates Kubernetes objects into frozen values, and back. Does no I/O."""
