"""The catalogue of cards and cloud instance types: data with a date and a source for each entry (`data/cards.toml`).

A card's `memory` is what nvidia-smi prints as the total; `usable` is what a CUDA program may have of it, the figure
that `gpu_memory_utilization` is a part of.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from onecopy.core.errors import UsageError
from onecopy.core.units import GiB, MiB

LARGE_CARD = 70 * GiB
"""From here on vLLM's own defaults are larger, but for the A100 (its `get_batch_defaults`)."""


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    memory: int
    """Bytes, as nvidia-smi says."""
    usable: int
    """Bytes that a CUDA program sees."""
    fp8: bool
    """Has FP8 arithmetic; an FP8 KV cache also works without, by conversion, from Ampere on."""
    bf16: bool
    source: str
    checked: str
    """ISO date of the look-up."""

    @property
    def batched_tokens(self) -> int:
        """vLLM's default for a server, by the card."""
        if self.memory >= 160 * GiB:
            return 16384
        return 8192 if self._large else 2048

    @property
    def sequences(self) -> int:
        return 1024 if self._large else 256

    @property
    def _large(self) -> bool:
        return self.usable >= LARGE_CARD and not self.name.startswith("A100")


@dataclass(frozen=True, slots=True)
class Instance:
    """A machine type of a cloud."""

    cloud: str
    name: str
    card: str
    cards: int
    cpus: int
    memory_gib: int
    source: str
    checked: str


@cache
def _catalogue() -> dict[str, Any]:
    return tomllib.loads((resources.files("onecopy.gpu") / "data/cards.toml").read_text())


@cache
def cards() -> tuple[Card, ...]:
    """All known cards, smallest first."""
    table = _catalogue()
    found = [
        Card(
            name=entry["name"],
            memory=entry["memory_mib"] * MiB,
            usable=int(entry["usable_gib"] * GiB),
            fp8=entry["fp8"],
            bf16=entry["bf16"],
            source=entry["source"],
            checked=table["checked"],
        )
        for entry in table["card"]
    ]
    return tuple(sorted(found, key=lambda card: card.usable))


@cache
def instances() -> tuple[Instance, ...]:
    table = _catalogue()
    return tuple(
        Instance(
            cloud=family["cloud"],
            name=row["name"],
            card=family["card"],
            cards=row["cards"],
            cpus=row["cpus"],
            memory_gib=row["memory_gib"],
            source=family["source"],
            checked=table["checked"],
        )
        for family in table["family"]
        for row in family["types"]
    )


def find_card(name: str) -> Card:
    """By its name or a cloud instance type that carries it. Raises UsageError with the nearest names."""
    by_name = {card.name.lower(): card for card in cards()}
    wanted = name.strip().lower().removeprefix("nvidia-").replace("_", "-").replace(" ", "-")
    wanted = _ALIASES.get(wanted, wanted)
    if wanted in by_name:
        return by_name[wanted]
    for instance in instances():
        if instance.name.lower() == name.strip().lower():
            return by_name[instance.card.lower()]
    near = difflib.get_close_matches(wanted, [*by_name, *(i.name.lower() for i in instances())], n=3, cutoff=0.5)
    raise UsageError(
        f"unknown GPU {name!r}",
        hint=f"did you mean {', '.join(near)}? " * bool(near) + "`onecopy gpu cards` shows all",
    )


_ALIASES = {
    "tesla-t4": "t4",
    "a100": "a100-80gb",
    "a100-40": "a100-40gb",
    "a100-80": "a100-80gb",
    "a100-sxm4-40gb": "a100-40gb",
    "a100-sxm4-80gb": "a100-80gb",
    "a100-pcie-40gb": "a100-40gb",
    "a100-pcie-80gb": "a100-80gb",
    "v100": "v100-16gb",
    "h100-80gb": "h100",
    "h100-sxm": "h100",
    "h100-80gb-hbm3": "h100",
    "h100-sxm5-80gb": "h100",
    "geforce-rtx-3090": "rtx-3090",
    "3090": "rtx-3090",
    "geforce-rtx-4090": "rtx-4090",
    "4090": "rtx-4090",
    "rtx-a6000": "a6000",
}
"""As the NVIDIA device plugin's label and people call them."""
