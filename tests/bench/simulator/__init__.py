"""A testbed of a thousand nodes in a few processes: their reports and their watches, on a real API server."""
