from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from onecopy.cli import options
from onecopy.cli.output import table
from onecopy.core.errors import UsageError
from onecopy.core.units import parse_bytes

command = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Plan what fits on a GPU, and list the cards that are known.",
)


@command.command("plan")
def plan(
    config: Annotated[Path, typer.Option("--config", help="The model's config.json, or the folder it is in.")],
    gpu: Annotated[str, typer.Option("--gpu", help="Card (L4, A100-80GB, H100 …) or instance type (g6.2xlarge …).")],
    weights_bytes: Annotated[
        str | None,
        typer.Option(
            "--weights-bytes",
            help="Size of the checkpoint's tensors (16060522496, 16GB, 15Gi); by default from the safetensors beside "
            "config.json, else estimated.",
        ),
    ] = None,
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="vLLM servers in all.")] = 1,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Cards they are spread over (default: one group).")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option("--tensor-parallel", min=1, help="Cards a replica.")] = 1,
    kv_cache_dtype: Annotated[Literal["auto", "fp8"], typer.Option("--kv-cache-dtype")] = "auto",
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", min=1, help="Exactly this context; by default the longest.")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option("--max-num-seqs", min=1)] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option("--max-num-batched-tokens", min=1)] = None,
    eager: Annotated[bool, typer.Option("--enforce-eager", help="No CUDA graphs: less memory, slower.")] = False,
    json: options.Json = False,
) -> None:
    """Say how many replicas fit and with which settings. Exit code 1 when they do not fit."""
    from onecopy.gpu import find_card, plan_gpu, read_shape
    from onecopy.gpu.checkpoint import weights_beside

    out = options.output(json=json)
    weights = weights_beside(config) if weights_bytes is None else parse_bytes(weights_bytes)
    if weights is not None and weights < 1:
        raise UsageError(f"--weights-bytes must be positive, got {weights_bytes}")
    answer = plan_gpu(
        read_shape(config),
        card=find_card(gpu),
        weights_bytes=weights,
        replicas=replicas,
        gpus=gpus,
        tensor_parallel=tensor_parallel,
        kv_cache_dtype=kv_cache_dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        eager=eager,
    )
    from onecopy.gpu.report import text

    out.data(answer.as_dict(), lambda: text(answer))
    if not answer.fits:
        raise typer.Exit(1)


@command.command("cards")
def show_cards(json: options.Json = False) -> None:
    """List the known cards and the cloud machine types that carry them."""
    from dataclasses import asdict

    from onecopy.gpu import cards, instances

    out = options.output(json=json)
    machines = instances()

    def human() -> str:
        rows = [
            (
                card.name,
                f"{card.memory / 2**30:.1f} GiB",
                f"{card.usable / 2**30:.1f} GiB",
                ", ".join(i.name for i in machines if i.card == card.name and i.cards == 1) or "-",
            )
            for card in cards()
        ]
        return table(("card", "memory", "usable", "one-card instance types"), rows)

    out.data({"cards": [asdict(c) for c in cards()], "instances": [asdict(i) for i in machines]}, human)
