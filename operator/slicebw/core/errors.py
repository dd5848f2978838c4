"""The two error words that cross layers: wait and try again, or somebody has to do something."""


class SlicebwError(Exception):
    """The root of every error slicebw raises on purpose. Its text is one line that says what to do."""


class KernelError(SlicebwError):
    """The kernel, or nft, refused or could not be reached: tried again on the next pass."""


class UplinkError(KernelError):
    """There is no uplink, or not the one named."""


class SaveError(SlicebwError):
    """A checkpoint could not be written; what was there before is untouched."""


class UsageError(SlicebwError):
    """What was asked for cannot be done as asked; waiting does not help."""


class TryLater(SlicebwError):  # noqa: N818 - a state more than an error
    """It does not work now, but may work later.

    ``retry_s``: the same must not be tried before; others may be. ``pause_s``: nothing must be tried before, because
    the other side is away or busy.
    """

    def __init__(self, message: str, *, retry_s: float = 0.0, pause_s: float = 0.0) -> None:
        """Keep the times beside the message."""
        super().__init__(message)
        self.retry_s = retry_s
        self.pause_s = pause_s
