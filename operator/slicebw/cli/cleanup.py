"""``slicebw node cleanup``: takes slicebw off a node, by hand or as the pods that manifests/uninstall puts there."""

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import click

from slicebw.cli import options
from slicebw.cli.lock import is_held, node_lock
from slicebw.cli.services import serve_health, stop_signal
from slicebw.core.dataplane import RemoveRoot, RemoveTable
from slicebw.core.errors import KernelError, UsageError

log = logging.getLogger(__name__)


@click.command()
@options.netns
@click.option("--uplink", envvar="SLICEBW_UPLINK", help="Only this device. Default: all that bear a tree of slicebw's.")
@options.state_dir
@click.option(
    "--forget-usage",
    is_flag=True,
    envvar="SLICEBW_FORGET_USAGE",
    help="Remove the ledger too: what slices have used of their budgets is forgotten.",
)
@click.option(
    "--stay",
    is_flag=True,
    help="Wait until no agent runs; then clean up, say so on --liveness-port, and keep agents away until stopped.",
)
@options.liveness_port
@options.liveness_address
@options.log_level
def cleanup(
    netns: str | None,
    uplink: str | None,
    state_dir: Path,
    forget_usage: bool,
    stay: bool,
    liveness_port: int | None,
    liveness_address: str,
) -> None:
    """Remove slicebw's trees and its table; the kernel puts its default qdiscs back. Stop the agent first.

    The ledger stays, unless told otherwise: an agent that comes back goes on with it.
    """
    forgotten = state_dir if forget_usage else None
    if not stay:
        if is_held(state_dir):
            raise UsageError(
                f"an agent is at work (it holds {state_dir / 'lock'}) and would make it all again: stop it first, or "
                "set mode: Disabled in a NodeBandwidth"
            )
        _clean(netns, uplink, forgotten)
        return
    stop = stop_signal()
    with ExitStack() as stack:
        stack.enter_context(node_lock(state_dir, stop))
        if stop.is_set():
            return
        # In a thread of its own, for only that goes to another namespace: probes are answered in this one.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_clean, netns, uplink, forgotten).result()
        # Not before: that somebody answers means that the node is clean.
        serve_health(stack, liveness_address, liveness_port, {"/healthz": _well, "/readyz": _well}, lambda: ())
        log.info("the node is clean; staying, so that no agent comes back")
        stop.wait()


def _well() -> None:
    return None


def _clean(netns: str | None, uplink: str | None, forgotten: Path | None) -> None:
    """Remove trees, table, and what is kept in the folder ``forgotten``. Raises UplinkError, KernelError, SaveError."""
    options.enter(netns)
    _remove_trees(uplink)
    _remove_table()
    if forgotten is not None:
        from slicebw.agent.checkpoint import FileStore

        FileStore(forgotten).forget()
        click.echo(f"ledger in {forgotten} removed")


def _remove_trees(uplink: str | None) -> None:
    from slicebw.core.dataplane import RootQdisc
    from slicebw.kernel.htb import HtbShaper

    shaper = HtbShaper()
    try:
        if uplink is not None:
            tree = shaper.read(uplink)
            if tree.root is not RootQdisc.OURS:
                click.echo(f"{tree.device}: no tree of slicebw's (root qdisc: {tree.root_kind})")
                return
        devices = [uplink] if uplink is not None else shaper.shaped()
        for device in devices:
            failed = shaper.apply(device, (RemoveRoot(),), 0)
            if failed:
                raise KernelError(f"the tree of {device} could not be removed: {failed[0].reason}")
            click.echo(f"{device}: tree removed")
        if not devices:
            click.echo("no tree of slicebw's on any device")
    finally:
        shaper.close()


def _remove_table() -> None:
    from slicebw.kernel.nft import NftClassifier

    classifier = NftClassifier()
    if classifier.read().present:
        classifier.apply(RemoveTable())
        click.echo("table inet slicebw removed")
    else:
        click.echo("no table inet slicebw")
