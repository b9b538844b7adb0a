from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onecopy.cli import options
from onecopy.cli.output import Output
from onecopy.core.errors import StackError, UsageError

if TYPE_CHECKING:
    from onecopy.loadtest.counters import Replica

command = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    help="Ask the stack many questions at once, time them, and show which replica served how many.",
)

EACH_LINE = 200
"""Runs of up to this many requests show a line for each; longer ones only what failed."""


@command.callback()
def run(
    context: typer.Context,
    requests: Annotated[int, typer.Option("--requests", "-n", min=1, help="Requests in all.")] = 100,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="Under way at once (closed: 25; open: no limit).")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="OpenAI-compatible server; by default the running local stack.")
    ] = None,
    replica: Annotated[
        list[str] | None,
        typer.Option("--replica", help="NAME=URL of a replica whose /metrics to read (repeat); known for the stack."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name to ask for (default: the first served).")] = None,
    workload: Annotated[
        Literal["fixed", "sharegpt", "multi-round"], typer.Option("--workload", help="Shape of what is asked.")
    ] = "fixed",
    input_tokens: Annotated[
        int | None, typer.Option("--input-tokens", min=1, help="Of a prompt (fixed 64; sharegpt: mean 161).")
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option("--output-tokens", min=1, help="Of an answer (fixed 32; sharegpt: mean 338).")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Of a multi-round conversation.")] = 4,
    prefix_tokens: Annotated[int, typer.Option("--prefix-tokens", min=0, help="System prompt shared by all.")] = 0,
    arrivals: Annotated[
        Literal["closed", "poisson", "constant", "burst"], typer.Option("--arrivals", help="When sessions start.")
    ] = "closed",
    rate: Annotated[float | None, typer.Option("--rate", help="Sessions a second, for open arrivals.")] = None,
    burst: Annotated[int, typer.Option("--burst-size", min=1, help="Sessions of one burst.")] = 8,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Requests before, not counted.")] = 0,
    slo: Annotated[
        list[str] | None, typer.Option("--slo", help="ttft=500ms, itl=50ms, tpot=…, e2e=…: goodput (repeat).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same questions at the same times.")] = 0,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds without a byte.")] = 120.0,
    save: Annotated[Path | None, typer.Option("--save", help="Write the whole report as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the run as an SVG.")] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Saved report to compare with.")] = None,
    fail_on_error: Annotated[bool, typer.Option("--fail-on-error", help="Exit 1 when any request failed.")] = False,
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Exit code 1 when no request was answered. The key of a protected endpoint comes from ONECOPY_API_KEY."""
    if context.invoked_subcommand is not None:
        return
    from onecopy.core import environment
    from onecopy.core.redact import Secret
    from onecopy.loadtest import compare as comparing
    from onecopy.loadtest import plot as drawing
    from onecopy.loadtest import text as texts
    from onecopy.loadtest.arrivals import Arrivals
    from onecopy.loadtest.client import Sample
    from onecopy.loadtest.report import read_report
    from onecopy.loadtest.run import Plan
    from onecopy.loadtest.run import run as play
    from onecopy.loadtest.slo import parse_slo
    from onecopy.loadtest.workload import SHAREGPT_INPUT, SHAREGPT_OUTPUT, Workload

    out = options.output(json=json, quiet=quiet)
    old = read_report(_read(baseline), where=str(baseline)) if baseline else None
    replicas = [_replica(text) for text in replica or ()]
    if endpoint is None:
        endpoint, found = _local(home)
        replicas = replicas or found
    shaped = workload == "sharegpt"
    key = environment.read("ONECOPY_API_KEY")
    plan = Plan(
        endpoint=endpoint,
        model=model,
        requests=requests,
        concurrency=concurrency or (25 if arrivals == "closed" else None),
        workload=Workload(
            shape=workload,
            input_tokens=input_tokens or (round(SHAREGPT_INPUT) if shaped else 64),
            output_tokens=output_tokens or (round(SHAREGPT_OUTPUT) if shaped else 32),
            rounds=rounds if workload == "multi-round" else 1,
            prefix_tokens=prefix_tokens,
            seed=seed,
        ),
        arrivals=Arrivals(arrivals, rate, burst, seed),
        warmup=warmup,
        slo=parse_slo(slo or ()),
        timeout=timeout,
        key=Secret(key) if key else None,
        replicas=replicas,
    )

    def each(sample: Sample) -> None:
        if not sample.ok or requests <= EACH_LINE:
            out.talk(texts.line(sample))

    report = play(plan, each=each)
    body: dict[str, Any] = report.model_dump(mode="json")
    comparison = comparing.compare(old, report) if old else None
    if comparison:
        from dataclasses import asdict

        body["comparison"] = asdict(comparison)
    if save:
        _write(save, report.model_dump_json(indent=1))
    if plot:
        _write(plot, drawing.svg(report))
    human = texts.text(report) + (f"\n\n{comparing.text(comparison)}" if comparison else "")
    _warn(out, comparison.warnings if comparison else ())
    out.data(body, human)
    if not report.ok or (fail_on_error and report.failed):
        raise typer.Exit(1)


@command.command("compare")
def compare(
    a: Annotated[Path, typer.Argument(help="Saved report of the earlier run.")],
    b: Annotated[Path, typer.Argument(help="Saved report of the later run.")],
    json: options.Json = False,
) -> None:
    """Show what changed between two saved runs, and what of it is noise."""
    from dataclasses import asdict

    from onecopy.loadtest import compare as comparing
    from onecopy.loadtest.report import read_report

    out = options.output(json=json)
    comparison = comparing.compare(read_report(_read(a), where=str(a)), read_report(_read(b), where=str(b)))
    _warn(out, comparison.warnings)
    out.data(asdict(comparison), lambda: comparing.text(comparison))


def _local(home: Path | None) -> tuple[str, list[Replica]]:
    """Endpoint and replicas of the local stack. Raises StackError when none runs."""
    from onecopy.core.paths import default_home
    from onecopy.loadtest.counters import Replica
    from onecopy.targets.local.home import Home

    found = Home(home or default_home())
    state = found.read_state()
    if state is None or state.endpoint is None or not found.is_owned():
        raise StackError(
            "no local stack runs", hint="`onecopy up --detach` starts one; or name a server with --endpoint"
        )
    return state.endpoint, [Replica(r.name, r.endpoint) for r in state.replicas]


def _replica(text: str) -> Replica:
    from onecopy.loadtest.client import base_url
    from onecopy.loadtest.counters import Replica

    name, equals, url = text.partition("=")
    if not equals or not name:
        raise UsageError(f"not a replica: {text!r}", hint="write it as replica-0=http://127.0.0.1:8001")
    return Replica(name, base_url(url))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _warn(out: Output, warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        out.warn(warning)
