"""``slicebw node cleanup``: removes slicebw from a node, by hand or in the pods of manifests/uninstall."""

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
@click.option(
    "--uplink", envvar="SLICEBW_UPLINK", help="Clean only this device. Default: every device with a slicebw tree."
)
@options.state_dir
@click.option(
    "--forget-usage",
    is_flag=True,
    envvar="SLICEBW_FORGET_USAGE",
    help="Remove the ledger too. The slices' usage of their budgets is lost.",
)
@click.option(
    "--stay",
    is_flag=True,
    help="Wait until no agent runs on the node, clean up, then answer on --liveness-port and keep agents from starting "
    "until stopped.",
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
    """Remove slicebw's trees and table from this node. Stop the agent first.

    The kernel then uses its default qdiscs again. The ledger stays, so that an agent that is installed again continues
    with it; --forget-usage removes it too.
    """
    forgotten = state_dir if forget_usage else None
    if not stay:
        if is_held(state_dir):
            raise UsageError(
                f"an agent is running (it holds {state_dir / 'lock'}) and would create everything again: stop it "
                "first, or set mode: Disabled in a NodeBandwidth"
            )
        _clean(netns, uplink, forgotten)
        return
    stop = stop_signal()
    with ExitStack() as stack:
        stack.enter_context(node_lock(state_dir, stop))
        if stop.is_set():  # the lock may not be held
            return
        # In a thread of its own, because only that thread enters the namespace: probes are answered in this one.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_clean, netns, uplink, forgotten).result()
        # Only now: an answer on the port means that the node is clean.
        serve_health(stack, liveness_address, liveness_port, {"/healthz": _well, "/readyz": _well}, lambda: ())
        log.info("node is clean; holding the lock, so that no agent starts")
        stop.wait()


def _well() -> None:
    return None


def _clean(netns: str | None, uplink: str | None, forgotten: Path | None) -> None:
    """Remove trees, table, and the files in the folder ``forgotten``, if any. Raises KernelError, SaveError."""
    options.enter(netns)
    # The trees first: under a tree without the table all traffic would share the default class.
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
        devices = [uplink] if uplink is not None else shaper.shaped_devices()
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
