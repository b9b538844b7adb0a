"""A plan as text for people."""

from __future__ import annotations

from onecopy.gpu.memory import format_gib
from onecopy.gpu.plan import GpuPlan

_TERMS = {
    "weights": "weights",
    "activations": "activations and fragments",
    "graphs": "CUDA graphs",
    "libraries": "libraries",
    "context": "CUDA context",
    "kv_cache": "KV cache",
    "spare": "spare",
}


def text(plan: GpuPlan) -> str:
    lines = [f"{'fits' if plan.fits else 'does not fit'}: {plan.reason}", ""]
    lines.append(f"one replica on a {plan.gpu} ({format_gib(plan.memory['share'])} of it)")
    lines += [f"  {label:<28}{format_gib(plan.memory[term]):>12}" for term, label in _TERMS.items()]
    if plan.fits:
        lines += [
            "",
            f"replicas that fit on one card     {plan.max_replicas_per_card}",
            f"max_model_len                     {plan.max_model_len}",
            f"requests of that length at once   {plan.concurrency}",
            f"KV cache                          {plan.kv_cache_tokens} tokens, {plan.kv_bytes_per_token} bytes each",
            f"start                             {plan.start.order}; roll out by {plan.start.rollout}",
            "",
            "vllm serve " + " ".join(plan.vllm_args()),
        ]
    lines += [f"note: {note}" for note in plan.notes]
    if plan.suggestions:
        lines += ["", "what would fit:"]
        lines += [f"  - {s.change} (context {s.max_model_len})" for s in plan.suggestions]
    return "\n".join(lines)
