"""Each command loads what it needs and no more: it starts sooner, and takes less memory on every node.

The agent, which needs a namespace to run in, is looked at in tests/kernel/test_imports.py.
"""

from pathlib import Path

import pytest

from tests.support import modules

API = ("kopf", "aiohttp", "slicebw.kube")
KERNEL = ("pyroute2", "slicebw.kernel")
SERVING = ("prometheus_client", "slicebw.cli.exposition", "slicebw.cli.probe_server")
FOLDER = ("watchfiles", "slicebw.folder")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["agent", "--help"], ["controller", "--help"]])
def test_help_loads_no_part_of_slicebw_that_works(tmp_path: Path, arguments: list[str]) -> None:
    loaded, output = modules.run(tmp_path, *arguments)
    assert "slicebw" in output
    assert modules.imported(loaded, *API, *KERNEL, *SERVING, *FOLDER, "slicebw.controller") == []


def test_a_command_does_not_load_the_other_commands(tmp_path: Path) -> None:
    loaded, _ = modules.run(tmp_path, "controller", "--help")
    assert "slicebw.cli.controller" in loaded
    assert modules.imported(loaded, "slicebw.cli.agent", "slicebw.cli.node", "slicebw.cli.rspec", "yaml") == []


def test_import_rspec_reads_and_writes_yaml_and_that_is_all(tmp_path: Path) -> None:
    (tmp_path / "record").write_text('{"slivers": []}')
    loaded, output = modules.run(tmp_path, "import-rspec", str(tmp_path / "record"))
    assert "slicebw.api.rspec" in loaded, output
    assert modules.imported(loaded, *API, *KERNEL, *SERVING, *FOLDER, "slicebw.agent") == []


def test_node_show_knows_the_ledger_and_the_kernel_but_no_api_server(tmp_path: Path) -> None:
    # With privileges it prints a table, without them it says so; it changes nothing either way.
    loaded, output = modules.run(tmp_path, "node", "show", "--state-dir", str(tmp_path), "--uplink", "lo")
    assert modules.imported(loaded, "slicebw.kernel", "msgspec") == ["slicebw.kernel", "msgspec"], output
    assert modules.imported(loaded, *API, *SERVING, *FOLDER, "slicebw.controller", "yaml") == []


def test_the_controller_knows_no_kernel_no_ledger_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(modules.AWAY)
    arguments = ("controller", "--kubeconfig", str(tmp_path / "kubeconfig"), "--liveness-port", "0")
    loaded = modules.run_until("controller started", tmp_path, *arguments)
    assert modules.imported(loaded, *API, *SERVING) == [*API, *SERVING]
    unneeded = ("slicebw.agent.reconciler", "slicebw.agent.checkpoint", "kubernetes")
    assert modules.imported(loaded, *KERNEL, *FOLDER, *unneeded) == []
