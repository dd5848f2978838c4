import subprocess
import sys
from pathlib import Path

OPERATOR = Path(__file__).parents[3] / "operator"

KUBECONFIG = """
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {}}]
"""

PROGRAM = """
import sys
from pathlib import Path
from slicebw.cli.agent import _edges
_edges("node", None, Path(sys.argv[1]), lambda: None)
assert "kopf" in sys.modules
print([name for name in ("kubernetes", "pykube") if sys.modules.get(name) is not None])
"""


def test_client_libraries_that_happen_to_be_installed_are_not_imported(tmp_path: Path) -> None:
    """As the agent starts: kopf would import them by itself."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    command = [sys.executable, "-c", PROGRAM, str(kubeconfig)]
    done = subprocess.run(command, cwd=OPERATOR, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
