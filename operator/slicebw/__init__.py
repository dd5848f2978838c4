"""slicebw: fair, guaranteed and budgeted shares of each node's uplink, for every slice of a Kubernetes testbed."""

__version__ = "0.1.0"
