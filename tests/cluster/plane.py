"""A real control plane on loopback: etcd, API server, controller manager, scheduler. No kubelet: see `nodes.py`.

Found through KUBEBUILDER_ASSETS (envtest's own variable), else in the cache that `tests/cluster/prepare` fills.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

from onecopy.engine.lifetime import die_with_parent
from onecopy.targets.kubernetes.cluster import Cluster

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")


@functools.cache
def connect(kubeconfig: Path) -> Cluster:
    """One connection a session, closed with the control plane."""
    return Cluster(kubeconfig)


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onecopy/test-cluster"


def missing() -> str | None:
    """Why there can be no control plane here, or None."""
    folder = assets()
    absent = [name for name in PROGRAMS if not (folder / name).is_file()]
    if absent:
        return f"no {absent[0]}: run tests/cluster/prepare, or set KUBEBUILDER_ASSETS"
    for name in ("etcd", "openssl"):
        if not (folder / name).is_file() and shutil.which(name) is None:
            return f"no {name}: run tests/cluster/prepare"
    return None


def assets() -> Path:
    named = os.environ.get("KUBEBUILDER_ASSETS")
    return Path(named) if named else cache() / "kube-1.20.2"


def free_ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    for one in taken:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


# The program, and a watcher that stops it when the pipe from the tests closes, however they end
_SUPERVISE = """
exec 3<&0
"$@" </dev/null 3<&- & program=$!
( read -r _ <&3; kill $program 2>/dev/null; sleep 5; kill -9 $program 2>/dev/null ) & watcher=$!
trap 'kill $program' TERM
wait $program; wait $program 2>/dev/null; code=$?
kill $watcher 2>/dev/null
exit $code
"""


class ControlPlane:
    """Context manager. `kubeconfig` is a cluster admin's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> ControlPlane:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        etcd, peer, api, manager, scheduler = free_ports(5)
        self._certificates()
        token = secrets.token_hex(16)
        self._write("tokens.csv", f'{token},admin,1,"system:masters"\n')
        etcd_url, peer_url = f"http://127.0.0.1:{etcd}", f"http://127.0.0.1:{peer}"
        self._run("etcd", "--data-dir", "etcd", "--listen-client-urls", etcd_url, "--advertise-client-urls", etcd_url,
                  "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url,
                  "--initial-cluster", f"default={peer_url}", "--unsafe-no-fsync")  # fmt: skip
        self._run("kube-apiserver", "--etcd-servers", etcd_url, "--bind-address", "127.0.0.1", "--secure-port", str(api),
                  "--advertise-address", "127.0.0.1", "--tls-cert-file", "tls.crt", "--tls-private-key-file", "tls.key",
                  "--client-ca-file", "ca.crt", "--token-auth-file", "tokens.csv", "--authorization-mode", "RBAC",
                  "--service-account-key-file", "sa.pub", "--service-account-signing-key-file", "sa.key",
                  "--service-account-issuer", "https://kubernetes.default.svc",
                  "--service-cluster-ip-range", "10.100.0.0/16", "--allow-privileged")  # fmt: skip
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": f"https://localhost:{api}",
                "certificate-authority-data": base64.b64encode((self.folder / "ca.crt").read_bytes()).decode()}}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }  # fmt: skip
        self._write("kubeconfig", json.dumps(config))
        self._ready(f"https://localhost:{api}/readyz", token)
        # Nobody beats the heart of the nodes here: they must stay as they are set
        self._run("kube-controller-manager", "--kubeconfig", "kubeconfig", "--service-account-private-key-file", "sa.key",
                  "--root-ca-file", "ca.crt", "--use-service-account-credentials", "--leader-elect=false",
                  "--node-monitor-grace-period=24h", "--pvclaimbinder-sync-period=1s", "--bind-address", "127.0.0.1",
                  "--secure-port", str(manager), *self._no_plain_port("kube-controller-manager"))  # fmt: skip
        self._run("kube-scheduler", "--kubeconfig", "kubeconfig", "--leader-elect=false", "--bind-address", "127.0.0.1",
                  "--secure-port", str(scheduler), *self._no_plain_port("kube-scheduler"))  # fmt: skip

    def _no_plain_port(self, program: str) -> list[str]:
        """Old ones listen without TLS on a fixed port beside the secure one, unless they are told not to."""
        text = subprocess.run([assets() / program, "--help"], capture_output=True, text=True, check=False).stdout
        return ["--port=0"] if "--port int " in text else []

    def _certificates(self) -> None:
        def openssl(*args: str) -> None:
            subprocess.run(["openssl", *args], cwd=self.folder, check=True, capture_output=True)

        openssl("genrsa", "-out", "sa.key", "2048")
        openssl("rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-days", "30",
                "-subj", "/CN=test-ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
        openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=localhost"
        )
        self._write("ext", "subjectAltName=DNS:localhost,DNS:kubernetes,IP:127.0.0.1,IP:10.100.0.1\n"
                    "authorityKeyIdentifier=keyid\n")  # fmt: skip
        openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", "tls.crt", "-days", "30", "-extfile", "ext")  # fmt: skip

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def _run(self, program: str, *args: str) -> None:
        found = assets() / program
        binary = str(found) if found.is_file() else shutil.which(program) or program
        with (self.folder / f"{program}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [binary, *args],
                    cwd=self.folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=functools.partial(
                        die_with_parent, os.getpid()
                    ),  # a killed test run leaves no control plane
                )
            )

    def _ready(self, url: str, token: str) -> None:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        end = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, context=context, timeout=2):
                    return
            except OSError:
                if time.monotonic() > end or any(process.poll() is not None for process in self._processes):
                    logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
                    raise RuntimeError(f"no API server at {url}\n{logs}") from None
                time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
