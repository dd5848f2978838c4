"""Lists what an earlier agent of a node has reported, in a way that lets a thousand agents start at once.

A plain list with a label selector is correct, but up to Kubernetes 1.30 an API server reads and decodes all objects of
the kind from etcd for it. When a DaemonSet is rolled out every agent asks, the lists pile up, and nothing else gets
through any more. From its memory the API server answers at once, but that may lag behind, and bytes would be lost.

So one object is read from etcd first: the answer has the current version and the number of objects. Few objects are
simply listed. Of many, the list is taken from a memory that is at least as new as that version. If it does not become
so in time (nothing has been written lately that would tell it the time), the names are taken from memory as it is,
and each object is then read from etcd.
"""

import asyncio
import logging
from typing import Any, Final

from slicebw.api import bandwidth_usage, kinds
from slicebw.api.fields import FieldError
from slicebw.core.reports import UsageReport
from slicebw.kube.client import ApiClient, ApiRefused, page_of
from slicebw.kube.resources import BANDWIDTH_USAGES, Object

log = logging.getLogger(__name__)

FEW: Final = 200
"""Up to so many usages are listed from etcd."""

CONCURRENT_READS: Final = 4


async def list_own_usages(client: ApiClient, node_name: str, few: int = FEW) -> tuple[UsageReport, ...]:
    """The usages of a node as they are now; none where the kind is not installed. Raises ApiUnreachable, ApiRefused."""
    try:
        found = await _objects(client, f"{kinds.LABEL_NODE}={kinds.label_value(node_name)}", few)
    except ApiRefused as refusal:
        if refusal.kind_missing:
            return ()
        raise
    return tuple(report for obj in found if (report := _own_report(obj, node_name)) is not None)


async def _objects(client: ApiClient, selector: str, few: int) -> list[dict[str, Any]]:
    first = await client.get(BANDWIDTH_USAGES.path(), limit="1")
    if int(first.get("metadata", {}).get("remainingItemCount") or 0) < few:
        pages = client.pages(BANDWIDTH_USAGES, labelSelector=selector)
        return [obj async for page in pages for obj in page.items]
    page = await client.page_from_memory(BANDWIDTH_USAGES, page_of(first).version, labelSelector=selector)
    if page is not None:
        return page.items
    log.debug("the API server's memory is not known to be new; reading each usage from etcd")
    pages = client.pages(BANDWIDTH_USAGES, labelSelector=selector, resourceVersion="0")
    return await _reread(client, [obj async for page in pages for obj in page.items])


async def _reread(client: ApiClient, remembered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same objects as they are now, without those that are gone."""
    slots = asyncio.Semaphore(CONCURRENT_READS)

    async def read(obj: Object) -> dict[str, Any] | None:
        async with slots:
            try:
                return await client.get(BANDWIDTH_USAGES.path_of(obj))
            except ApiRefused as refusal:
                if refusal.not_found:
                    return None
                raise

    return [obj for obj in await asyncio.gather(*map(read, remembered)) if obj is not None]


def _own_report(obj: Object, node_name: str) -> UsageReport | None:
    try:
        usage = bandwidth_usage.parse(obj)
    except FieldError as error:
        log.warning("passed over: %s", error)
        return None
    return usage.report if usage.node_name == node_name else None
