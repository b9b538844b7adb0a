"""The formulas' language: names, decimal numbers, + - * /, parentheses, max, min and ceil.

An expression is at once Python and JavaScript. Here it is evaluated in decimals; the HTML page evaluates the same text
in doubles, where `ceil` forgives the last few bits (see data/page.html). Names are checked when the model is declared.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from functools import lru_cache

Values = Mapping[str, Decimal]
CENT = Decimal("0.01")


def _ceil(value: Decimal) -> Decimal:
    return value.to_integral_value(ROUND_CEILING)


_CALLS: dict[str, Callable[..., Decimal]] = {"max": max, "min": min, "ceil": _ceil}


def cents(value: Decimal) -> Decimal:
    """Rounded to the cent, half up, as a bill is."""
    return value.quantize(CENT, ROUND_HALF_UP)


@lru_cache(maxsize=1024)
def parse(text: str) -> ast.expr:
    """Raises ValueError for what is not in the language."""
    tree = ast.parse(text, mode="eval").body
    _check(tree, text)
    return tree


def names(text: str) -> set[str]:
    """The names that an expression reads."""
    found = {node.id for node in ast.walk(parse(text)) if isinstance(node, ast.Name)}
    return found - _CALLS.keys()


def evaluate(text: str, values: Values) -> Decimal:
    """Raises KeyError for an unknown name."""
    return _value(parse(text), values)


def substitute(text: str, values: Values) -> str:
    """The expression with its names replaced by their values, for people."""
    return _replace(text, lambda name: plain(values[name]))


def javascript(text: str) -> str:
    """The expression as JavaScript over an object `v`, for the page, whose policy forbids it to evaluate text."""
    return _replace(text, lambda name: f"v.{name}")


def _replace(text: str, by: Callable[[str], str]) -> str:
    found = [n for n in ast.walk(parse(text)) if isinstance(n, ast.Name) and n.id not in _CALLS]
    for node in sorted(found, key=lambda n: n.col_offset, reverse=True):
        text = f"{text[: node.col_offset]}{by(node.id)}{text[node.end_col_offset :]}"
    return text


def plain(value: Decimal) -> str:
    """A decimal without an exponent and without trailing zeros, at most ten places."""
    text = f"{value:.10f}"
    return text.rstrip("0").rstrip(".")


def _check(node: ast.expr, text: str) -> None:
    match node:
        case ast.Name():
            return
        case ast.Constant(value=int() | float()):
            return
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            _check(left, text)
            _check(right, text)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _CALLS:
            for arg in args:
                _check(arg, text)
        case _:
            raise ValueError(f"not in the formulas' language: {ast.unparse(node)!r} in {text!r}")


def _value(node: ast.expr, values: Values) -> Decimal:
    match node:
        case ast.Name(id=name):
            return values[name]
        case ast.Constant(value=number):
            return Decimal(str(number))
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, values), _value(right, values)
            if isinstance(op, ast.Add):
                return a + b
            if isinstance(op, ast.Sub):
                return a - b
            return a * b if isinstance(op, ast.Mult) else a / b
        case ast.Call(func=ast.Name(id=name), args=args):
            return _CALLS[name](*(_value(arg, values) for arg in args))
        case _:
            raise AssertionError(f"unchecked expression: {ast.dump(node)}")
