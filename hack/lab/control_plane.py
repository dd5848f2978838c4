"""Runs a real Kubernetes API server and its etcd on this machine, for tests and for trying things out.

Usage:
  hack/control-plane start  [--dir DIR]   start what is not running, wait until it is ready, print
                                          the path of the kubeconfig
                    --address ADDRESS     ... as a control plane that nodes can join: listening on
                                          ADDRESS, one of this machine's, instead of 127.0.0.1
  hack/control-plane stop   [--dir DIR]   stop it and forget the cluster; only the logs stay
                    --keep-data           ... but remember the cluster: start brings it back, on
                                          the same ports, with all its objects
                    --only apiserver      ... stop one component (apiserver, etcd; with --address
                                          also controller-manager, scheduler), as in an outage;
                                          start brings it back
  hack/control-plane status [--dir DIR]   say what runs; exit code 0: all of it, 3: not all
  hack/control-plane env    [--dir DIR]   print shell code that points KUBECONFIG, PATH and
                                          KUBEBUILDER_ASSETS to it: eval "$(hack/control-plane env)"

DIR holds everything there is to one control plane (default: $SLICEBW_CACHE/control-plane). With
several DIRs several run side by side: each has ports, certificates and data of its own. Nothing
listens on an address that was not asked for.

The binaries are those in $KUBEBUILDER_ASSETS (etcd, kube-apiserver, kubectl), if that is set.
Else, on Debian 12, hack/kubernetes builds them once, which takes some minutes, and etcd is taken
from the package etcd-server without installing it.

Without --address there is no controller manager: nobody collects garbage, finishes the deletion of
a namespace, or makes the default service accounts (pods can be created without them here). With it
there are controller manager and scheduler, and kubelets join with client certificates that
DIR/pki/clients.key signs; for a whole cluster see hack/cluster. --address is remembered until stop.
"""

import json
import os
import random
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from hack.lab.certificates import make_credentials, token, write_kubeconfig
from hack.lab.console import LabError, Parser, UsageError, log, step, wait_until
from hack.lab.debian import unpack_packages
from hack.lab.files import CACHE, Lock, remove, replace_link, write
from hack.lab.kubernetes import build
from hack.lab.processes import Service

_ATTEMPTS: Final = 5
_PORTS: Final = (20000, 29999)
"""Below the kernel's range for outgoing connections and Kubernetes' NodePorts."""
_LOCALHOST: Final = "127.0.0.1"
_JOINABLE: Final = ("controller-manager", "scheduler")
"""Runs only where nodes can join."""


_ALONE: Final = ("--leader-elect=false", "--port=0", "--secure-port=0")
"""For what has no twin, and nobody asks anything."""


class _PortTakenError(Exception):
    """Somebody else took a port between our look at it and our use of it."""


def main(arguments: Sequence[str]) -> int:
    """Run a command."""
    options = _parser().parse_args(arguments)
    if not options.dir:
        raise UsageError("--dir needs a folder")
    plane = ControlPlane(
        Path(os.path.realpath(options.dir)),
        address=getattr(options, "address", None),
        assets=os.environ.get("KUBEBUILDER_ASSETS"),
    )
    match options.command:
        case "start":
            print(plane.start())
        case "stop":
            plane.stop(keep_data=options.keep_data, only=options.only)
        case "status":
            return plane.status()
        case "env":
            print(plane.shell_code())
    return 0


def _parser() -> Parser:
    parser = Parser(prog="hack/control-plane", description=__doc__)
    commands = parser.add_commands("start", "stop", "status", "env")
    for command in commands.values():
        command.add_argument("--dir", default=str(CACHE / "control-plane"))
    commands["start"].add_argument("--address")
    commands["stop"].add_argument("--keep-data", action="store_true")
    commands["stop"].add_argument("--only")
    return parser


