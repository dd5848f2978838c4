"""Lists the usages that earlier agents of a node have reported, cheaply enough for a thousand agents at once.

A plain list with a label selector would do, but up to Kubernetes 1.30 an API server reads and decodes all objects of
the kind from etcd for it. During the rollout of a DaemonSet every agent lists, and the API server serves nothing else
any more. A list from the API server's cache is cheap, but the cache may lag, and then bytes would be lost.

So the steps are:

1. Read one object from etcd. The answer has the current version and the number of objects.
2. If there are few objects, list them from etcd.
3. Else list from the cache, on condition that it is at least as new as that version.
4. If the cache does not catch up in time (it learns of new versions only from writes), list from the cache without
   condition, and read each listed object from etcd.
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
"""Fewer usages than this are listed from etcd."""

CONCURRENT_READS: Final = 4


async def list_own_usages(client: ApiClient, node_name: str, few: int = FEW) -> tuple[UsageReport, ...]:
    """Return the current usages of a node; none if the kind is not installed. Raises ApiUnreachable, ApiRefused."""
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
    page = await client.page_from_cache(BANDWIDTH_USAGES, page_of(first).version, labelSelector=selector)
    if page is not None:
        return page.items
    log.debug("the API server's cache does not catch up; reading each usage from etcd")
    pages = client.pages(BANDWIDTH_USAGES, labelSelector=selector, resourceVersion="0")
    return await _reread(client, [obj async for page in pages for obj in page.items])


async def _reread(client: ApiClient, cached: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Read each object from etcd. Deleted ones are left out."""
    slots = asyncio.Semaphore(CONCURRENT_READS)

    async def read(obj: Object) -> dict[str, Any] | None:
        async with slots:
            try:
                return await client.get(BANDWIDTH_USAGES.path_of(obj))
            except ApiRefused as refusal:
                if refusal.not_found:
                    return None
                raise

    return [obj for obj in await asyncio.gather(*map(read, cached)) if obj is not None]


def _own_report(obj: Object, node_name: str) -> UsageReport | None:
    try:
        usage = bandwidth_usage.parse(obj)
    except FieldError as error:
        log.warning("ignored: %s", error)
        return None
    # Two long node names may share a label value; the full name is in the object.
    return usage.report if usage.node_name == node_name else None
