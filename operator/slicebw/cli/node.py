"""``slicebw node show``: prints the ledger and the kernel's state side by side, to debug a node that misbehaves."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from slicebw.cli import options
from slicebw.cli.cleanup import cleanup
from slicebw.core.dataplane import DEFAULT_ID, HOST_ID, NO_CEILING_BPS, NftTable, ObservedTree, RootQdisc, classid, leaf
from slicebw.core.desired import TrafficClass
from slicebw.core.errors import KernelError, UsageError
from slicebw.core.ledger import Ledger, SliceAccount
from slicebw.core.text import bytes_text, rate_text, time_text


@click.group()
def node() -> None:
    """Inspect this node, or remove slicebw from it."""


node.add_command(cleanup)


@dataclass(frozen=True, slots=True)
class Row:
    """One class: the ledger's figures, and the kernel's. None if the ledger, or the kernel, does not have the class.

    The field names are keys of the YAML and JSON output. ``class_id`` is tc's classid.
    """

    slice: str
    traffic_class: str
    class_id: str
    state: str
    used_bytes: int | None
    budget_bytes: int | None
    capped: bool | None
    period_end: str | None
    kernel_ceil_bps: int | None
    kernel_sent_bytes: int | None
    kernel_backlog_bytes: int | None
    addresses: tuple[str, ...]


@node.command()
@options.state_dir
@options.netns
@options.uplink
@click.option("-o", "--output", type=click.Choice(["table", "yaml", "json"]), default="table", show_default=True)
def show(state_dir: Path, netns: str | None, uplink: str | None, output: str) -> None:
    """Print the ledger and the kernel's state side by side. Changes nothing; the agent may be running."""
    from slicebw.agent.checkpoint import FileStore

    ledger, problem = FileStore(state_dir).peek_ledger()
    for line in filter(None, (problem, None if ledger or problem else f"there is no ledger in {state_dir}")):
        click.echo(f"slicebw: {line}", err=True)
    tree, table = _kernel(netns, uplink, ledger or Ledger())
    rows = list(_rows(ledger or Ledger(), tree, table))
    if output == "table":
        click.echo(_table(rows, tree))
        return
    found = {"device": tree.device, "root": str(tree.root), "classes": [asdict(row) for row in rows]}
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        import yaml

        yaml.safe_dump(_plain(found), sys.stdout, sort_keys=False)


def _kernel(netns: str | None, uplink: str | None, ledger: Ledger) -> tuple[ObservedTree, NftTable]:
    """Read the tree of the named device, else of the ledger's, also if it was renamed, else of the default route's."""
    from slicebw.agent.clock import SystemClock
    from slicebw.kernel.htb import HtbShaper
    from slicebw.kernel.nft import NftClassifier

    options.enter(netns)
    shaper = HtbShaper()
    try:
        last = shaper.find(ledger.last_device(SystemClock()())) if uplink is None and ledger.device else None
        device = uplink or ledger.device or None
        return shaper.read(device if last is None else last.ifindex), NftClassifier().read()
    except KernelError as error:
        raise UsageError(f"{error} (--uplink names a device, --netns a namespace)") from error
    finally:
        shaper.close()


def _rows(ledger: Ledger, tree: ObservedTree, table: NftTable) -> Iterator[Row]:
    """Yield the host's and the default classes, every slice's classes, and classes that belong to no account."""
    addresses: dict[int, list[str]] = {}
    for address, slice_id in sorted(table.slice_id_by_address.items()):
        addresses.setdefault(slice_id, []).append(address)
    listed: set[int] = set()
    # "(root)" is the host's traffic: the output keeps this name for programs that read it.
    for slice_id, name in ((HOST_ID, "(root)"), (DEFAULT_ID, "(default)")):
        for traffic_class in TrafficClass:
            minor = leaf(traffic_class, slice_id)
            total = ledger.node_totals.get(minor)
            listed.add(minor)
            yield _row(name, traffic_class, minor, "own", tree, used_bytes=total.total_bytes if total else None)
    for account in sorted(ledger.slices.values(), key=lambda account: account.key):
        for traffic_class in TrafficClass:
            minor = leaf(traffic_class, account.slice_id)
            listed.add(minor)
            yield _account_row(account, traffic_class, minor, tree, tuple(addresses.get(account.slice_id, ())))
    for minor, observed in sorted(tree.classes.items()):
        # Inner classes have no leaf qdisc; they are part of every tree.
        if minor not in listed and observed.leaf_major:
            yield _row("(unknown)", None, minor, "orphan", tree)


def _account_row(
    account: SliceAccount, traffic_class: TrafficClass, minor: int, tree: ObservedTree, addresses: tuple[str, ...]
) -> Row:
    class_account = account.of(traffic_class)
    return _row(
        str(account.key),
        traffic_class,
        minor if account.slice_id else 0,  # a slice that is only remembered has no class: id 0 is the host's
        "live" if account.live else "gone",
        tree,
        used_bytes=class_account.used_bytes,
        budget_bytes=account.limits.of(traffic_class).budget_bytes,
        capped=class_account.capped_since_s is not None,
        period_end=time_text(account.period_end_s),
        addresses=addresses,
    )


def _row(
    name: str, traffic_class: TrafficClass | None, minor: int, state: str, tree: ObservedTree, **known: Any
) -> Row:
    observed = tree.classes.get(minor)
    fields: dict[str, Any] = {
        "used_bytes": None,
        "budget_bytes": None,
        "capped": None,
        "period_end": None,
        "addresses": (),
    }
    return Row(
        slice=name,
        traffic_class=str(traffic_class or "-"),
        class_id=classid(minor) if minor else "-",
        state=state,
        kernel_ceil_bps=observed.ceil_bps if observed else None,
        kernel_sent_bytes=observed.sent_bytes if observed else None,
        kernel_backlog_bytes=observed.backlog_bytes if observed else None,
        **(fields | known),
    )


def _table(rows: list[Row], tree: ObservedTree) -> str:
    """Return the rows as kubectl would print them, below a line about the device."""
    header = ("SLICE", "CLASS", "ID", "STATE", "USED", "BUDGET", "CAPPED", "PERIOD-END", "CEIL", "SENT", "ADDRESSES")
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    printed = ["   ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    whose = {
        RootQdisc.OURS: "slicebw's tree",
        RootQdisc.DEFAULT: f"the kernel's default ({tree.root_kind}): nothing is limited",
        RootQdisc.FOREIGN: f"another program's {tree.root_kind}: left alone",
    }[tree.root]
    return "\n".join([f"device {tree.device}: {whose}", *printed])


def _cells(row: Row) -> tuple[str, ...]:
    def cell(value: int | None, text: Any) -> str:
        return "-" if value is None else str(text(value))

    return (
        row.slice,
        row.traffic_class,
        row.class_id,
        row.state,
        cell(row.used_bytes, bytes_text),
        cell(row.budget_bytes, bytes_text),
        "-" if row.capped is None else str(row.capped).lower(),
        row.period_end or "-",
        "none" if row.kernel_ceil_bps == NO_CEILING_BPS else cell(row.kernel_ceil_bps, rate_text),
        cell(row.kernel_sent_bytes, bytes_text),
        ",".join(row.addresses) or "-",
    )


def _plain(value: Any) -> Any:
    """Return the value with lists for tuples, which YAML does not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
