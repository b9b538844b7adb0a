"""What `doctor` says: findings, each with its fix. The checks of this machine; a target adds its own."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from onecopy.config.resolve import Resolved
from onecopy.core.errors import OnecopyError
from onecopy.core.paths import default_home, environments_dir
from onecopy.core.units import GiB, format_bytes
from onecopy.storage.objectstore import StoreOptions, check_store, open_store

Level = Literal["ok", "warning", "problem"]
ENGINE_BYTES = 5 * GiB
"""Disk for the CPU engine's environment: 3.5 GB installed, and pip's own room to unpack."""


@dataclass(frozen=True, slots=True)
class Finding:
    """check: stable name. fix: what to do about it, best a command; None when there is nothing to do."""

    check: str
    level: Level
    message: str
    fix: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def from_error(check: str, error: OnecopyError) -> Finding:
    return Finding(check, "problem", error.message, error.hint)


def examine(resolved: Resolved) -> list[Finding]:
    """Everything that can be said of a configuration before it is applied. Changes nothing."""
    if resolved.config.target == "local":
        return [*local(), *store(resolved)]
    if resolved.config.target == "aws":
        from onecopy.targets.aws.target import AwsTarget

        return AwsTarget(resolved.config).examine()
    from onecopy.targets.kubernetes import doctor
    from onecopy.targets.kubernetes.target import KubernetesTarget

    return [*store(resolved), *doctor.examine(KubernetesTarget(resolved.config))]


def local() -> list[Finding]:
    return [*_machine(), _shared_memory(Path("/dev/shm")), _disk(environments_dir()), _disk(default_home())]  # noqa: S108


def _machine() -> Sequence[Finding]:
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        found = f"{platform.system()} on {platform.machine()}"
        fix = "use Linux on x86_64, or --target kubernetes from here"
        return [Finding("machine", "problem", f"{found}: the local engine has no build for it", fix)]
    flags = _cpu_flags()
    if flags and "avx2" not in flags:
        return [
            Finding("machine", "problem", "the CPU has no AVX2, which vLLM's CPU build needs", "use another machine")
        ]
    return [Finding("machine", "ok", f"Linux on x86_64{', AVX-512' if 'avx512f' in flags else ''}")]


def _cpu_flags() -> set[str]:
    none: set[str] = set()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return none
    return next((set(line.partition(":")[2].split()) for line in text.splitlines() if line.startswith("flags")), none)


def _shared_memory(where: Path) -> Finding:
    if not where.is_dir():
        fix = "set cache.dir to a folder on the disk"
        return Finding("shared memory", "warning", f"no {where}: the cache goes to the disk", fix)
    free = shutil.disk_usage(where).free
    if free < GiB:
        fix = f"mount -o remount,size=50% {where}; or set cache.dir to a folder on the disk"
        return Finding("shared memory", "warning", f"{where} has {format_bytes(free)} free", fix)
    return Finding("shared memory", "ok", f"{where} has {format_bytes(free)} free")


def _disk(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free < ENGINE_BYTES:
        fix = "free some, or set ONECOPY_ENVIRONMENTS and ONECOPY_HOME to folders on a larger disk"
        return Finding("disk", "warning", f"{folder}: {format_bytes(free)} free, the engine takes 4 GB", fix)
    return Finding("disk", "ok", f"{folder}: {format_bytes(free)} free")


def store(resolved: Resolved) -> list[Finding]:
    """One listing with the credentials of this machine. Pods have their own: a refusal here need not be one there."""
    section = resolved.config.store
    if section.uri is None:
        if resolved.config.target == "local":
            return [Finding("store", "ok", "an S3 server of our own on loopback")]
        return [Finding("store", "problem", "store.uri is not set", "set it to s3://, gs:// or az://")]
    options = StoreOptions(
        endpoint=section.endpoint,
        region=section.region,
        ca_file=section.ca_file,
        connect_timeout=3,
        request_timeout=10,
        retries=0,
    )
    try:
        check_store(open_store(section.uri, options))
    except OnecopyError as error:
        if resolved.config.target == "local":
            return [from_error("store", error)]
        return [Finding("store", "warning", f"from this machine: {error.message}", error.hint)]
    return [Finding("store", "ok", f"{section.uri} answers")]
