"""Chooses the device to shape. It is the desired one: the one that is named, or that of the default route.

A node can lose its default route for a while (DHCP, a restart of its network service). Traffic by more specific routes
continues, and so must passes, caps and period ends. So the last device is kept while the desired one does not exist, or
has only just become another one.
"""

import logging
from typing import Final

from msgspec.structs import replace

from slicebw.agent.ports import Shaper
from slicebw.core.clock import NS, Instant
from slicebw.core.dataplane import Device, ObservedTree, UplinkTrouble
from slicebw.core.ledger import Ledger

log = logging.getLogger(__name__)

HOLD_OFF_NS: Final = 5 * NS
"""The default route must be away from the last device for this long before another device is taken. Moving the tree to
and fro in every short failure would leave traffic unlimited each time. It does not apply if the last device is gone."""

# Reasons of the condition Ready; docs/conditions.md says what each means.
NO_UPLINK: Final = "NoUplink"
_KEPT: Final = "UplinkKept"
_CHANGING: Final = "UplinkChanging"


class UplinkChooser:
    """Reads the tree of the device that is to be shaped now.

    Args:
        shaper: finds devices and reads trees.
        fallback: the device if the node's settings name none; None: the default route's.
    """

    def __init__(self, shaper: Shaper, fallback: str | None) -> None:
        self.trouble: UplinkTrouble | None = None
        """What was wrong at the last :meth:`read`, also if it raised UplinkError."""
        self._was_named = False
        """Whether the last device was taken because somebody named it."""
        self._logged: UplinkTrouble | None = None
        self._shaper = shaper
        self._fallback = fallback
        self._elsewhere_since_ns: int | None = None
        """When the default route was first observed on another device; None again once it is back on the last one."""

    def read(self, named: str | None, ledger: Ledger, now: Instant) -> ObservedTree:
        """Return the tree of the device to shape, with what is wrong about that device.

        Raises UplinkError if neither the desired device nor the last one exists; KernelError.

        Args:
            named: the device that the node's settings name, or None.
            ledger: names the last device.
            now: this pass's instant.
        """
        name = named or self._fallback
        device, trouble = self._choose(name, ledger, now)
        self.trouble = trouble
        if trouble is None:
            self._was_named = name is not None
        if device is not None and trouble != self._logged:  # without a device the pass fails, and that is logged
            log.warning("uplink trouble=%s", "none" if trouble is None else trouble.message)
            self._logged = trouble
        # By number, because the name may have passed to another device meanwhile. Without a device, reading raises.
        tree = self._shaper.read(name if device is None else device.ifindex)
        return replace(tree, uplink_trouble=trouble) if trouble is not None else tree

    def last(self, ledger: Ledger, now: Instant) -> Device | None:
        """Return the ledger's device under its present name; None if it is gone. Raises KernelError."""
        return self._shaper.find(ledger.last_device(now)) if ledger.device else None

    def wait_ns(self, now: Instant) -> int | None:
        """Return the rest of the hold-off; None if no other device waits to be taken."""
        if self.trouble is None or self.trouble.reason != _CHANGING:
            return None
        return self._hold_off_ns(now)

    def _hold_off_ns(self, now: Instant) -> int:
        since_ns = self._elsewhere_since_ns
        return HOLD_OFF_NS if since_ns is None else max(0, since_ns + HOLD_OFF_NS - now.boot_ns)

    def _choose(self, name: str | None, ledger: Ledger, now: Instant) -> tuple[Device | None, UplinkTrouble | None]:
        """Return the device to shape, None if there is none, and what is wrong about it."""
        desired, last = self._shaper.find(name), self.last(ledger, now)
        if desired is None:
            if last is None and ledger.device:  # a device that was made again, under the last one's name
                last = self._shaper.find(ledger.device)
            missing = "there is no default route" if name is None else f"there is no device named {name}"
            if last is None:
                return None, UplinkTrouble(NO_UPLINK, f"{missing}, and nothing is limited: name the uplink")
            return last, UplinkTrouble(_KEPT, f"{missing}; slicebw stays on {last.name}, the last uplink")
        # What somebody names, or names no longer, holds at once. After a reboot there is no reason to wait for the last
        # device: it is known by its name alone, which may be another device's now.
        at_once = name is not None or self._was_named
        known_by_number = last is not None and last.ifindex == ledger.last_device(now).ifindex
        if last is None or last.ifindex == desired.ifindex or at_once or not known_by_number:
            self._elsewhere_since_ns = None
            return desired, None
        if self._elsewhere_since_ns is None:
            self._elsewhere_since_ns = now.boot_ns
        if self._hold_off_ns(now) == 0:
            self._elsewhere_since_ns = None
            return desired, None
        message = (
            f"the default route is on {desired.name}; slicebw stays on {last.name} until the route has been away for "
            f"{HOLD_OFF_NS // NS} s"
        )
        return last, UplinkTrouble(_CHANGING, message)
