"""The error tree. Errors that cross layers say one of two things: try again, or a person has to act."""


class SlicebwError(Exception):
    """The root of all errors that slicebw raises on purpose. Its text is one line that says what to do."""


class KernelError(SlicebwError):
    """The kernel or nft refused, or could not be reached. The next pass tries again."""


class UplinkError(KernelError):
    """There is no uplink, or not the one that is named."""


class SaveError(SlicebwError):
    """A checkpoint could not be written. The file that was there before is unchanged."""


class UsageError(SlicebwError):
    """The request cannot be carried out as it is. Waiting does not help."""


class TryLater(SlicebwError):  # noqa: N818 - a state more than an error
    """The write does not work now, but may work later.

    ``retry_s``: the same must not be tried before; others may be. ``pause_s``: nothing must be tried before, because
    the other side is away or busy.
    """

    def __init__(self, message: str, *, retry_s: float = 0.0, pause_s: float = 0.0) -> None:
        """Keep the times beside the message."""
        super().__init__(message)
        self.retry_s = retry_s
        self.pause_s = pause_s
