"""Rows as CSV, and every number with what it was made of (`--explain`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from onecopy.cost.declarations import DERIVED, INPUTS
from onecopy.cost.formula import names, plain, substitute
from onecopy.cost.model import Row, formulas
from onecopy.cost.prices import Prices


def csv_text(rows: Sequence[Row]) -> str:
    """One line a row; a column for each term that any row has."""
    terms = list(dict.fromkeys(name for row in rows for name in row.terms))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["storage", "cloud", "provisioned_gb", "node_memory_gb", "load_seconds", "monthly_usd", "bill_usd", *terms]
    )
    for row in rows:
        writer.writerow(
            [
                row.storage.name,
                row.storage.cloud,
                plain(row.provisioned_gb),
                plain(row.node_memory_gb),
                f"{row.load_seconds:.1f}",
                row.monthly_usd,
                row.bill_usd,
                *(row.terms.get(name, "") for name in terms),
            ]
        )
    return out.getvalue().rstrip("\n")


def used_prices(rows: Sequence[Row], prices: Prices) -> dict[str, bool]:
    """Name → checked, of the prices that the rows read."""
    used = {name for row in rows for text in formulas(row.storage).values() for name in names(text)}
    return {name: price.checked for name, price in prices.items() if name in used}


def mixed_regions(rows: Sequence[Row], prices: Prices) -> list[str]:
    """A line for each cloud whose rows read prices of more than one region: their sums are of no place."""
    found: list[str] = []
    for cloud in dict.fromkeys(row.storage.cloud for row in rows):
        used = used_prices([row for row in rows if row.storage.cloud == cloud], prices)
        regions: dict[str, list[str]] = {}
        for name in used:
            regions.setdefault(prices[name].region, []).append(name)
        if len(regions) > 1:
            parts = "; ".join(f"{region}: {', '.join(names)}" for region, names in regions.items())
            found.append(f"{cloud}: prices of {len(regions)} regions stand beside each other ({parts})")
    return found


def explain_text(rows: Sequence[Row], prices: Prices) -> str:
    """Inputs with their sources, each row's formulas with their values, each price with its source."""
    values = rows[0].values
    blocks = ["INPUTS", *(f"  {i.name} = {plain(values[i.name])} {i.unit}".rstrip() + f"  ({i.note})" for i in INPUTS)]
    blocks += ["", "FROM THEM"]
    blocks += [f"  {name} = {text} = {plain(values[name])}" for name, text in DERIVED.items()]
    for row in rows:
        blocks += ["", f"{row.storage.name}: {row.storage.title}", f"  {row.storage.note}"]
        blocks.append(f"  provisioned_gb = {row.storage.provisioned_gb} = {plain(row.provisioned_gb)}")
        blocks.append(f"  node_memory_gb = {row.storage.node_memory_gb} = {plain(row.node_memory_gb)}")
        blocks.append(f"  load_seconds = {row.storage.load_seconds} = {row.load_seconds:.1f}")
        for name, text in formulas(row.storage).items():
            blocks.append(f"  {name} = {text}")
            blocks.append(f"    = {substitute(text, row.values)} = ${row.terms[name]:,}")
        blocks.append(f"  a month: ${row.monthly_usd:,}")
    blocks += ["", "PRICES (list, USD)"]
    for name in used_prices(rows, prices):
        price = prices[name]
        state = f"seen also: {price.seen}" if price.seen else "NOT CHECKED"
        blocks.append(
            f"  {name} = {plain(price.usd)} a {price.unit}, {price.region}, {price.date}; {price.source}; {state}"
        )
    return "\n".join(blocks)
