"""The same model as one HTML file that needs nothing else: the formulas go in as JavaScript, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources

from onecopy.cost.declarations import CLOUDS, DERIVED, GROUPS, INPUTS, STORAGES
from onecopy.cost.formula import javascript
from onecopy.cost.model import checked_inputs, formulas
from onecopy.cost.prices import Prices


def html(given: Mapping[str, object], prices: Prices, *, cloud: str = "all") -> str:
    """The page, set to these inputs and prices. `cloud`: whose rows it shows first."""
    values = checked_inputs(given)
    data = {
        "inputs": [
            {name: float(v) if name in _NUMBERS else v for name, v in asdict(i).items()}
            | {"value": float(values[i.name])}
            for i in INPUTS
        ],
        "derived": DERIVED,
        "storages": [asdict(s) | {"terms": formulas(s)} for s in STORAGES],
        "prices": {n: p.model_dump(mode="json") | {"usd": float(p.usd)} for n, p in prices.items()},
        "groups": GROUPS,
        "clouds": CLOUDS,
        "cloud": "aws" if cloud == "all" else cloud,
    }
    # `</script>` in a text would end the script: JSON may write `<` as an escape
    script = f"const MODEL = {json.dumps(data, ensure_ascii=False).replace('<', chr(92) + 'u003c')};\n{_formulas()}"
    template = resources.files("onecopy.cost").joinpath("data/page.html").read_text()
    return template.replace("/*MODEL*/", script, 1)


_NUMBERS = {"default", "low", "high", "step"}


def _formulas() -> str:
    def arrow(text: str) -> str:
        return f"v => {javascript(text)}"

    lines = ["const DERIVED = {"]
    lines += [f"  {name}: {arrow(text)}," for name, text in DERIVED.items()]
    lines += ["};", "const STORAGES = {"]
    for storage in STORAGES:
        terms = ", ".join(f"{name}: {arrow(text)}" for name, text in formulas(storage).items())
        lines.append(
            f"  {json.dumps(storage.name)}: {{ provisioned_gb: {arrow(storage.provisioned_gb)}, "
            f"node_memory_gb: {arrow(storage.node_memory_gb)}, load_seconds: {arrow(storage.load_seconds)}, terms: {{ {terms} }} }},"
        )
    return "\n".join([*lines, "};"])
