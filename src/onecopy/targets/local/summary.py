"""The stack in figures, as people read it: what N private copies would have cost, and what one copy did."""

from __future__ import annotations

from pathlib import Path

from onecopy.core.units import format_bytes, format_seconds
from onecopy.engine import memory
from onecopy.targets.local.home import QUESTION, State

_PHASES = ("tools", "store", "publish", "fill", "engine", "engine_wait", "replicas", "answer")


def live(state: State) -> State:
    """The state with what changes from minute to minute measured now."""
    leaders = [process.pid for process in state.processes if process.name.startswith("replica-")]
    if not leaders or state.cache is None:
        return state
    return state.model_copy(update={"weight_bytes_resident": memory.weights(leaders, [Path(state.cache)]).pss})


def as_text(state: State) -> str:
    lines = [f"{'state':<10}{state.state}"]
    if state.error:
        lines.append(f"{'error':<10}{state.error}")
    for label, value in (("endpoint", state.endpoint and f"{state.endpoint}/v1"), ("model", state.model), ("revision", state.revision),
                         ("store", state.store), ("cache", state.cache)):  # fmt: skip
        if value:
            lines.append(f"{label:<10}{value}")
    for replica in state.replicas:
        extra = f", {replica.restarts} restarts" if replica.restarts else ""
        ready = f", ready in {replica.ready_seconds:.1f} s" if replica.ready_seconds else ""
        problem = f": {replica.error}" if replica.error else ""
        lines.append(
            f"{replica.name:<10}{replica.state:<11}pid {replica.pid or '-'}, {replica.endpoint}{ready}{extra}{problem}"
        )
    count = len(state.replicas)
    if state.checkpoint_bytes and state.store_bytes_read is not None and count:
        one = state.checkpoint_bytes
        lines += [
            "",
            f"{'read from the store':<24}{format_bytes(state.store_bytes_read):>10}   {_ratio(state.store_bytes_read, one)} × the checkpoint; "
            f"{count} private copies: {format_bytes(one * count)}",
        ]
        if state.weight_bytes_resident is not None:
            resident = state.weight_bytes_resident
            lines.append(
                f"{'weights in memory':<24}{format_bytes(resident):>10}   {_ratio(resident, one)} × the checkpoint, all {count} "
                f"replicas together; private copies: {format_bytes(one * count)}"
            )
    if state.phases:
        total = state.phases.get("total")
        shown = ", ".join(f"{name} {state.phases[name]:.1f}" for name in _PHASES if name in state.phases)
        lines.append(f"{'to the first answer':<24}{format_seconds(total) if total else '-':>10}   {shown}")
    if state.answer:
        lines += ["", f"> {QUESTION}", state.answer]
    return "\n".join(lines)


def _ratio(value: int, base: int) -> str:
    return f"{value / base:.2f}"
