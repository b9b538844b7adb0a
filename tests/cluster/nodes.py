"""Nodes without a kubelet: Node objects that the real scheduler places pods on, and a hand that plays the kubelet.

The hand honours what matters here: a pod starts only when its claims are bound and, for a `local` volume, when the
folder is there; a pod that is deleted goes. Containers of our own image are run as real processes when asked
(`run`), with the very command, arguments and environment of the pod; others are merely said to be ready.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.cluster.plane import free_ports

from onecopy.core.errors import CloudError
from onecopy.targets.kubernetes.cluster import Cluster
from onecopy.targets.kubernetes.stack import dig, dig_list, dig_map

Object = dict[str, Any]


def add_node(cluster: Cluster, name: str, *, gpus: int = 0, labels: dict[str, str] | None = None) -> None:
    """A node that is Ready; with GPUs it is tainted and labelled as the GPU operator does."""
    more = {"nvidia.com/gpu.present": "true"} if gpus else {}
    spec = {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]} if gpus else {}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": name, **more, **(labels or {})}},
            "spec": spec,
        }
    )  # fmt: skip
    amounts = {"cpu": "64", "memory": "512Gi", "pods": "110", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    patch_status(
        cluster,
        "Node",
        name,
        None,
        {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "", **_times()}],
        },
    )


def _times() -> dict[str, str]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"lastHeartbeatTime": now, "lastTransitionTime": now}


def patch_status(cluster: Cluster, kind: str, name: str, namespace: str | None, status: Object) -> None:
    from lightkube.core.resource_registry import resource_registry
    from lightkube.types import PatchType

    what: Any = resource_registry.load("v1", kind)
    where = {"namespace": namespace} if namespace else {}
    cluster._client.patch(what.Status, name, {"status": status}, patch_type=PatchType.MERGE, **where)


class Hand:
    """Plays the kubelet of every node. `root`: each node's own disk is `root/<node>`.

    run: start the processes of images that begin with this. stuck: images whose containers never become ready.
    """

    def __init__(self, cluster: Cluster, root: Path, *, run: str | None = None) -> None:
        self.cluster, self.root, self._run_prefix = cluster, root, run
        self.stuck: set[str] = set()
        self.fails: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self.processes: dict[str, Container] = {}
        self.error: BaseException | None = None

    def __enter__(self) -> Hand:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        for process in self.processes.values():
            process.stop()
        if self.error is not None:
            raise self.error

    def _loop(self) -> None:
        while not self._stop.wait(0.2):
            try:
                for pod in self.cluster.list("v1", "Pod"):
                    self._pod(pod)
            except CloudError:
                continue  # gone in between, or changed under us: the next round sees it
            except BaseException as error:
                self.error = error
                return

    def _pod(self, pod: Object) -> None:
        meta, node = pod["metadata"], dig(pod, "spec", "nodeName")
        if node is None:
            return
        if meta.get("deletionTimestamp"):
            if (process := self.processes.pop(meta["uid"], None)) is not None:
                process.stop()
            self._delete_now(pod)
            return
        if dig(pod, "status", "phase") in ("Succeeded", "Failed"):
            return
        reason = self._volumes_missing(pod, node)
        if reason:
            self._say(pod, waiting=reason)
            return
        container = pod["spec"]["containers"][0]
        image = str(container["image"])
        if image in self.fails:
            self._say(pod, waiting=("CrashLoopBackOff", self.fails[image]))
        elif image in self.stuck:
            self._say(pod, waiting=None, ready=False)
        elif self._run_prefix and image.startswith(self._run_prefix):
            self._process(pod, container, node)
        elif pod["spec"].get("restartPolicy") == "Never":
            self._ended(pod, 0, "{}")
        else:
            self._say(pod, waiting=None, ready=True)

    def _volumes_missing(self, pod: Object, node: str) -> tuple[str, str] | None:
        for volume in dig_list(pod, "spec", "volumes"):
            name = dig(volume, "persistentVolumeClaim", "claimName")
            if name is None:
                continue
            claim = self.cluster.get("v1", "PersistentVolumeClaim", name, pod["metadata"]["namespace"])
            if dig(claim, "status", "phase") != "Bound":
                return "ContainerCreating", f"claim {name} is not bound"
            bound = self.cluster.get("v1", "PersistentVolume", dig(claim, "spec", "volumeName"))
            path = dig(bound, "spec", "local", "path")
            if path and not self.on_node(node, path).is_dir():
                return "ContainerCreating", f"no folder {path}"
        return None

    def on_node(self, node: str, path: str) -> Path:
        return self.root / node / path.lstrip("/")

    def _process(self, pod: Object, container: Object, node: str) -> None:
        uid = pod["metadata"]["uid"]
        if uid not in self.processes:
            self.processes[uid] = Container(self, pod, container, node)
        process = self.processes[uid]
        code = process.popen.poll()
        if code is None:
            self._say(pod, waiting=None, ready=process.ready())
        elif pod["spec"].get("restartPolicy") == "Never":
            self._ended(pod, code, process.message())
        else:
            self._say(pod, waiting=("CrashLoopBackOff", process.log_tail()))

    def _ended(self, pod: Object, code: int, message: str) -> None:
        state = {"terminated": {"exitCode": code, "message": message, "reason": "Completed" if code == 0 else "Error",
                                "finishedAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}}  # fmt: skip
        self._status(
            pod, {"phase": "Succeeded" if code == 0 else "Failed", "containerStatuses": self._states(pod, state, False)}
        )

    def _say(self, pod: Object, *, waiting: tuple[str, str] | None, ready: bool = False) -> None:
        if waiting:
            state: Object = {"waiting": {"reason": waiting[0], "message": waiting[1]}}
        else:
            state = {"running": {"startedAt": pod["metadata"]["creationTimestamp"]}}
        conditions = [
            {"type": kind, "status": "True" if ready else "False", "lastTransitionTime": _times()["lastTransitionTime"]}
            for kind in ("Ready", "ContainersReady")
        ]
        conditions.append({"type": "PodScheduled", "status": "True"})
        before = {c["type"]: c.get("status") for c in dig_list(pod, "status", "conditions")}
        old = [dig_map(c, "state") for c in dig_list(pod, "status", "containerStatuses")]
        if before.get("Ready") == ("True" if ready else "False") and old and old[0].keys() == state.keys():
            return
        self._status(
            pod,
            {
                "phase": "Pending" if waiting else "Running",
                "podIP": "127.0.0.1",
                "conditions": conditions,
                "containerStatuses": self._states(pod, state, ready),
            },
        )

    def _states(self, pod: Object, state: Object, ready: bool) -> list[Object]:
        return [
            {
                "name": c["name"],
                "image": c["image"],
                "imageID": "",
                "ready": ready,
                "restartCount": 0,
                "state": state,
                "started": ready,
            }
            for c in pod["spec"]["containers"]
        ]

    def _status(self, pod: Object, status: Object) -> None:
        from lightkube import ApiError

        try:
            patch_status(self.cluster, "Pod", pod["metadata"]["name"], pod["metadata"]["namespace"], status)
        except ApiError as error:
            if error.status.code not in (404, 409):
                raise

    def _delete_now(self, pod: Object) -> None:
        from lightkube import ApiError
        from lightkube.core.resource_registry import resource_registry

        what: Any = resource_registry.load("v1", "Pod")
        try:
            self.cluster._client.delete(
                what, pod["metadata"]["name"], namespace=pod["metadata"]["namespace"], grace_period=0
            )
        except ApiError as error:
            if error.status.code != 404:
                raise


# $1: file with "HOST\tMOUNT" lines; the rest is the command. Mounts are private to this process and its children.
_MOUNTED = r"""
while IFS=$'\t' read -r host inside; do
  parent=$inside; while [ ! -d "$parent" ]; do parent=$(dirname "$parent"); done
  [ "$parent" = "$inside" ] || { [ "$parent" = / ] && { echo "cannot mount at $inside" >&2; exit 125; }; mount -t tmpfs tmpfs "$parent"; mkdir -p "$inside"; }
  mount --bind "$host" "$inside"
