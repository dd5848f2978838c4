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
