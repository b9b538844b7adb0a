"""Evaluates the declarations: inputs and prices in, one row a storage kind out. Money is decimal, terms are cents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from onecopy.core.errors import UsageError
from onecopy.cost.declarations import DERIVED, IDLE, INPUTS, STORAGES, Storage
from onecopy.cost.formula import cents, evaluate
from onecopy.cost.prices import Prices, default_prices

IDLE_TERM = "idle_gpu"


@dataclass(frozen=True, slots=True)
class Row:
    """What one storage kind costs a month. terms: name → USD; monthly_usd is their sum, bill_usd the sum without the
    GPU that waits. load_seconds: one replica's, on a node that has not the weights."""

    storage: Storage
    provisioned_gb: Decimal
    load_seconds: Decimal
    terms: dict[str, Decimal]
    values: dict[str, Decimal]
    """Everything that this row's formulas read."""

    @property
    def node_memory_gb(self) -> Decimal:
        return evaluate(self.storage.node_memory_gb, self.values)

    @property
    def monthly_usd(self) -> Decimal:
        return sum(self.terms.values(), Decimal(0))

    @property
    def bill_usd(self) -> Decimal:
        return self.monthly_usd - self.terms[IDLE_TERM]

    def as_dict(self) -> dict[str, object]:
        """Numbers as JSON has them; cents survive that."""
        return {
            "storage": self.storage.name,
            "cloud": self.storage.cloud,
            "title": self.storage.title,
            "provisioned_gb": float(self.provisioned_gb),
            "node_memory_gb": float(self.node_memory_gb),
            "load_seconds": round(float(self.load_seconds), 1),
            "monthly_usd": float(self.monthly_usd),
            "bill_usd": float(self.bill_usd),
            "terms": {name: float(usd) for name, usd in self.terms.items()},
            "note": self.storage.note,
        }


def defaults() -> dict[str, Decimal]:
    return {given.name: given.default for given in INPUTS}


def checked_inputs(given: Mapping[str, object]) -> dict[str, Decimal]:
    """The defaults with `given` in their place. Raises UsageError for an unknown name or a value out of its range."""
    values = defaults()
    known = {item.name: item for item in INPUTS}
    for name, raw in given.items():
        if name not in known:
            raise UsageError(f"no input is called {name!r}", hint=f"there are: {', '.join(known)}")
        item = known[name]
        try:
            value = Decimal(str(raw))
        except InvalidOperation as error:
            raise UsageError(f"{name}: not a number: {raw!r}") from error
        if not value.is_finite() or value < 0 or (value == 0 and not item.may_be_zero):
            raise UsageError(
                f"{name} must be {'zero or more' if item.may_be_zero else 'more than zero'}, got {raw}",
                hint=f"{item.label}: {item.note}",
            )
        values[name] = value
    if values["nodes"] > values["replicas"]:
        raise UsageError(
            f"{values['nodes']} nodes are more than {values['replicas']} replicas",
            hint="count only the nodes that serve this model",
        )
    return values


def compute(
    given: Mapping[str, object] | None = None, prices: Prices | None = None, *, cloud: str = "all"
) -> list[Row]:
    """One row a storage kind, in the declarations' order. Raises UsageError for inputs that make no sense."""
    values = checked_inputs(given or {})
    values |= {name: price.usd for name, price in (prices if prices is not None else default_prices()).items()}
    for name, text in DERIVED.items():
        values[name] = evaluate(text, values)
    return [_row(storage, dict(values)) for storage in STORAGES if cloud in ("all", storage.cloud)]


def formulas(storage: Storage) -> dict[str, str]:
    """A row's terms by name, with the GPU that waits."""
    return {**storage.terms, IDLE_TERM: IDLE}


def _row(storage: Storage, values: dict[str, Decimal]) -> Row:
    values["provisioned_gb"] = evaluate(storage.provisioned_gb, values)
    values["load_seconds"] = evaluate(storage.load_seconds, values)
    terms = {name: cents(evaluate(text, values)) for name, text in formulas(storage).items()}
    return Row(storage, values["provisioned_gb"], values["load_seconds"], terms, values)
