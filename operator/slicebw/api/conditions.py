"""Conditions by the Kubernetes API conventions (apimachinery, metav1.Condition). Times are in whole seconds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from slicebw.api.fields import lenient_int, lenient_time
from slicebw.core.text import time_text

TRUE: Final = "True"
FALSE: Final = "False"
UNKNOWN: Final = "Unknown"

MAX_MESSAGE_LENGTH: Final = 32768
"""Of a condition's message, in characters (metav1.Condition)."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition. ``status`` is TRUE, FALSE or UNKNOWN, ``reason`` a CamelCase word, ``message`` a sentence."""

    type: str
    status: str
    reason: str
    message: str
    last_transition_s: int
    """When ``status`` last changed, in seconds since the epoch."""
    observed_generation: int = 0


def carry_over(new: Iterable[Condition], old: Iterable[Condition]) -> tuple[Condition, ...]:
    """Return the new conditions. Those whose status has not changed keep their old time of transition."""
    before = {condition.type: condition for condition in old}
    carried = []
    for condition in new:
        previous = before.get(condition.type)  # a new reason or message alone is no transition
        if previous is None or previous.status != condition.status:
            carried.append(condition)
        else:
            carried.append(replace(condition, last_transition_s=previous.last_transition_s))
    return tuple(carried)


def to_list(conditions: Iterable[Condition]) -> list[dict[str, Any]]:
    """Return the conditions as in the JSON of an object's status."""
    return [
        {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message[:MAX_MESSAGE_LENGTH],
            "lastTransitionTime": time_text(condition.last_transition_s),
            "observedGeneration": condition.observed_generation,
        }
        for condition in conditions
    ]


def parse_list(value: object) -> tuple[Condition, ...]:
    """Parse the conditions of a status. Entries that are not conditions are left out. Never raises."""
    if not isinstance(value, list | tuple):
        return ()
    return tuple(condition for item in value if (condition := _parse(item)) is not None)


def _parse(item: object) -> Condition | None:
    if not isinstance(item, Mapping):
        return None
    type_, status = item.get("type"), item.get("status")
    # Nothing can be carried over without these two; a wrong reason or message does no harm.
    if not isinstance(type_, str) or status not in (TRUE, FALSE, UNKNOWN):
        return None
    reason, message = item.get("reason"), item.get("message")
    return Condition(
        type=type_,
        status=status,
        reason=reason if isinstance(reason, str) else "",
        message=message if isinstance(message, str) else "",
        last_transition_s=lenient_time(item.get("lastTransitionTime")) or 0,
        observed_generation=lenient_int(item.get("observedGeneration")),
    )
