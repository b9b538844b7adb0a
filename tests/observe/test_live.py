"""Page and metrics of a real stack: real vLLM servers, a real browser, a real Prometheus."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.browser import Page, browser, debian
from tests.local.stack import Cli, kill, until

from onecopy.observe.dashboards import DASHBOARDS
from onecopy.targets.local.processes import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]
ALERTS = Path(__file__).parents[2] / "src/onecopy/observe/data/alerts.yaml"


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    made = Cli(tmp_path_factory.mktemp("observed") / "home")
    yield made
    made.run("down", "--purge")


@pytest.fixture(scope="module")
def ui(cli: Cli) -> Iterator[str]:
    """The page's address; it is served before the stack is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "onecopy", "ui", "--no-browser", "--json", "--home", str(cli.home)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=cli.env,
    )  # fmt: skip
    assert process.stdout is not None
    text = ""
    while not text.endswith("}\n"):
        text += process.stdout.readline()
    yield json.loads(text)["url"]
    process.terminate()
    process.wait(10)
    process.stdout.close()


@pytest.fixture(scope="module")
def page(ui: str) -> Iterator[Page]:
    with browser() as opened:
        opened.view(1280, 1100)
        opened.open(ui)
        yield opened


@pytest.fixture(scope="module")
def up(cli: Cli, page: Page) -> Any:
    """The stack, with what the page showed while it came up."""
    # the page itself notes what it says: a busy machine may be slow to ask it
    page.evaluate(
        "window.seen = []; const note = () => { const now = document.getElementById('state').textContent;"
        " if (now && now !== seen.at(-1)) seen.push(now); }; note();"
        " new MutationObserver(note).observe(document.getElementById('state'), { childList: true })"
    )
    page.until("seen.includes('no stack here')")
    started: list[Any] = []
    thread = threading.Thread(target=lambda: started.append(cli.ok("up", "--detach", "--port", "0", "--replicas", "2")))
    thread.start()
    page.until("seen.includes('coming up')", 600)
    page.screenshot("status-coming-up")
    thread.join()
    page.until("seen.includes('ready')", 30)
    return {**started[0], "seen": page.evaluate("seen")}


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.loads(answer.read())


def test_the_page_shows_the_stack_come_up(page: Page, up: Any) -> None:
    assert up["seen"] == ["no stack here", "coming up", "ready"]
    page.until("document.getElementById('replicas-title').textContent === 'Replicas: 2 of 2 ready'")
    assert page.evaluate("document.getElementById('store-what').textContent") == "read: 1.00 × the checkpoint"
    assert "weights packed" in page.evaluate("document.getElementById('replicas').textContent") or "weights views" in page.evaluate("document.getElementById('replicas').textContent")  # fmt: skip
    assert up["model"] in page.evaluate("document.title")
    page.screenshot("status-ready")


def test_an_answer_streams_and_names_its_replica(page: Page, up: Any) -> None:
    names = []
    for _ in range(2):
        page.evaluate("document.getElementById('prompt').focus()")
        page.evaluate("document.getElementById('by').textContent = ''")
        page.press("Enter")
        page.until("document.getElementById('answer').textContent.length > 3", 60)
        page.until("document.getElementById('by').textContent.startsWith('answered by')", 120)
        names.append(page.evaluate("document.querySelector('#by b').textContent"))
    assert sorted(names) == ["replica-0", "replica-1"]  # round robin
    page.screenshot("status-answer")


def test_it_asks_nobody_else_and_fits_a_phone(page: Page, ui: str, up: Any) -> None:
    assert all(url.startswith(ui) or url == "data:," for url in page.requests), page.requests
    assert page.errors == []
    page.view(390, 900)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot("status-phone")
    page.view(1280, 1100, dark=True)
    page.screenshot("status-dark")
    page.view(1280, 1100)


@pytest.fixture(scope="module")
def prometheus(ui: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = debian("prometheus", "prometheus")
    if program is None:
        pytest.skip("no Prometheus here, and apt cannot install it")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{ALERTS}]\nscrape_configs:\n"
        f"  - {{job_name: onecopy, static_configs: [{{targets: ['{urllib.parse.urlsplit(ui).netloc}']}}]}}\n"
        f"  - {{job_name: vllm, http_sd_configs: [{{url: '{ui}targets.json', refresh_interval: 2s}}]}}\n"
    )
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"],
            stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"},
        )  # fmt: skip
    yield f"http://{address}/api/v1/"
    process.terminate()
    process.wait(20)


def query(api: str, expression: str) -> list[float]:
    """The finite values of an instant query."""
    text = expression.replace("$__rate_interval", "20s").replace("$__range", "20s")
    answer = get(f"{api}query?{urllib.parse.urlencode({'query': text})}")
    values = [float(row["value"][1]) for row in answer["data"]["result"]]
    return [value for value in values if math.isfinite(value)]


def test_every_panel_shows_something(prometheus: str, up: Any) -> None:
    stop = threading.Event()
    asked: list[int] = []

    def ask() -> None:
        body = {"model": up["model"], "messages": [{"role": "user", "content": "Count to nine."}], "max_tokens": 12}
        while not stop.is_set():
            call = urllib.request.Request(
                up["endpoint"] + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(call, timeout=60) as answer:
                asked.append(answer.status)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        every = {
            f"{name}: {panel.title}: {expression}": expression
            for name, (_, panels) in DASHBOARDS.items()
            for panel in panels
            for expression, _ in panel.queries
        }
        deadline = time.monotonic() + 60
        empty = list(every)
        while empty and time.monotonic() < deadline:
            time.sleep(2)
            empty = [name for name in empty if not _answers(prometheus, every[name])]
    finally:
        stop.set()
        thread.join()
    assert not empty
    assert set(asked) == {200}
    assert query(prometheus, "onecopy_read_amplification_ratio") == [1.0]
    assert len(query(prometheus, "sum by (replica) (vllm:request_success_total)")) == 2


def _answers(api: str, expression: str) -> bool:
    try:
        return bool(query(api, expression))
    except OSError:  # it is still starting
        return False


def test_rules_are_loaded_and_quiet(prometheus: str, up: Any) -> None:
    rules = [rule for group in get(f"{prometheus}rules")["data"]["groups"] for rule in group["rules"]]
    assert len(rules) == ALERTS.read_text().count("alert:")
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule["state"] != "inactive"] == []


def test_cost_takes_what_was_measured(cli: Cli, up: Any) -> None:
    done = cli.run("cost", "--stack", "--json", "--cloud", "aws")
    assert "measured: 1.000 " in done.stderr
    disk = next(row for row in json.loads(done.stdout) if row["storage"] == "ebs-gp3")
    assert disk["provisioned_gb"] == 2  # a volume has at least one GB


def test_a_killed_replica_is_seen_to_come_back(page: Page, cli: Cli, up: Any) -> None:
    kill(next(replica["pid"] for replica in up["replicas"] if replica["name"] == "replica-1"))
    page.until("document.querySelector('[data-replica=replica-1]').className === 'restarting'", 30)
    page.screenshot("status-restarting")
    page.until("document.getElementById('state').textContent === 'ready'", 120)
    page.until("document.querySelector('[data-replica=replica-1]').textContent.includes('started again once')", 10)


def test_the_end_is_shown(page: Page, cli: Cli, up: Any) -> None:
    cli.ok("down")
    page.until("document.getElementById('state').textContent === 'stopped'", 20)
    until("the ask button is off", lambda: page.evaluate("document.getElementById('send').disabled"), timeout=10)
