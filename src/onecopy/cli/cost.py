from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from onecopy.cli import options
from onecopy.cli.output import table
from onecopy.core.errors import UsageError


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
    from onecopy.cost.prices import load_prices

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
    given |= {name: value for name, value in flags.items() if value is not None}
    if "replicas" in given and "nodes" not in given:
        given["nodes"] = given["replicas"]
    price_list = load_prices(prices)
    rows = compute(given, price_list, cloud=cloud)

    out = options.output(json=json, quiet=quiet)
    if html is not None:
        from onecopy.cost import page

        html.write_text(page.html(given, price_list, cloud=cloud))
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
    unchecked = [name for name, checked in report.used_prices(rows, price_list).items() if not checked]
    if unchecked:
        out.talk(
            f"prices not checked against a second text: {', '.join(unchecked)}; --explain shows every number's source"
        )
