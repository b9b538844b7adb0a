"""Options that several commands share: one name, one help text, everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onecopy.cli.output import Output

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, progress as JSON lines on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results only.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Home = Annotated[
    Path | None, typer.Option("--home", help="State folder of the local stack. [ONECOPY_HOME]", show_default=False)
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="Configuration file (default: ./onecopy.toml). [ONECOPY_CONFIG]", show_default=False
    ),
]
StoreFlag = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="s3://bucket/prefix, gs://…, az://account/container/…, file:///dir. [ONECOPY_STORE_URI]",
        show_default=False,
    ),
]


def output(*, json: bool = False, quiet: bool = False) -> Output:
    return Output("json" if json else "quiet" if quiet else "human")
