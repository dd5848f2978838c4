"""The agent's feed: what the API server wants of this node, kept in memory and ready at any time."""

import threading
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from slicebw.api import node_bandwidth, pod, slice_bandwidth
from slicebw.api.kinds import DEFAULT_NODE_BANDWIDTH
from slicebw.core.desired import DesiredState, NodeSpec, Pod, SliceSpec
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.informer import Informer
from slicebw.kube.kopf_watch import Watched
from slicebw.kube.resources import NODE_BANDWIDTHS, PODS, SLICE_BANDWIDTHS


class ApiFeed:
    """Mirrors SliceBandwidths, the NodeBandwidths that concern this node, and its pods (the agent's ``Feed`` port).

    It survives the absence of the API server and of the kinds: it goes on saying what it last knew.
    """

    def __init__(self, api: ApiThread, node_name: str, wake: Callable[[], None]) -> None:
        """Know nothing yet; nothing runs before :meth:`start`.

        Args:
            api: where own requests are made; it is started and stopped by whoever made it.
            node_name: this node's name in Kubernetes.
            wake: called from some thread after each change that can matter to the node.
        """
        self._wake = wake
        self._dirty = threading.Event()
        self._lock = threading.Lock()
        self._desired = DesiredState()
        self._slices: Informer[SliceSpec] = self._informer(api, Watched(SLICE_BANDWIDTHS), slice_bandwidth.parse)
        self._pods: Informer[Pod] = self._informer(api, Watched(PODS, f"spec.nodeName={node_name}"), pod.parse)
        # One watch for each name: a thousand agents report their status in NodeBandwidths, and if each of them watched
        # all of these, every report would be sent a thousand times.
        self._nodes: dict[str, Informer[NodeSpec]] = {
            name: self._informer(api, Watched(NODE_BANDWIDTHS, f"metadata.name={name}"), node_bandwidth.parse)
            for name in (DEFAULT_NODE_BANDWIDTH, node_name)
        }
        self._own = self._nodes[node_name]

    def start(self) -> None:
        """Begin to watch. Returns at once; see ``desired_state().synced``."""
        for informer in self._informers():
            informer.start()

    def stop(self) -> None:
        """End the watches; the desired state stays readable."""
        for informer in self._informers():
            informer.ask_to_stop()
        for informer in self._informers():
            informer.stop()

    def desired_state(self) -> DesiredState:
        """What is known now; cheap, never blocks, callable from any thread."""
        with self._lock:
            if self._dirty.is_set():
                self._dirty.clear()
                self._desired = self._take()
            return self._desired

    def _take(self) -> DesiredState:
        # Asked first: a list that comes while the values are read is not in all of them, and a desired that is called
        # complete and lacks a NodeBandwidth or a slice takes its exempt destinations or its class away.
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
        return Informer(api, watched, parse, lambda _: self._changed(), self._changed, doubt_removals=True)

    def _changed(self) -> None:
        self._dirty.set()
        self._wake()
