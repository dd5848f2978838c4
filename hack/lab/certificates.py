"""The keys, certificates and tokens of a control plane, and of the nodes that join it. openssl makes them."""

import base64
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hack.lab.console import LabError
from hack.lab.debian import need_packages
from hack.lab.files import empty_folder, remove, write

USERS: Final = {
    "admin": "admin,admin,system:masters",
    "system:kube-controller-manager": "system:kube-controller-manager,controller-manager",
    "system:kube-scheduler": "system:kube-scheduler,scheduler",
}
"""Who has a token, by user name: user, uid and groups as in a token file of the API server."""

# A configuration of our own: the one of the system may add extensions, and twice is an error.
_CONFIGURATION: Final = """\
[req]
distinguished_name = name
prompt = no
[name]
commonName = slicebw-control-plane
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = CA:FALSE
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = {names}
"""
_NAMES: Final = (
    "IP:10.0.0.1",
    "DNS:localhost",
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
)
_DAYS: Final = ("-days", "3650")


class _OpenSsl:
    """openssl in a folder, with a configuration file."""

    def __init__(self, folder: Path, configuration: Path) -> None:
        self._folder = folder
        self._configuration = str(configuration)

    def run(self, *arguments: str) -> None:
        """Run it. Raises LabError with its complaint."""
        done = subprocess.run(["openssl", *arguments], cwd=self._folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"openssl {' '.join(arguments)}: {done.stderr.strip()}")

    def key(self, name: str) -> None:
        """Make NAME.key."""
        self.run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")

    def authority(self, name: str) -> None:
        """Make an authority: NAME.key and NAME.crt."""
        self.key(name)
        ca = ("-extensions", "ca", "-key", f"{name}.key", "-out", f"{name}.crt")
        self.run("req", "-new", "-x509", "-config", self._configuration, *ca, *_DAYS)

    def certificate(self, name: str, subject: str, authority: Path, serial: int) -> None:
        """Make NAME.key and NAME.crt, signed by an authority (its path without ending)."""
        self.key(name)
        request = ("-key", f"{name}.key", "-subj", subject, "-out", f"{name}.csr")
        self.run("req", "-new", "-config", self._configuration, *request)
        signer = ("-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-set_serial", str(serial), *_DAYS)
        extensions = ("-extfile", self._configuration, "-extensions", "server")
        self.run("x509", "-req", "-in", f"{name}.csr", *signer, *extensions, "-out", f"{name}.crt")


def make_credentials(folder: Path, address: str | None) -> None:
    """Make a control plane's ``pki`` and ``tokens.csv`` in its folder, where they are not there yet.

    Args:
        folder: the control plane's.
        address: at which nodes reach it, beside 127.0.0.1.
    """
    pki, new = folder / "pki", folder / "pki.new"
    if pki.is_dir():
        return
    if shutil.which("openssl") is None:
        need_packages("openssl")
    empty_folder(new)
    addresses = ("IP:127.0.0.1", *((f"IP:{address}",) if address else ()), *_NAMES)
    (new / "openssl.cnf").write_text(_CONFIGURATION.format(names=", ".join(addresses)))
    openssl = _OpenSsl(new, new / "openssl.cnf")
    openssl.run("genrsa", "-out", "service-accounts.key", "2048")
    # The one certificate serves for both servers, and for the API server as etcd's client. That etcd asks for it
    # matters: else a port race could join one API server to another one's etcd.
    openssl.authority("ca")
    openssl.certificate("server", "/CN=127.0.0.1", new / "ca", serial=2)
    # Who joins is known by a certificate of another authority: etcd would let in all clients of the first.
    openssl.authority("clients")
    openssl.certificate("kubelet-client", "/O=system:masters/CN=kube-apiserver", new / "clients", serial=3)
    tokens = "".join(f"{secrets.token_hex(24)},{user}\n" for user in USERS.values())
    (folder / "tokens.csv").write_text(tokens)
    new.replace(pki)


def token(folder: Path, user: str) -> str:
    """A user's token in a control plane's ``tokens.csv``."""
    rows = (line.split(",") for line in (folder / "tokens.csv").read_text().splitlines())
    return next(row[0] for row in rows if row[1] == user)


def make_node_certificate(folder: Path, pki: Path, name: str, serial: int) -> Mapping[str, str]:
    """A node's client certificate and key, as a kubeconfig embeds them; no file of it stays.

    A node is whom its certificate names: system:node:NAME, which the Node authorizer lets see its own pods.

    Args:
        folder: the node's.
        pki: the control plane's, with the authority ``clients``.
        name: of the node.
        serial: of the certificate, different for each.
    """
    openssl = _OpenSsl(folder, pki / "openssl.cnf")
    try:
        openssl.certificate("client", f"/O=system:nodes/CN=system:node:{name}", pki / "clients", serial)
        return {
            "client-certificate-data": base64.b64encode((folder / "client.crt").read_bytes()).decode(),
            "client-key-data": base64.b64encode((folder / "client.key").read_bytes()).decode(),
        }
    finally:
        remove(*(folder / f"client.{ending}" for ending in ("crt", "csr", "key")))


def write_kubeconfig(file: Path, server: str, authority: Path, user: str, credentials: Mapping[str, str]) -> None:
    """Write a kubeconfig.

    Args:
        file: where.
        server: the API server's address, with https://.
        authority: the certificate that has signed the server's.
        user: what it is called in the file.
        credentials: the fields of its user.
    """
    fields = "".join(f"    {name}: {value}\n" for name, value in credentials.items())
    write(
        file,
        f"""apiVersion: v1
kind: Config
clusters:
- name: slicebw-control-plane
  cluster:
    server: {server}
    certificate-authority-data: {base64.b64encode(authority.read_bytes()).decode()}
users:
- name: {user}
  user:
{fields}contexts:
- name: slicebw-control-plane
  context: {{cluster: slicebw-control-plane, user: "{user}"}}
current-context: slicebw-control-plane
""",
    )
