from __future__ import annotations

from onecopy.cli import options, stack


def command(config: options.ConfigFile = None, target: stack.TargetFlag = None, json: options.Json = False) -> None:
    """Print what other tools need: endpoints, namespace, store, models and revisions. No secrets."""
    outputs = stack.open_target(stack.resolved(config=config, target=target)).outputs()
    options.output(json=json).data(outputs, stack.outputs_text(outputs))
