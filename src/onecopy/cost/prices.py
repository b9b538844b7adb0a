"""The price table: list prices with region, date and source, as data; a file of the user's goes over it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onecopy.core.errors import ConfigError


class Price(BaseModel):
    """One price. usd: for one `unit`. source: where its owner publishes it. seen: another text with the same number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    usd: Decimal = Field(ge=0)
    unit: str
    region: str
    date: str
    source: str
    seen: str | None = None

    @property
    def checked(self) -> bool:
        return self.seen is not None


Prices = Mapping[str, Price]


def default_prices() -> dict[str, Price]:
    """The list prices that are shipped."""
    text = resources.files("onecopy.cost").joinpath("data/prices.toml").read_text()
    return {name: Price.model_validate(table) for name, table in read_tables(text).items()}


def overlaid(prices: Prices, override: Path, *, instance: Price | None = None) -> dict[str, Price]:
    """`prices` with the file's in their place; it may give only what it changes, down to one field.

    instance: from what an instance type that is not there yet starts. Raises ConfigError for an unknown price, an
    unknown or missing field, or a file that is no TOML.
    """
    try:
        tables = read_tables(override.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read prices from {override}: {error}") from error
    found = dict(prices)
    for name, table in tables.items():
        old = found.get(name) or (instance if "." in name else None)
        if old is None:
            listed = ", ".join(sorted(known for known in prices if "." not in known))
            raise ConfigError(f"{override}: no price is called {name!r}", hint=f"there are: {listed}")
        # a number of the user's own has the user's file as its source, unless it names another
        origin = {"source": str(override), "seen": None, **table} if "usd" in table else table
        try:
            found[name] = Price.model_validate(old.model_dump() | origin)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, (name, *first["loc"])))
            raise ConfigError(f"{override}: {where}: {first['msg']}, got {first['input']!r}") from error
    return found


def read_tables(text: str) -> dict[str, dict[str, Any]]:
    tables = tomllib.loads(text, parse_float=Decimal)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"prices: {name} is not a table", hint=f"write it as [{name}] with usd = …")
    return tables
