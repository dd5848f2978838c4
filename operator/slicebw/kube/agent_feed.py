"""The agent's feed: the desired state of its node from the API server, held in memory."""

import threading
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from slicebw.api import node_bandwidth, pod, slice_bandwidth
from slicebw.api.kinds import DEFAULT_NODE_BANDWIDTH
from slicebw.core.desired import DesiredState, NodeSpec, Pod, SliceSpec
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.informer import Informer
from slicebw.kube.resources import NODE_BANDWIDTHS, PODS, SLICE_BANDWIDTHS
from slicebw.kube.watch_supervisor import Watched


class ApiFeed:
    """Watches SliceBandwidths, the NodeBandwidths for this node, and its pods (the agent's ``Feed`` port).

    While the API server or a kind is missing it returns the last known state.
    """

    def __init__(self, api: ApiThread, node_name: str, wake: Callable[[], None]) -> None:
        """Start empty. Nothing runs before :meth:`start`.

        Args:
            api: makes our own requests. The caller starts and stops it.
            node_name: this node's name in Kubernetes.
            wake: called from any thread after each change that can matter to the node.
        """
        self._wake = wake
        self._dirty = threading.Event()
        self._lock = threading.Lock()
        self._desired = DesiredState()
        self._slices: Informer[SliceSpec] = self._informer(api, Watched(SLICE_BANDWIDTHS), slice_bandwidth.parse)
        self._pods: Informer[Pod] = self._informer(api, Watched(PODS, f"spec.nodeName={node_name}"), pod.parse)
        # One watch a name, not one of the whole kind: a thousand agents write their status into NodeBandwidths, and the
        # API server would send each of these writes to all thousand agents.
        self._nodes: dict[str, Informer[NodeSpec]] = {
            name: self._informer(api, Watched(NODE_BANDWIDTHS, f"metadata.name={name}"), node_bandwidth.parse)
            for name in (DEFAULT_NODE_BANDWIDTH, node_name)
        }
        self._own = self._nodes[node_name]

    def start(self) -> None:
        """Start to watch. Returns at once; see ``desired_state().synced``."""
        for informer in self._informers():
            informer.start()

    def stop(self) -> None:
        """End the watches; the desired state stays readable."""
        for informer in self._informers():
            informer.ask_to_stop()
        for informer in self._informers():
            informer.stop()

    def desired_state(self) -> DesiredState:
        """Return the newest known state. Never waits for the API server; callable from any thread."""
        with self._lock:
            if self._dirty.is_set():
                self._dirty.clear()
                self._desired = self._build()
            return self._desired

    def _build(self) -> DesiredState:
        # Asked before the values are read: a list that arrives in between is not in all of them, and a state that is
        # called complete but lacks an object removes the class of a slice, or the exempt destinations.
        synced = all(informer.listed for informer in self._informers())
        own, default = self._own.values(), self._nodes[DEFAULT_NODE_BANDWIDTH].values()
        return DesiredState(
            slices=tuple(sorted(self._slices.values(), key=attrgetter("key"))),
            pods=tuple(sorted(self._pods.values(), key=attrgetter("namespace", "name"))),
            node=(own[0] if own else NodeSpec()).over(default[0] if default else NodeSpec()),
            synced=synced,
        )

    def _informers(self) -> list[Informer[Any]]:
        return [self._slices, self._pods, *self._nodes.values()]

    def _informer(self, api: ApiThread, watched: Watched, parse: Callable[[Any], Any]) -> Informer[Any]:
        return Informer(api, watched, parse, lambda _: self._changed(), self._changed, confirm_deletions=True)

    def _changed(self) -> None:
        self._dirty.set()
        self._wake()
