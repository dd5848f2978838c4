"""A node whose agent takes its wishes from a folder, and everything about it that a test can look at."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import yaml

from slicebw.agent.checkpoint import FileStore
from slicebw.core.ledger import Ledger, SliceAccount
from slicebw.core.model import SliceKey
from tests.support.processes import Slicebw, agent
from tests.support.tc import ShownClass, classes
from tests.support.topology import Host, Topology, wait_until

NODE: Final = "node-a"
API_VERSION: Final = "slicebw.io/v1alpha1"


class FolderLab:
    """A node, a pod for each slice, a folder of manifests, and an agent that tests start and kill.

    Every slice has a namespace and a pod of its own name; ``names`` are in the order of the pods. Use as a context
    manager; the agent does not run before :meth:`start`.
    """

    def __init__(self, folder: Path, *names: str, offloads: bool = False, **node: object) -> None:
        """Make the network, and write the pods and the node's own settings."""
        self.folder = folder
        self.names = names
        self.manifests = folder / "manifests"
        self.state = folder / "state"
        self.manifests.mkdir(parents=True)
        self.agent = self._new_agent()
        self.starts = 0
        with ExitStack() as stack:
            self.net = stack.enter_context(Topology(pods=len(names), offloads=offloads))
            self.agent = self._new_agent()
            self._stack = stack.pop_all()
        self.write_node(**{"lineRate": "1G", "exemptDestinations": list(self.net.sink.exempt_networks), **node})
        for name, pod in zip(names, self.net.pods, strict=True):
            self.write_pod(name, name, pod.address, pod.address6)

    def __enter__(self) -> "FolderLab":
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the agent, then the network."""
        try:
            self.agent.__exit__(kind, error, trace)
        finally:
            self._stack.close()

    def _new_agent(self, *arguments: str) -> Slicebw:
        if not hasattr(self, "net"):
            return Slicebw(self.folder / "agent.log", "agent")
        own = ("--manifests", str(self.manifests), *arguments)
        return agent(self.folder, NODE, self.net.node.path, *own)

    def start(self, *arguments: str) -> Slicebw:
        """Start an agent with the state that the last one left, and wait until limits are in force."""
        self.agent = self._new_agent(*arguments)
        self.agent.start()
        self.agent.wait_ready()
        return self.agent

    # What people write.

    def write(self, file: str, *objects: dict[str, Any]) -> None:
        """Put objects into a file of this name."""
        (self.manifests / f"{file}.yaml").write_text(yaml.safe_dump_all(objects))
