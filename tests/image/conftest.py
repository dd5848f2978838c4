"""The image, built and unpacked once for all tests that look at it."""

import os
import shutil

import pytest

from tests.image.container import Image

PROGRAMS = ("runc", "skopeo", "umoci", "ip", "tc", "nft", "nsenter", "unshare")


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image. If this machine cannot run it: skip the test, or fail if SLICEBW_REQUIRE_KERNEL=1."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    reason = f"programs are missing: {', '.join(absent)} (hack/packages test-image)" if absent else None
    if os.geteuid() != 0:
        reason = "containers need root"
    if reason is not None:
        if os.environ.get("SLICEBW_REQUIRE_KERNEL") == "1":
            pytest.fail(f"SLICEBW_REQUIRE_KERNEL=1, but {reason}")
        pytest.skip(reason)
    return Image(tmp_path_factory.mktemp("image"))
