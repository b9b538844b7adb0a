from __future__ import annotations

import onecopy
from onecopy.cli import options


def command(json: options.Json = False) -> None:
    """Print the version."""
    options.output(json=json).data({"version": onecopy.__version__}, onecopy.__version__)
