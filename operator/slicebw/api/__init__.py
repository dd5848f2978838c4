"""slicebw's kinds: Kubernetes objects to frozen values and back. Parses, defaults, validates; does no I/O."""
