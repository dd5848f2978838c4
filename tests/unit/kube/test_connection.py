"""From where address and credentials of the API server are read, and the errors if there are none."""
# ruff: noqa: S106 - the tokens in this file open nothing

from pathlib import Path

import kopf
import pytest
import yaml

from slicebw.core.errors import UsageError
from slicebw.kube import connection


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No kubeconfig, no pod, and a home without one."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(connection, "_SERVICE_ACCOUNT", tmp_path / "no-pod")


def kubeconfig(path: Path, **user: object) -> Path:
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://192.0.2.1:6443/"}}],
        "users": [{"name": "u", "user": user}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document))
    return path


def service_account(monkeypatch: pytest.MonkeyPatch, folder: Path, token: str) -> None:
    """A pod's service account; kopf reads it from a fixed place, so here only its outcome stands in."""
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(token)
    monkeypatch.setattr(connection, "_SERVICE_ACCOUNT", folder)
    info = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token=token)
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: info)


def test_a_kubeconfig_that_is_named_goes_before_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "environment", token="other")))
    made = connection.load(str(kubeconfig(tmp_path / "named", token="secret")))
    assert made.server == "https://192.0.2.1:6443"
    assert made.headers() == {"Authorization": "Bearer secret"}
    assert connection.load().headers() == {"Authorization": "Bearer other"}, "and leaves no trace"


def test_in_a_pod_the_environment_still_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service_account(monkeypatch, tmp_path / "pod", "mounted")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "environment", token="other")))
    assert connection.load().headers() == {"Authorization": "Bearer other"}


def test_in_a_pod_the_token_is_read_for_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service_account(monkeypatch, tmp_path / "pod", "first")
    made = connection.load()
    assert made.headers() == {"Authorization": "Bearer first"}
    (tmp_path / "pod" / "token").write_text("rotated\n")
    assert made.headers() == {"Authorization": "Bearer rotated"}


@pytest.mark.parametrize(
    ("host", "server"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_in_a_pod_the_api_server_is_found_without_dns(
    host: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service_account(monkeypatch, tmp_path / "pod", "mounted")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert connection.load().server == server


def test_outside_a_pod_the_home_folders_kubeconfig_is_the_last_resort(tmp_path: Path) -> None:
    kubeconfig(tmp_path / "home" / ".kube" / "config", token="at home")
    assert connection.load().headers() == {"Authorization": "Bearer at home"}


def test_without_any_credentials_the_error_names_the_three_ways_to_give_them() -> None:
    with pytest.raises(UsageError, match="give --kubeconfig, set KUBECONFIG, or run in a pod"):
        connection.load()


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"kubeconfig .*nowhere cannot be used: .*No such file"):
        connection.load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "flow"),
        ("[]", ""),
        ("current-context: missing", "there is no 'missing'"),
        ("contexts: []", "Current context is not set"),
    ],
)
def test_an_invalid_kubeconfig_is_named_with_what_is_wrong(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"kubeconfig {path} cannot be used: .*{problem}"):
        connection.load(str(path))


def test_an_invalid_certificate_is_an_error_at_the_start(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "kubeconfig", **{"client-certificate": "/nowhere/a", "client-key": "/nowhere/b"})
    with pytest.raises(UsageError, match="bad certificate or key"):
        connection.load(str(path))
