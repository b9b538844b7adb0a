"""The load generator against a real HTTP server that streams: what it measures is what the server did."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests.loadtest.server import Behaviour, Stack, serve
from typer.testing import CliRunner

from onecopy.cli.main import app
from onecopy.core.errors import EngineError, OnecopyError, UsageError
from onecopy.core.redact import Secret
from onecopy.loadtest.arrivals import Arrivals
from onecopy.loadtest.counters import Replica
from onecopy.loadtest.run import Plan, run
from onecopy.loadtest.slo import Slo
from onecopy.loadtest.workload import Workload


def plan(stack: Stack, **changes: object) -> Plan:
    replicas = [Replica(f"replica-{i}", stack.replica(i)) for i in range(len(stack.counters))]
    settings: dict[str, object] = {"requests": 20, "concurrency": 5, "workload": Workload(output_tokens=6)}
    return Plan(endpoint=stack.endpoint, replicas=replicas, **(settings | changes))  # type: ignore[arg-type]


def test_shares_come_from_the_replicas_own_counters() -> None:
    with serve(replicas=3) as stack:
        stack.counters[0].requests = 1000  # served to others, long ago
        report = run(plan(stack, requests=30))
    assert (report.ok, report.failed) == (30, 0)
    assert [row["served"] for row in report.replicas] == [10, 10, 10]
    assert report.fairness == pytest.approx(1.0)
    assert report.output_tokens == 30 * 6
    assert sum(row["generation_tokens"] for row in report.replicas) == 30 * 6


def test_times_are_those_of_the_server() -> None:
    with serve(Behaviour(first=0.15, gap=0.02)) as stack:
        report = run(plan(stack, requests=6, concurrency=2, workload=Workload(output_tokens=11)))
    # 0.15 s to the first of 11 tokens, then ten gaps of 0.02 s; a busy machine may add, never take away.
    assert 0.15 <= report.latency["ttft"].p50 < 0.6
    assert 0.019 <= report.latency["itl"].p50 < 0.1
    assert report.latency["itl"].count == 6 * 10
    assert 0.34 <= report.latency["e2e"].p50 < 2.0
    assert all(sample["status"] == 200 and sample["seconds"] >= 0.34 for sample in report.samples)


def test_concurrency_is_kept() -> None:
    with serve(Behaviour(first=0.1)) as stack:
        report = run(plan(stack, requests=12, concurrency=3, workload=Workload(output_tokens=4)))
    moments = [(s["at"], 1) for s in report.samples] + [(s["at"] + s["seconds"], -1) for s in report.samples]
    under_way = peak = 0
    for _, step in sorted(moments, key=lambda m: (round(m[0], 4), m[1])):
        under_way += step
        peak = max(peak, under_way)
    assert peak == 3


@pytest.mark.parametrize(
    ("fault", "status", "named"),
    [
        ("500", 500, "out of luck"),
        ("cut", 200, "ended early, after 3 chunks"),
        ("garbage", 200, "not a chat completion"),
    ],
)
def test_a_failure_is_counted_named_and_does_not_stop_the_run(fault: str, status: int, named: str) -> None:
    with serve(Behaviour(fault=fault, every=4)) as stack:
        report = run(plan(stack, requests=20, concurrency=1))
    assert (report.ok, report.failed) == (15, 5)
    failed = [sample for sample in report.samples if sample["error"]]
    assert {sample["status"] for sample in failed} == {status}
    assert all(named in sample["error"] for sample in failed)
    assert sum(report.errors.values()) == 5


def test_a_replica_that_cannot_be_read_is_said_to_be_unknown() -> None:
    with serve() as stack:
        dead = Replica("gone", "http://127.0.0.1:9")
        report = run(Plan(stack.endpoint, requests=4, concurrency=2, replicas=[Replica("a", stack.replica(0)), dead]))
    rows = {row["name"]: row for row in report.replicas}
    assert rows["gone"]["served"] is None
    assert rows["gone"]["error"]
    assert rows["a"]["served"] == 2
    assert report.fairness is None


def test_a_restart_during_the_run_is_noticed() -> None:
    with serve() as stack:
        stack.counters[0].requests = 50
        wanted = plan(stack, requests=10, concurrency=1)

        def restart(sample: object) -> None:
            if stack.counters[0].requests == 53:
                stack.counters[0].requests = stack.counters[0].prompt = stack.counters[0].generated = 0

        report = run(wanted, each=restart)
    assert report.replicas[0]["restarted"] is True
    assert report.replicas[0]["served"] == 2
    assert report.replicas[1]["served"] == 5


def test_a_router_that_meets_a_dead_replica_first_is_asked_again() -> None:
    with serve(Behaviour(models_fail=2)) as stack:
        assert run(plan(stack, requests=2)).ok == 2


def test_multi_round_sends_the_answers_back() -> None:
    with serve() as stack:
        report = run(plan(stack, requests=6, workload=Workload("multi-round", output_tokens=5, rounds=3)))
        bodies = sorted(stack.behaviour.seen, key=lambda body: len(body["messages"]))
    assert report.requests == 6
    assert [len(body["messages"]) for body in bodies] == [1, 1, 3, 3, 5, 5]
    assert bodies[-1]["messages"][1] == {"role": "assistant", "content": "w0 w1 w2 w3 w4 "}


def test_a_session_whose_answer_failed_is_not_gone_on_with() -> None:
    with serve(Behaviour(fault="500", every=1)) as stack:
        report = run(plan(stack, requests=6, workload=Workload("multi-round", rounds=3)))
    assert (report.requests, report.failed) == (2, 2)


@pytest.mark.parametrize("pattern", ["constant", "poisson", "burst"])
def test_open_arrivals_do_not_wait_for_answers(pattern: str) -> None:
    with serve(Behaviour(first=0.5)) as stack:
        arrivals = Arrivals(pattern, rate=40, burst=4)  # type: ignore[arg-type]
        report = run(plan(stack, requests=12, concurrency=None, arrivals=arrivals, workload=Workload(output_tokens=4)))
    starts = sorted(sample["at"] for sample in report.samples)
    assert report.ok == 12
    assert starts[-1] < 0.5 + max(sample["late"] for sample in report.samples), (
        "all had to start before the first answer"
    )
    if pattern == "burst":
        assert starts[3] - starts[0] < 0.05 <= starts[4] - starts[3]


def test_goodput_counts_what_kept_every_objective() -> None:
    with serve(Behaviour(first=0.05)) as stack:
        every = run(plan(stack, slo=Slo(ttft=5.0)))
        none = run(plan(stack, slo=Slo(ttft=5.0, e2e=0.001)))
    assert every.goodput_share == 1.0
    assert none.goodput_share == 0.0


def test_warm_up_is_not_counted_and_asks_other_things() -> None:
    with serve() as stack:
        report = run(plan(stack, requests=4, warmup=3))
        prompts = [body["messages"][0]["content"] for body in stack.behaviour.seen]
    assert report.requests == 4
    assert sum(row["served"] for row in report.replicas) == 4
    assert len(prompts) == len(set(prompts)) == 7


def test_prompts_fit_the_servers_context_and_the_same_seed_asks_the_same() -> None:
    shape = Workload("sharegpt", input_tokens=161, output_tokens=338, seed=7)
    asked: list[list[dict[str, object]]] = []
    for _ in range(2):
        with serve(Behaviour(context=128, first=0, gap=0)) as stack:
            run(plan(stack, requests=12, concurrency=1, workload=shape))
            asked.append(stack.behaviour.seen)
    assert asked[0] == asked[1]
    for body in asked[0]:
        words = len(body["messages"][0]["content"].split())  # type: ignore[index]
        assert words + body["max_tokens"] <= 128  # type: ignore[operator]


def test_the_key_is_sent_and_never_shown() -> None:
    with serve() as stack:
        report = run(plan(stack, requests=2, key=Secret("sk-very-secret")))
        assert set(stack.behaviour.keys) == {"Bearer sk-very-secret"}
    assert "very-secret" not in report.model_dump_json()


def test_nothing_there_and_the_wrong_model_are_clear() -> None:
    with pytest.raises(EngineError, match="no answer from http"):
        run(Plan("http://127.0.0.1:9"))
    with pytest.raises(UsageError, match="not an endpoint"):
        run(Plan("127.0.0.1:8080"))
    with serve() as stack, pytest.raises(UsageError, match="does not serve llama"):
        run(plan(stack, model="llama"))


def test_command_saves_draws_and_compares(tmp_path: Path) -> None:
    runner = CliRunner()
    first, second, picture = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "run.svg"
    with serve(Behaviour(first=0.02)) as stack:
        slow = ["loadtest", "-n", "20", "--concurrency", "5", "--output-tokens", "4", *stack.flags]
        done = runner.invoke(app, [*slow, "--save", str(first), "--json"])
        assert done.exit_code == 0, done.output
        body = json.loads(done.stdout)
        assert [row["served"] for row in body["replicas"]] == [10, 10]
        stack.behaviour.first = 0.2
        done = runner.invoke(
            app, [*slow, "--save", str(second), "--plot", str(picture), "--baseline", str(first), "--slo", "ttft=100ms"]
        )
    assert done.exit_code == 0, done.output
    assert "replica-1" in done.stdout
    assert "goodput 0.00 requests/s" in done.stdout
    svg = ElementTree.fromstring(picture.read_text())
    assert sum(node.get("class") == "e2e" and node.tag.endswith("circle") for node in svg.iter()) == 20
    compared = json.loads(runner.invoke(app, ["loadtest", "compare", str(first), str(second), "--json"]).stdout)
    changes = {change["figure"]: change for change in compared["changes"]}
    assert changes["ttft p50"]["verdict"] == "slower"
    assert changes["ttft p50"]["b"] > changes["ttft p50"]["a"]
    again = json.loads(runner.invoke(app, ["loadtest", "compare", str(first), str(first), "--json"]).stdout)
    assert {c["figure"]: c["verdict"] for c in again["changes"]}["e2e p50"] == "noise"


def test_command_refuses_without_a_stack_and_with_a_damaged_report(tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["loadtest", "--home", str(tmp_path)])
    assert isinstance(done.exception, OnecopyError)
    assert "no local stack runs" in str(done.exception)
    (tmp_path / "bad.json").write_text("{}")
    done = runner.invoke(app, ["loadtest", "compare", str(tmp_path / "bad.json"), str(tmp_path / "bad.json")])
    assert isinstance(done.exception, UsageError)


def test_exit_code_is_1_when_nothing_was_answered() -> None:
    with serve(Behaviour(fault="500", every=1)) as stack:
        done = CliRunner().invoke(app, ["loadtest", "-n", "3", *stack.flags, "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["failed"] == 3
