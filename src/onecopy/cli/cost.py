from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from onecopy.cli import options
from onecopy.cli.output import Output, table
from onecopy.core.errors import StackError, UsageError


def command(
    model_gb: Annotated[float | None, typer.Option("--model-gb", help="Size of the model in GB [70].")] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", help="vLLM servers of it [20].")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", help="Nodes that they run on [one a replica].")] = None,
    starts_per_month: Annotated[
        int | None, typer.Option("--starts-per-month", help="Replica starts on nodes without the weights [100].")
    ] = None,
    node_usd_hour: Annotated[
        float | None, typer.Option("--node-usd-hour", help="Price of a node an hour, for the time that it waits.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other input: NAME=VALUE (repeat; `--explain` lists them).")
    ] = None,
    cloud: Annotated[Literal["all", "aws", "gcp", "azure"], typer.Option("--cloud", help="Rows of one cloud.")] = "all",
    prices: Annotated[
        Path | None, typer.Option("--prices", help="TOML file of prices that go over the list's.", show_default=False)
    ] = None,
    stack: Annotated[
        bool,
        typer.Option("--stack", help="Take size, replicas and fill rate as measured on the local stack, and compare."),
    ] = False,
    home: options.Home = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every formula, input and price with its source.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Rows as CSV.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with sliders that computes the same.", show_default=False),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """What weights cost a month: a disk a replica, file systems, object storage, and the GPUs that wait for them."""
    from onecopy.cost import report
    from onecopy.cost.model import compute
    from onecopy.cost.stack import load_prices

    if json + csv + explain > 1:
        raise UsageError("--json, --csv and --explain exclude each other")
    given: dict[str, object] = {}
    for item in set_ or ():
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item}: not NAME=VALUE", hint="for example --set zones=1")
        given[name.strip()] = value.strip()
    flags = {
        "model_gb": model_gb,
        "replicas": replicas,
        "nodes": nodes,
        "starts_per_month": starts_per_month,
        "node_usd_hour": node_usd_hour,
    }
    out = options.output(json=json, quiet=quiet)
    if stack:
        given |= _measured(home, out)
    given |= {name: value for name, value in flags.items() if value is not None}
    if "replicas" in given and "nodes" not in given:
        given["nodes"] = given["replicas"]
    price_list = load_prices(prices)
    rows = compute(given, price_list, cloud=cloud)

    if html is not None:
        from onecopy.cost import page

        try:
            html.write_text(page.html(given, price_list, cloud=cloud))
        except OSError as error:
            raise UsageError(f"cannot write {html}: {error.strerror}") from error
        out.talk(f"wrote {html}; open it in a browser, it needs no network")
    if csv:
        out.data(None, report.csv_text(rows))
        return
    if explain:
        out.data(None, report.explain_text(rows, price_list))
        return

    def human() -> str:
        return table(
            ["storage", "cloud", "GB provisioned", "USD a month", "of it GPU waiting", "a load takes"],
            [
                (
                    row.storage.name,
                    row.storage.cloud,
                    f"{row.provisioned_gb:,.0f}",
                    f"{row.monthly_usd:,.2f}",
                    f"{row.monthly_usd - row.bill_usd:,.2f}",
                    f"{row.load_seconds:,.0f} s",
                )
                for row in rows
            ],
        )

    out.data([row.as_dict() for row in rows], human)
    for mixed in report.mixed_regions(rows, price_list):
        out.warn(mixed)
    unchecked = [name for name, checked in report.used_prices(rows, price_list).items() if not checked]
    if unchecked:
        out.talk(
            f"prices not checked against a second text: {', '.join(unchecked)}; --explain shows every number's source"
        )


def _measured(home: Path | None, out: Output) -> dict[str, object]:
    """Inputs as the local stack has them, and in words how its fill compares with the model's assumptions."""
    from onecopy.core.paths import default_home
    from onecopy.core.units import GiB, MiB
    from onecopy.cost.model import defaults
    from onecopy.targets.local.home import Home

    place = Home(home.expanduser().resolve() if home else default_home())
    state = place.read_state()
    if state is None or not state.checkpoint_bytes or not state.replicas:
        raise StackError(f"no stack has served a model in {place.root}", hint="`onecopy up` starts one")
    given: dict[str, object] = {
        "model_gb": state.checkpoint_bytes / GiB,
        "replicas": len(state.replicas),
        "nodes": 1,
    }
    read, seconds = state.store_bytes_read, state.phases.get("fill")
    if read and seconds:
        given["cache_mb_s"] = read / MiB / seconds
        out.talk(
            f"measured: {read / state.checkpoint_bytes:.3f} × the checkpoint read from the store (the model says 1 a node), "
            f"filled at {read / MiB / seconds:,.0f} MB/s (its default: {defaults()['cache_mb_s']:,})"
        )
    else:
        out.talk(
            "measured: nothing was read from the store, the node cache was warm; the fill's rate stays the default"
        )
    return given
