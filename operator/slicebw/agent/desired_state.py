"""Decides which desired state holds now: a small state machine.

It is without I/O: the reconciler passes it what it has read. Passes do not wait for the API: until the feed has listed
everything, the last complete list holds. The last three columns give the next state if the feed's list is incomplete,
complete, or complete with something wrong in it: a selector or a setting of the node that was right before.

============= =========================================================== ============= ======== =========
state         a pass is made on                                           incomplete    complete wrong
============= =========================================================== ============= ======== =========
NOTHING_KNOWN the feed's incomplete list, in the ledger's mode            NOTHING_KNOWN LIVE     LIVE
LAST_SAVED    the last complete list: the checkpoint's, or what was live  LAST_SAVED    LIVE     LAST_GOOD
LIVE          the feed's list                                             LAST_SAVED    LIVE     LAST_GOOD
LAST_GOOD     the feed's list; where it is wrong, what held before        LAST_SAVED    LIVE     LAST_GOOD
============= =========================================================== ============= ======== =========
"""

from enum import Enum

from msgspec.structs import replace

from slicebw.core.desired import DesiredState, Mode
from slicebw.core.membership import with_last_good_selectors


class Source(Enum):
    """Where the desired state of a pass comes from; the states of :class:`DesiredStateMachine`."""

    NOTHING_KNOWN = "nothing known"
    LAST_SAVED = "last saved"
    LIVE = "live"
    LAST_GOOD = "last good"

    @property
    def is_listed(self) -> bool:
        """Whether it is the feed's own complete list."""
        return self in (Source.LIVE, Source.LAST_GOOD)


class DesiredStateMachine:
    """Decides which desired state holds now.

    Args:
        saved: the last complete list as the checkpoint has it, None where there is none.
    """

    def __init__(self, saved: DesiredState | None = None) -> None:
        self.state = Source.NOTHING_KNOWN if saved is None else Source.LAST_SAVED
        self._held = saved
        self._made_from: DesiredState | None = None
        """The feed's list that ``_held`` was made from."""
        self._saved = saved

    def advance(self, listed: DesiredState, last_mode: Mode | None) -> DesiredState:
        """Take the feed's list, and return the desired state for this pass.

        While the list is the same object, so is what this returns: passes compare by identity.

        Args:
            listed: what the feed knows now, complete or not.
            last_mode: the node's mode at the last pass, None before the first one.
        """
        if not listed.synced:
            if self._held is not None:
                self.state = Source.LAST_SAVED
                return self._held
            self.state = Source.NOTHING_KNOWN
            if listed.node.mode is not None or last_mode is None:
                return listed
            # The mode is not listed yet, so the last one holds: a node in mode Disabled must not get a tree meanwhile.
            return replace(listed, node=replace(listed.node, mode=last_mode))
        if self._held is None or listed is not self._made_from:
            self._held = listed if self._held is None else _with_last_good(listed, self._held)
            self._made_from = listed
            if self._held == self._saved:
                self._saved = self._held  # the file has the same content already, so nothing is written
        self.state = Source.LIVE if self._held is listed else Source.LAST_GOOD
        return self._held

    @property
    def unsaved(self) -> DesiredState | None:
        """The last complete list if the checkpoint has another one or none; otherwise None."""
        return None if self._held is self._saved else self._held

    def mark_saved(self, saved: DesiredState) -> None:
        """Note that the checkpoint has ``saved`` now."""
        self._saved = saved


def _with_last_good(listed: DesiredState, before: DesiredState) -> DesiredState:
    """Return the list, with the last valid selector or node setting wherever the listed one is invalid."""
    slices, node = listed.slices, listed.node
    if any(spec.selector is None for spec in slices):
        slices = with_last_good_selectors(slices, before.slices)
        if slices == before.slices:
            slices = before.slices  # passes tell changes by identity
    if node.wrong:
        node = node.with_last_good(before.node)
        if node == before.node:
            node = before.node
    if slices == listed.slices and node == listed.node:
        return listed
    return replace(listed, slices=slices, node=node)
