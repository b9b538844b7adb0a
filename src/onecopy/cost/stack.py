"""What a stack's own parts cost a month: lines of quantity × list price, and what changes.

A part whose price is not in the list has no number: it is named, and the sum says that it lacks it. What is paid by use
(traffic, logs, storage that is not known) is told with its price, and is in no sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from onecopy.cost.formula import cents, plain
from onecopy.cost.prices import Price, Prices, default_prices, overlaid, read_tables

HOURS = 730
"""Of a month, as the clouds' own calculators count them."""
_INSTANCES = "instances"


def stack_prices(override: Path | None = None) -> dict[str, Price]:
    """The whole list, instance types by their names. Raises ConfigError for an override that is wrong."""
    tables: dict[str, Any] = read_tables(resources.files("onecopy.cost").joinpath("data/stack.toml").read_text())
    instances = dict(tables.pop(_INSTANCES))
    hours: dict[str, Decimal] = instances.pop("usd_hour")
    prices = {
        **default_prices(),
        **{name: Price.model_validate(table) for name, table in tables.items()},
        **{kind: Price(usd=usd, unit="instance-hour, on demand, Linux", **instances) for kind, usd in hours.items()},
    }
    if override is None:
        return prices
    return overlaid(prices, override, instance=prices[next(iter(hours))])


def load_prices(override: Path | None = None) -> dict[str, Price]:
    """The prices of weights' storage, with those of `override` in their place. The file may hold any of the whole list.

    Raises ConfigError as `stack_prices` does.
    """
    default = default_prices()
    return {name: price for name, price in stack_prices(override).items() if name in default} if override else default


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Part(_Model):
    """Something that is billed. count × each (hours, GB) × the price of that name."""

    what: str
    price: str
    count: Decimal = Decimal(1)
    each: Decimal = Decimal(1)
    note: str | None = None


class CostLine(_Model):
    what: str
    quantity: str
    price: str
    usd: float | None
    """A month; None when the list has no such price."""
    note: str | None = None


class MonthlyCost(_Model):
    region: str
    """Of the stack."""
    prices_from: tuple[str, ...]
    """Regions whose list prices were taken, with their dates."""
    lines: tuple[CostLine, ...]
    usd: float
    """Sum of the lines that have a price."""
    before_usd: float
    """The same for what stands now."""
    unknown: tuple[str, ...] = ()
    """Parts without a price."""
    by_use: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    """Prices that no second text confirms."""

    def warnings(self) -> list[str]:
        found: list[str] = []
        if any(not source.startswith(f"{self.region} ") for source in self.prices_from):
            found.append(
                f"the cost is at list prices of {', '.join(self.prices_from)}; those of {self.region} are not in the table:"
                " `aws.prices` takes a file of them"
            )
        if self.unknown:
            found.append(f"no price is known for {', '.join(self.unknown)}: the monthly sum lacks it")
        if self.unchecked:
            found.append(f"prices not checked against a second text: {', '.join(self.unchecked)}")
        return found

    def text(self) -> str:
        width = max((len(line.what) for line in self.lines), default=0)
        wide = max((len(line.quantity) for line in self.lines), default=0)
        rows = [f"cost a month, at list prices of {', '.join(self.prices_from) or 'no region'}:"]
        for line in self.lines:
            money = "no price" if line.usd is None else f"${line.usd:,.2f}"
            note = f"  ({line.note})" if line.note else ""
            rows.append(f"  {line.what.ljust(width)}  {line.quantity.ljust(wide)}  {money:>11}{note}")
        change = self.usd - self.before_usd
        less = f", without {len(self.unknown)} that have no price" if self.unknown else ""
        moves = f"now ${self.before_usd:,.2f}, {'+' if change >= 0 else '−'}${abs(change):,.2f}" if change else "as now"
        rows.append(f"  {'together'.ljust(width)}  {''.ljust(wide)}  {f'${self.usd:,.2f}':>11}  ({moves}{less})")
        if self.by_use:
            rows.append(f"  and by use: {'; '.join(self.by_use)}")
        return "\n".join(rows)


def monthly_cost(
    parts: Iterable[Part], before: Iterable[Part], prices: Prices, *, region: str, by_use: Mapping[str, str]
) -> MonthlyCost:
    """by_use: what nobody knows the amount of beforehand → its price's name."""
    lines = tuple(_line(part, prices) for part in parts)
    named = [*(line.price for line in lines), *by_use.values()]
    used = {name: prices[name] for name in named if name in prices}
    return MonthlyCost(
        region=region,
        prices_from=tuple(dict.fromkeys(f"{price.region} ({price.date[:4]})" for price in used.values())),
        lines=lines,
        usd=_sum(lines),
        before_usd=_sum(_line(part, prices) for part in before),
        unknown=tuple(dict.fromkeys(line.price for line in lines if line.usd is None)),
        by_use=tuple(
            f"{what} ${plain(prices[name].usd)} a {prices[name].unit.split()[0].rstrip(',')}"
            for what, name in by_use.items()
        ),
        unchecked=tuple(name for name, price in used.items() if not price.checked),
    )


def _line(part: Part, prices: Prices) -> CostLine:
    price = prices.get(part.price)
    each = f"{plain(part.each)} {_unit(price.unit if price else 'instance-hour')}"
    return CostLine(
        what=part.what,
        quantity=f"{plain(part.count)} × {each}",
        price=part.price,
        usd=float(cents(part.count * part.each * price.usd)) if price else None,
        note=part.note,
    )


def _unit(text: str) -> str:
    """h of a thing's hours; else the unit as the list has it."""
    return "h" if "-hour" in text else "GB" if text.startswith("GB-month") else "month"


def _sum(lines: Iterable[CostLine]) -> float:
    return float(sum((Decimal(str(line.usd)) for line in lines if line.usd is not None), Decimal(0)))
