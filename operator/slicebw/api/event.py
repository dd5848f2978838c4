"""Pending events as core/v1 Event objects, each of which exists once however often it is sent."""

from typing import Any, Final

from slicebw.api import kinds
from slicebw.core.ledger import PendingEvent, Reason
from slicebw.core.text import time_text

CLUSTER_NAMESPACE: Final = "default"
"""Kubernetes requires it for Events about cluster-scoped objects (core/v1 Event validation)."""
MAX_MESSAGE_BYTES: Final = 1024
_MAX_INSTANCE_LENGTH: Final = 128


def to_object(pending: PendingEvent, node_name: str = "", node_uid: str | None = None) -> tuple[str, dict[str, Any]]:
    """Return the Event and the namespace to create it in.

    The Event is about the slice, or about the node if ``pending`` has no key. Its name is made from the event's id and
    the node's name, so creating it again gives 409 AlreadyExists.

    Args:
        pending: the event.
        node_name: the node whose agent sends the Event; empty for the controller.
        node_uid: the Node's uid. If it is not known the name stands for it, as in the kubelet's Events;
            ``kubectl describe node`` finds both.
    """
    if pending.key is not None:
        namespace = pending.key.namespace
        involved = {
            "apiVersion": kinds.API_VERSION,
            "kind": kinds.SLICE_BANDWIDTH.name,
            "namespace": namespace,
            "name": pending.key.name,
            "uid": pending.uid,
        }
    else:
        namespace = CLUSTER_NAMESPACE
        involved = {"apiVersion": "v1", "kind": "Node", "name": node_name, "uid": node_uid or node_name}
    at = time_text(pending.at_s)
    # An invalid spec is invalid on every node: all senders use the same name, so that one Event exists in all.
    sender = "" if pending.reason is Reason.INVALID else node_name
    component = kinds.AGENT_MANAGER if node_name else kinds.CONTROLLER_MANAGER
    return namespace, {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "namespace": namespace,
            "name": kinds.marked(involved["name"], kinds.digest(sender, pending.id)),
        },
        "involvedObject": involved,
        "type": "Warning" if pending.warning else "Normal",
        "reason": pending.reason.value,
        "message": _cut(pending.message),
        "source": {"component": component, **({"host": node_name} if node_name else {})},
        "reportingComponent": component,
        "reportingInstance": (node_name or component)[:_MAX_INSTANCE_LENGTH],
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,  # an Event exists once and is never updated, so repetitions are never counted
    }


def _cut(message: str) -> str:
    """Cut a message to MAX_MESSAGE_BYTES. A message that was cut ends in ``...``."""
    encoded = message.encode()
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return message
    # Ignore errors: the cut may be in the middle of a character.
    return encoded[: MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "..."
