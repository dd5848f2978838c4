"""Simulates a thousand nodes in a few processes: their reports and watches, on a real API server."""