class ControlPlane:
    """The control plane in a folder, running or not.

    Args:
        folder: holds everything there is to it.
        address: of this machine, where nodes are to join; None: as the folder says.
        assets: a folder with the binaries; None: those it was started with before, or those of Debian.
    """

    def __init__(self, folder: Path, address: str | None = None, assets: str | None = None) -> None:
        self.folder = folder
        self._assets_wanted = assets
        self._address = self._recalled_address(address)
        self._launched: list[Service] = []

    def _recalled_address(self, wanted: str | None) -> str | None:
        """A control plane keeps the address it was made for: its certificate and its clients know it by that."""
        made, file = self.pki.is_dir(), self.folder / "address"
        known = file.read_text().strip() if made and file.exists() else ""
        if wanted and wanted != known:
            if made:
                raise LabError(
                    f"the control plane in {self.folder} listens on {known or _LOCALHOST}, not on {wanted};"
                    f" forget it first: hack/control-plane stop --dir {self.folder}"
                )
            if not _is_local(wanted):
                raise LabError(f"--address {wanted} is not an address of this machine; see: ip address")
        return wanted or known or None

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.folder / "kubeconfig"

    @property
    def pki(self) -> Path:
        """Where keys and certificates are."""
        return self.folder / "pki"

    @property
    def assets(self) -> Path:
        """The folder with etcd, kubectl and the components of Kubernetes; a link."""
        return self.folder / "assets"

    @property
    def components(self) -> tuple[str, ...]:
        """In the order in which they start."""
        return ("etcd", "apiserver", *(_JOINABLE if self._address else ()))

    # --- commands ---

    def start(self) -> Path:
        """Start what does not run, and wait until all is ready; the kubeconfig.

        A start that fails or is interrupted ends what it has started.
        """
        with self._lock() as lock:
            if self._all_run() and self.is_ready():
                log(f"already running: {self.url('apiserver')}")
                return self.kubeconfig
            assets = self._find_assets()
            os.umask(0o077)  # from here on all is for the owner only: keys, tokens, logs
            replace_link(assets, self.assets)
            (self.folder / "address").write_text(f"{self._address or ''}\n")
            make_credentials(self.folder, self._address)
            try:
                self._start_components(lock)
            except BaseException:
                self._stop_launched()
                raise
        step(f"ready: Kubernetes {self._version()} at {self.url('apiserver')}")
        return self.kubeconfig

    def stop(self, *, keep_data: bool = False, only: str | None = None) -> None:
        """Stop all of it or one component, and unless data are to be kept, forget the cluster."""
        if only is not None and only not in self.components:
            raise UsageError(f"--only is one of: {' '.join(self.components)}")
        if not self.folder.is_dir():
            log(f"nothing in {self.folder}")
            return
        with self._lock():
            # In this order, because those before would only log errors without those behind.
            for name in (only,) if only else (*_JOINABLE, "apiserver", "etcd"):
                if name in self.components:
                    # All but etcd keep nothing that they could lose, and the API server would wait up to a minute for
                    # clients that watch; an outage that is to be tested should begin when it is asked for.
                    self.service(name).stop(grace_s=10 if name == "etcd" else 2)
            if not keep_data and only is None:
                self._forget()

    def _forget(self) -> None:
        # By name, never the folder itself: it is the user's, and may hold more than ours.
        names = ("data", "pki", "pki.new", "assets", "kubeconfig", "address", "tokens.csv", "ports", "settled")
        remove(*(self.folder / name for name in names), *self.folder.glob("*.kubeconfig"))

    def status(self) -> int:
        """Print what runs; 0: all of it and ready, 3: not all."""
        code = 0
        for name in self.components:
            pid = self.service(name).pid()
            if pid is None:
                print(f"{name:18} stopped")
                code = 3
            else:
                print(f"{name:18} running  pid {pid:<7} {self.url(name)}".rstrip())
        if code == 0 and not self.is_ready():
            print(f"{'apiserver':18} not ready, see {self.service('apiserver').log_file}")
            code = 3
        elif code == 0:
            print(f"{'version':18} {self._version()}\n{'kubeconfig':18} {self.kubeconfig}")
        return code

    def shell_code(self) -> str:
        """Exports for a shell to evaluate."""
        if not self.kubeconfig.exists():
            raise LabError(
                f"no control plane in {self.folder}; make one with: hack/control-plane start --dir {self.folder}"
            )
        assets = shlex.quote(str(self.assets.readlink()))
        kubeconfig = shlex.quote(str(self.kubeconfig))
        return f'export KUBECONFIG={kubeconfig}\nexport KUBEBUILDER_ASSETS={assets}\nexport PATH={assets}:"$PATH"'

    # --- what others ask ---

    def service(self, name: str) -> Service:
        """A component's process."""
        marks = {
            "etcd": f"--data-dir={self.folder}/data",
            "apiserver": f"--token-auth-file={self.folder}/tokens.csv",
        }
        return Service(name, self.folder, marks.get(name, f"--kubeconfig={self.folder}/{name}.kubeconfig"))

    def url(self, name: str) -> str:
        """Where a component listens; empty for those that nobody asks anything, which do not listen."""
        port = self._ports().get(name)
        return f"https://{self._host(name)}:{port}" if port else ""

    def kubectl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run kubectl as administrator, for five seconds at most a request."""
        command = [f"{self.assets}/kubectl", f"--kubeconfig={self.kubeconfig}", "--request-timeout=5s", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def is_ready(self) -> bool:
        """Whether the API server is, with the namespaces every cluster has: it makes them after it says readyz."""
        paths = ("/readyz", "/api/v1/namespaces/default", "/api/v1/namespaces/kube-system")
        return all(self.kubectl("get", "--raw", path).returncode == 0 for path in paths)

    def _version(self) -> str:
        return str(json.loads(self.kubectl("get", "--raw", "/version").stdout)["gitVersion"])

    def _lock(self) -> Lock:
        return Lock(self.folder / "lock", f"the control plane in {self.folder}")

    # --- binaries ---

    def _find_assets(self) -> Path:
        if self._assets_wanted:
            missing = self._missing_in(Path(self._assets_wanted))
            if missing:
                raise LabError(
                    f"KUBEBUILDER_ASSETS is {self._assets_wanted}, which has no executable {' '.join(missing)};"
                    " add them, or unset it to take those of Debian"
                )
            return Path(self._assets_wanted).resolve()
        if not self._missing_in(self.assets):
            return self.assets.readlink()  # a cluster that is started again gets the version it had
        return self._debian_assets()

    def _binaries(self) -> tuple[str, ...]:
        return ("kubectl", *(f"kube-{name}" for name in self.components if name != "etcd"))

    def _missing_in(self, folder: Path) -> list[str]:
        return [name for name in ("etcd", *self._binaries()) if not os.access(folder / name, os.X_OK)]

    def _debian_assets(self) -> Path:
        assets = CACHE / "assets"
        etcd = unpack_packages("etcd", "etcd-server") / "usr/bin/etcd"
        built = build(*self._binaries())
        assets.mkdir(parents=True, exist_ok=True)
        replace_link(etcd, assets / "etcd")
        for name in self._binaries():
            replace_link(built / name, assets / name)
        return assets

    # --- ports ---

    def _host(self, name: str) -> str:
        return self._address or _LOCALHOST if name == "apiserver" else _LOCALHOST

    def _ports(self) -> dict[str, int]:
        with suppress(FileNotFoundError):
            lines = (self.folder / "ports").read_text().splitlines()
            return {name: int(port) for name, port in (line.split() for line in lines)}
        return {}

    def _choose_ports(self) -> None:
        """Choose free ports. Those that were used once stay: clients know them."""
        if self._ports():
            return
        chosen: dict[str, int] = {}
        while len(chosen) < 2:
            port = random.randint(*_PORTS)
            free = not any(_listens(host, port) for host in {_LOCALHOST, self._host("apiserver")})
            if free and port not in chosen.values():
                chosen["etcd" if not chosen else "apiserver"] = port
        write(self.folder / "ports", "".join(f"{name} {port}\n" for name, port in chosen.items()))

    # --- processes ---

    def _start_components(self, lock: Lock) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            self._choose_ports()
            self._write_kubeconfigs()
            try:
                self._bring_up(lock)
            except _PortTakenError as error:
                log(str(error))
                self._stop_launched()
                self._make_way(last=attempt == _ATTEMPTS)
            else:
                break
        self._launched.clear()
        (self.folder / "settled").touch()

    def _make_way(self, *, last: bool) -> None:
        """After a port was taken: choose others, or wait for it where clients know it."""
        if not (self.folder / "settled").exists():
            if last:
                raise LabError(f"found no free ports; the logs are {self.folder}/*.log; try again")
            remove(self.folder / "ports")
            return
        if last:
            raise LabError(
                "clients know this control plane by its ports, so it takes no others; free the port, or forget the"
                f" cluster: hack/control-plane stop --dir {self.folder}"
            )
        time.sleep(3)

    def _write_kubeconfigs(self) -> None:
        users = {"kubeconfig": "admin"}
        if self._address:
            users |= {f"{name}.kubeconfig": f"system:kube-{name}" for name in _JOINABLE}
        for file, user in users.items():
            credentials = {"token": token(self.folder, user)}
            write_kubeconfig(self.folder / file, self.url("apiserver"), self.pki / "ca.crt", user, credentials)

    def _bring_up(self, lock: Lock) -> None:
        """Start what does not run and wait until all of it is ready. Raises _PortTakenError if a port was."""
        if not (self.folder / "settled").exists() and not any(self.service(name).runs() for name in self.components):
            # No start has come to its end yet. An etcd that is ended while it makes its data does not start on them.
            remove(self.folder / "data")
        up: list[Service] = []
        for name in self.components:
            service = self.service(name)
            if not service.runs():
                step(f"starting {name} (log: {service.log_file})")
                self._launched.append(service)
                service.launch(self._command(name), lock)
            if name == "etcd" and not wait_until(self._etcd_listens_or_is_dead, "etcd to listen", 30):
                service.give_up(f"does not listen on {self.url('etcd')}")
            # Before the next ones start: the controller manager gives up where it waits for more than ten seconds.
            if name == "apiserver" and not wait_until(self._ready_or_dead, "the API server to be ready", 90):
                service.give_up("did not become ready in time")
            up.append(service)
            # All of them: etcd may have found its port taken only after somebody else had answered there.
            for one in up:
                self._require_alive(one)

    def _require_alive(self, service: Service) -> None:
        if service.runs():
            return
        if "address already in use" in service.log_file.read_text(errors="replace"):
            port = self._ports()[service.name]
            raise _PortTakenError(f"port {port}, meant for {service.name}, is in use by another program")
        service.give_up("ended")

    def _etcd_listens_or_is_dead(self) -> bool:
        return _listens(_LOCALHOST, self._ports()["etcd"]) or not self.service("etcd").runs()

    def _ready_or_dead(self) -> bool:
        return not self.service("etcd").runs() or not self.service("apiserver").runs() or self.is_ready()

    def _all_run(self) -> bool:
        return all(self.service(name).runs() for name in self.components)

    def _stop_launched(self) -> None:
        for service in self._launched:
            if service.runs():
                service.stop()
        self._launched.clear()

    def _command(self, name: str) -> list[str]:
        binary = self.assets / (name if name == "etcd" else f"kube-{name}")
        return [str(binary), self.service(name).mark, *self._options(name)]

    def _options(self, name: str) -> Sequence[str]:
        match name:
            case "etcd":
                return self._etcd_options()
            case "apiserver":
                return self._apiserver_options()
            case "controller-manager":
                return self._controller_manager_options()
        return _ALONE

    def _etcd_options(self) -> list[str]:
        return [
            f"--listen-client-urls={self.url('etcd')}",
            f"--advertise-client-urls={self.url('etcd')}",
            f"--listen-peer-urls=http://{_LOCALHOST}:0",
            "--client-cert-auth",
            f"--trusted-ca-file={self.pki}/ca.crt",
            f"--cert-file={self.pki}/server.crt",
            f"--key-file={self.pki}/server.key",
            "--unsafe-no-fsync",
        ]

    def _apiserver_options(self) -> list[str]:
        # Without a controller manager ServiceAccount admission is off, because it refuses pods whose service account
        # does not exist. And without an address there is no endpoint reconciler: it refuses 127.0.0.1.
        alone = ["--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount"]
        joinable = [
            "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={self.pki}/clients.crt",
            f"--kubelet-client-certificate={self.pki}/kubelet-client.crt",
            f"--kubelet-client-key={self.pki}/kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",  # nodes' names are in no DNS
        ]
        host, key = self._host("apiserver"), f"{self.pki}/service-accounts.key"
        return [
            f"--bind-address={host}",
            f"--advertise-address={host}",
            f"--secure-port={self._ports()['apiserver']}",
            f"--tls-cert-file={self.pki}/server.crt",
            f"--tls-private-key-file={self.pki}/server.key",
            f"--etcd-servers={self.url('etcd')}",
            f"--etcd-cafile={self.pki}/ca.crt",
            f"--etcd-certfile={self.pki}/server.crt",
            f"--etcd-keyfile={self.pki}/server.key",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--allow-privileged=true",
            *(joinable if self._address else alone),
        ]

    def _controller_manager_options(self) -> list[str]:
        return [
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self.pki}/service-accounts.key",
            f"--root-ca-file={self.pki}/ca.crt",
            *_ALONE,
        ]


def _is_local(address: str) -> bool:
    shown = subprocess.run(["ip", "-o", "address", "show", "to", address], capture_output=True, text=True, check=False)
    return bool(shown.stdout.strip())


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0
