"""A headless Chromium, driven over its debugging pipe: no port, no driver, no further package.

Debian's `chromium` is installed when the tests run as root with apt; without a browser the tests skip by name.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ARTEFACTS = Path(__file__).parents[1] / ".artefacts"
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@cache
def debian(package: str, program: str) -> str | None:
    """Path of a program, from Debian's package when it is missing and can be installed; else None."""
    if found := shutil.which(program):
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "--no-install-recommends", package]
        if subprocess.run(install, env=env, timeout=240, **quiet).returncode != 0:
            subprocess.run(["apt-get", "update"], env=env, timeout=120, **quiet)
            subprocess.run(install, env=env, timeout=240, **quiet)
    return shutil.which(program)


def find() -> str:
    """Path of a browser; skips the test when there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None) or debian("chromium", "chromium")
    if found is None:
        pytest.skip("no Chromium here, and apt cannot install it")
    return found


class Page:
    """One page. Every call waits for its answer; console errors and requests are kept."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._from, self._rest, self._id, self._session = to, answers, b"", 0, ""
        self.requests: list[str] = []
        self.errors: list[str] = []

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """The script's value; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, json.dumps(answer["exceptionDetails"])[:2000]
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")  # else a change after the # would load nothing
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def until(self, condition: str, timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"never became true: {condition}"
            time.sleep(0.03)

    def view(self, width: int, height: int, *, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str) -> None:
        extra = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39, "ArrowLeft": 37}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code="Space" if key == " " else key, windowsVirtualKeyCode=codes[key],
                **(extra if kind == "keyDown" else {}),
            )  # fmt: skip

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, name: str) -> Path:
        """The whole page, kept under .artefacts/."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        ARTEFACTS.mkdir(exist_ok=True)
        path = ARTEFACTS / f"{name}.png"
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._from, 1 << 20)
            assert chunk, "the browser went away"
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        match answer.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"])[:500])
            case "Log.entryAdded" if answer["params"]["entry"]["level"] == "error":
                self.errors.append(answer["params"]["entry"]["text"])
            case _:
                pass
        return answer


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a fresh browser with a fresh profile."""
    program = find()
    with tempfile.TemporaryDirectory(prefix="onecopy-browser-", ignore_cleanup_errors=True) as profile:
        commands, to = os.pipe()
        answers, back = os.pipe()
        # the browser reads its commands from descriptor 3 and answers on 4
        shell = f'exec 3<&{commands} 4>&{back}; exec "$0" "$@"'
        process = subprocess.Popen(
            ["bash", "-c", shell, program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
             f"--user-data-dir={profile}"],
            pass_fds=(commands, back), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(back)
        try:
            page = Page(to, answers)
            page.attach()
            yield page
        finally:
            os.close(to)
            os.close(answers)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
