"""The state folder of a local stack: where things lie, the lock that says who owns it, and the state file.

<home>/lock               held (flock) by the live supervisor; a dead one frees it
<home>/state.json         what runs (`State`), replaced atomically
<home>/events.jsonl       what happens, one `Event` a line; begun anew by each `up`
<home>/settings.json      the configuration that the supervisor was started with
<home>/credentials.json   keys of the embedded store, mode 0600
<home>/store/             its data
<home>/sample/            the sample model, written out once
<home>/cache/             node cache, when it does not fit on /dev/shm
<home>/logs/*.log
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from onecopy.core.errors import StackError
from onecopy.core.redact import Secret

FORMAT = 1
SHM = Path("/dev/shm")  # noqa: S108 - the tmpfs that the node cache is meant for

QUESTION = "What is the capital of France? Answer in one sentence."
"""What `up` asks through the router before it says that the stack is ready."""

StackState = Literal["starting", "ready", "degraded", "stopping", "stopped", "failed"]
ReplicaState = Literal["starting", "ready", "restarting", "failed", "stopped"]


class ReplicaStatus(BaseModel):
    """One vLLM server. ready_seconds: from its start to its first healthy answer."""

    model_config = ConfigDict(extra="ignore")
    name: str
    state: ReplicaState = "starting"
    pid: int | None = None
    endpoint: str
    restarts: int = 0
    ready_seconds: float | None = None
    error: str | None = None


class ProcessRecord(BaseModel):
    """A process that the supervisor started; `started` (clock ticks since boot) tells it from a later one of its pid."""

    model_config = ConfigDict(extra="ignore")
    name: str
    pid: int
    started: int


class State(BaseModel):
    """`status --json`. Bytes are bytes, phases are seconds from start to end of each step."""

    model_config = ConfigDict(extra="ignore")
    format: int = FORMAT
    state: StackState = "starting"
    supervisor: ProcessRecord | None = None
    settings: str = ""
    endpoint: str | None = None
    model: str | None = None
    revision: str | None = None
    store: str | None = None
    cache: str | None = None
    replicas: list[ReplicaStatus] = []
    checkpoint_bytes: int | None = None
    store_bytes_read: int | None = None
    private_copies_bytes: int | None = None
    weight_bytes_resident: int | None = None
    private_copies_resident: int | None = None
    phases: dict[str, float] = {}
    answer: str | None = None
    error: str | None = None
    hint: str | None = None
    processes: list[ProcessRecord] = []


class Home:
    """The state folder at `root`. Nothing is made until `prepare` is called."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state_file = root / "state.json"
        self.events = root / "events.jsonl"
        self.settings = root / "settings.json"
        self.credentials_file = root / "credentials.json"
        self.store = root / "store"
        self.sample = root / "sample"
        self.logs = root / "logs"
        self._lock_file = root / "lock"

    @property
    def key(self) -> str:
        """Tells this home's shared memory and sockets from another's."""
        return hashlib.sha256(str(self.root).encode()).hexdigest()[:8]

    @property
    def shm_cache(self) -> Path:
        return SHM / f"onecopy-{os.getuid()}-{self.key}"

    @property
    def disk_cache(self) -> Path:
        return self.root / "cache"

    @property
    def run(self) -> Path:
        """Folder of sockets: short, because a Unix socket's path has at most 107 bytes. The supervisor makes it."""
        return Path(tempfile.gettempdir()) / f"onecopy-{os.getuid()}-{self.key}"

    def prepare(self) -> None:
        """Makes the folders. Raises StackError when the root cannot be written or is of another version."""
        try:
            for folder in (self.root, self.logs):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StackError(
                f"cannot write the state folder {self.root}: {error.strerror}",
                hint="name another with --home or ONECOPY_HOME",
            ) from error
        self.read_state()

    def read_state(self) -> State | None:
        """None when no stack was ever started here. Raises StackError for a state of another version or a torn one."""
        try:
            raw = json.loads(self.state_file.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StackError(
                f"cannot read {self.state_file}: {error}",
                hint=f"`onecopy down --purge --home {self.root}` starts over",
            ) from error
        found = raw.get("format") if isinstance(raw, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if found != FORMAT:
            raise StackError(
                f"{self.root} was written by another version of onecopy (state format {found}, this one writes {FORMAT})",
                hint="run `onecopy down --purge` of that version, or name another folder with --home",
            )
        try:
            return State.model_validate(raw)
        except ValidationError as error:
            raise StackError(
                f"{self.state_file} is damaged: {error.errors()[0]['msg']}",
                hint=f"`onecopy down --purge --home {self.root}` starts over",
            ) from error

    def write_state(self, state: State) -> None:
        write_atomically(self.state_file, state.model_dump_json(indent=1))

    def credentials(self) -> tuple[str, Secret]:
        """Access key and secret of the embedded store, made at random once."""
        try:
            saved = json.loads(self.credentials_file.read_text())
            return saved["access_key_id"], Secret(saved["secret_access_key"])
        except (OSError, ValueError, KeyError):
            made = {"access_key_id": secrets.token_hex(10).upper(), "secret_access_key": secrets.token_urlsafe(30)}
            write_atomically(self.credentials_file, json.dumps(made))
            return made["access_key_id"], Secret(made["secret_access_key"])

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Held for the supervisor's life. Raises StackError when another holds it."""
        handle = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StackError(f"a stack runs already in {self.root}", hint="see `onecopy status`") from error
            yield
        finally:
            os.close(handle)

    def clear_volatile(self) -> None:
        """Removes shared memory and sockets: what must not outlive a stack."""
        shutil.rmtree(self.shm_cache, ignore_errors=True)
        shutil.rmtree(self.run, ignore_errors=True)

    def is_owned(self) -> bool:
        """True while a supervisor lives. Leaves nothing locked."""
        try:
            handle = os.open(self._lock_file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    temporary.replace(path)
