"""Manifests as texts, and the errors that were logged about them."""

import logging
from textwrap import dedent

import pytest

from slicebw.core.desired import SliceSpec


def slice_yaml(name: str, max_rate: str = "10M") -> str:
    """A SliceBandwidth in namespace ``ns``. Its first line is empty."""
    return dedent(f"""
        apiVersion: slicebw.io/v1alpha1
        kind: SliceBandwidth
        metadata: {{name: {name}, namespace: ns}}
        spec:
          standard: {{maxRate: {max_rate}}}
    """)


def rate_mbit(spec: SliceSpec) -> int | None:
    """A slice's maximum rate in Mbit/s, None where its limits are wrong."""
    rate_bps = spec.limits.standard.max_rate_bps if spec.limits else None
    return None if rate_bps is None else rate_bps // 10**6


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The errors in the log."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