done < "$1"
shift
exec "$@"
"""


class Container:
    """One container as a process in a mount namespace of its own: same command, arguments, environment and paths."""

    def __init__(self, hand: Hand, pod: Object, container: Object, node: str) -> None:
        self.pod, self.container = pod, container
        self.folder = hand.root / "containers" / pod["metadata"]["uid"]
        self.folder.mkdir(parents=True)
        self.log = self.folder / "log"
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        lines: list[str] = []
        for mount in container["volumeMounts"]:
            if mount["mountPath"] == "/tmp":
                continue  # the machine's own: the checkout that is tested may lie below it
            volume = volumes[mount["name"]]
            if "hostPath" in volume:
                host = hand.on_node(node, volume["hostPath"]["path"])
            else:
                host = self.folder / mount["name"]
            host.mkdir(parents=True, exist_ok=True)
            lines.append(f"{host}\t{mount['mountPath']}\n")
        table = self.folder / "mounts"
        table.write_text("".join(lines))
        env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        for source in container.get("envFrom") or []:
            secret = hand.cluster.get("v1", "Secret", source["secretRef"]["name"], pod["metadata"]["namespace"])
            env |= {key: decoded(value) for key, value in dig_map(secret, "data").items()}
        env |= {item["name"]: item["value"] for item in container.get("env") or [] if "value" in item}
        # Two things are not the pod's own here: the termination log is a file elsewhere, and the port is a free one,
        # because all nodes share this machine's network
        argv = [*container.get("command", []), *container.get("args", [])]
        argv = [part.replace("/dev/termination-log", str(self.folder / "termination-log")) for part in argv]
        declared = next((str(port["containerPort"]) for port in container.get("ports") or []), None)
        self.port = free_ports(1)[0] if declared else 0
        argv = [str(self.port) if part == declared else part for part in argv]
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                ["unshare", "--mount", "bash", "-c", _MOUNTED, "container", str(table), *argv],
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self) -> bool:
        probe = dig_map(self.container, "readinessProbe", "httpGet")
        if not probe:
            return True
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{probe.get('path')}", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def text(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def message(self) -> str:
        said = self.folder / "termination-log"
        text = said.read_text() if said.is_file() else ""
        return text or self.log_tail()

    def log_tail(self) -> str:
        return self.log.read_text()[-2000:]

    def stop(self) -> None:
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, 15)
            end = time.monotonic() + 10
            while self.popen.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            if self.popen.poll() is None:
                os.killpg(self.popen.pid, 9)
                self.popen.wait()


def decoded(value: str) -> str:
    import base64

    return base64.b64decode(value).decode()


def can_mount() -> bool:
    """Mount namespaces need root (or a kernel that lets users)."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
