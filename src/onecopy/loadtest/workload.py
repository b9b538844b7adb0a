"""What is asked: sessions of one or more rounds, drawn from a seed, so that two runs ask the same.

Prompts are words that common tokenizers keep whole, so that words are nearly tokens; the report counts what the server
says it read. Every session begins differently, or a prefix cache would answer for the model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from onecopy.core.errors import UsageError

Shape = Literal["fixed", "sharegpt", "multi-round"]

SHAREGPT_INPUT, SHAREGPT_OUTPUT = 161.31, 337.99
"""Mean tokens of ShareGPT's prompts and answers (Kwon et al. 2023, arXiv 2309.06180, section 6.1)."""
SHAREGPT_SIGMA = 1.1
"""Spread of the lognormal lengths: most are short, a few ten times the mean, as in the data set's histogram."""
SHORTEST = 4

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
    "teacher",
    "force",
    "education",
]


@dataclass(frozen=True, slots=True)
class Workload:
    """input_tokens and output_tokens: of each round (means for `sharegpt`). prefix_tokens: shared by all sessions."""

    shape: Shape = "fixed"
    input_tokens: int = 64
    output_tokens: int = 32
    rounds: int = 1
    prefix_tokens: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.input_tokens, self.output_tokens, self.rounds) < 1 or self.prefix_tokens < 0:
            raise UsageError("tokens and rounds of a workload must be positive")


@dataclass(frozen=True, slots=True)
class Round:
    prompt: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation: each round is asked when the one before is answered, with all of it as context."""

    number: int
    system: str | None
    rounds: tuple[Round, ...]


def sessions(workload: Workload, requests: int, *, limit: int | None = None) -> Iterator[Session]:
    """Sessions that hold `requests` rounds in all. limit: tokens of one whole conversation (the server's context)."""
    draw = random.Random(workload.seed)  # noqa: S311 - a workload, not a secret
    system = _words(random.Random(-1), workload.prefix_tokens) if workload.prefix_tokens else None  # noqa: S311
    left, number = requests, 0
    while left > 0:
        count = min(left, workload.rounds)
        room = None if limit is None else max(2 * SHORTEST, (limit - workload.prefix_tokens) // count - _MARGIN)
        rounds = tuple(_round(workload, draw, f"{workload.seed}.{number}.{i}", room) for i in range(count))
        yield Session(number, system, rounds)
        left -= count
        number += 1


_MARGIN = 24
"""Tokens of the chat template and of the words that are two tokens."""


def _round(workload: Workload, draw: random.Random, tag: str, room: int | None) -> Round:
    asked, answered = float(workload.input_tokens), float(workload.output_tokens)
    if workload.shape == "sharegpt":
        asked, answered = _lognormal(draw, asked), _lognormal(draw, answered)
    if room is not None and asked + answered > room:
        shrink = room / (asked + answered)
        asked, answered = asked * shrink, answered * shrink
    return Round(f"[{tag}] {_words(draw, max(SHORTEST, int(asked)))}", max(SHORTEST, int(answered)))


def _lognormal(draw: random.Random, mean: float) -> float:
    return draw.lognormvariate(math.log(mean) - SHAREGPT_SIGMA**2 / 2, SHAREGPT_SIGMA)


def _words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(count))
