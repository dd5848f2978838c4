"""What an earlier agent of a node has reported: a consistent list that a thousand starting agents can afford.

Up to Kubernetes 1.30 an API server reads and decodes all BandwidthUsages of the cluster from etcd to answer a
consistent list with a label selector. 20,000 of them take most of a second of its CPU and 100 MB, and when a DaemonSet
is rolled out each of a thousand agents asks. From its memory it answers at once, but that may lag behind, and bytes
would be forgotten. So one object is read from etcd first, which tells the version as of now and how many objects there
are. Few are simply listed. Of many, the list is taken from a memory that is at least as new as that version; if it
does not become so in time (nothing has been written lately to tell it), they are listed from etcd after all.
"""

import logging
from typing import Final

from slicebw.api import bandwidth_usage, kinds
from slicebw.api.fields import FieldError
from slicebw.core.reports import UsageReport
from slicebw.kube.client import ApiClient, ApiRefused, ApiUnreachable, page_of
from slicebw.kube.resources import BANDWIDTH_USAGES, Object

log = logging.getLogger(__name__)

FEW: Final = 2_000
"""So many usages are listed from etcd without much ado."""


async def usages_of_node(client: ApiClient, node_name: str, few: int = FEW) -> tuple[UsageReport, ...]:
    """The usages of a node as they are now; none where the kind is not installed. Raises ApiUnreachable, ApiRefused."""
    try:
        return await _list(client, node_name, await _version_to_wait_for(client, few))
    except ApiRefused as refusal:
        if refusal.kind_missing:
            return ()
        raise


async def _version_to_wait_for(client: ApiClient, few: int) -> int | None:
    """The version that a list from memory has to have; None where a list from etcd costs little."""
    body = await client.get(BANDWIDTH_USAGES.path(), limit="1")
    others = int(body.get("metadata", {}).get("remainingItemCount") or 0)
    return page_of(body).version if others >= few else None


async def _list(client: ApiClient, node_name: str, version: int | None) -> tuple[UsageReport, ...]:
    query = {"labelSelector": f"{kinds.LABEL_NODE}={kinds.label_value(node_name)}"}
    if version is not None:
        try:
            body = await client.get(BANDWIDTH_USAGES.path(), **query, resourceVersion=str(version))
        except ApiUnreachable as error:
            if not error.busy:
                raise
            log.debug("the API server's memory does not reach version %d in time; asking etcd", version)
        else:
            return _own(page_of(body).items, node_name)
    return _own([obj async for page in client.pages(BANDWIDTH_USAGES, None, **query) for obj in page.items], node_name)


def _own(items: list[dict[str, object]], node_name: str) -> tuple[UsageReport, ...]:
    return tuple(report for obj in items if (report := _own_report(obj, node_name)) is not None)


def _own_report(obj: Object, node_name: str) -> UsageReport | None:
    try:
        usage = bandwidth_usage.parse(obj)
    except FieldError as error:
        log.warning("passed over: %s", error)
        return None
    return usage.report if usage.node_name == node_name else None
