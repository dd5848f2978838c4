"""Events: notes to core/v1 Event objects that exist once, however often they are sent."""

from typing import Any, Final

from slicebw.api import kinds
from slicebw.core.ledger import PendingEvent, Reason
from slicebw.core.text import time_text

CLUSTER_NAMESPACE: Final = "default"
"""Where Kubernetes wants the Events of objects that have no namespace (core/v1 Event validation)."""
MAX_MESSAGE_BYTES: Final = 1024
_MAX_INSTANCE_LENGTH: Final = 128


def to_object(pending: PendingEvent, node_name: str = "", node_uid: str | None = None) -> tuple[str, dict[str, Any]]:
    """The namespace to create the Event in, and the Event: about the slice, or about the node where it has no key.

    Its name is made of the pending's id and the node's name, so that sending it again gives 409 AlreadyExists. What is
    wrong with a spec is the same on every node, and one Event says it: whoever sends it first. Without a node's name
    it is the controller that sends it.
    A Node's uid is, where unknown, its name, as the kubelet has it; ``kubectl describe node`` finds both.
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
    told_by = "" if pending.reason is Reason.INVALID else node_name
    component = kinds.AGENT_MANAGER if node_name else kinds.CONTROLLER_MANAGER
    return namespace, {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "namespace": namespace,
            "name": kinds.marked(involved["name"], kinds.digest(told_by, pending.id)),
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
        "count": 1,
    }


def _cut(message: str) -> str:
    """The message in at most 1024 bytes, with a mark where something is missing."""
    encoded = message.encode()
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return message
    return encoded[: MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "..."
