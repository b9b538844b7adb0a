from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onecopy.cli import options, stack
from onecopy.cli.output import table
from onecopy.cli.progress import renderer
from onecopy.core.errors import CloudError, UsageError

if TYPE_CHECKING:
    from onecopy.config.resolve import Resolved
    from onecopy.targets.aws.target import AwsTarget

command = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="What only the AWS target has: policy, kubeconfig, tokens, orphans, prices.",
)


def _target(config: Path | None) -> AwsTarget:
    from onecopy.targets.aws.target import AwsTarget

    return AwsTarget(stack.resolved(config=config, target="aws").config)


@command.command()
def policy(config: options.ConfigFile = None) -> None:
    """Print the IAM policy that plan, apply and destroy need, as JSON. Makes no call."""
    print_policy(stack.resolved(config=config, target="aws"))


def print_policy(resolved: Resolved) -> None:
    """Raises UsageError for any other target."""
    from onecopy.targets.aws.inputs import make_inputs
    from onecopy.targets.aws.permissions import operator_policy

    settings = resolved.config
    if settings.target != "aws":
        raise UsageError(f"the {settings.target} target has no IAM policy", hint="name the other one: --target aws")
    inputs = make_inputs(settings)
    bucket = inputs.store.bucket if inputs.store else f"{settings.name}-models-*"
    options.output(json=True).data(operator_policy(settings.name, bucket, irsa=inputs.identity == "irsa"))


@command.command()
def kubeconfig(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; without it, stdout.")] = None,
    config: options.ConfigFile = None,
) -> None:
    """Write a kubeconfig whose tokens onecopy makes: kubectl needs no aws command, and no secret stands in the file."""
    import json

    from onecopy.targets.aws import eks

    target = _target(config)
    profile = target.config.aws.profile
    if out is not None:
        typer.echo(eks.write_kubeconfig(target.session, target.config.name, out, profile=profile))
        return
    typer.echo(json.dumps(eks.kubeconfig(target.session, target.config.name, profile=profile), indent=1))


@command.command()
def token(
    cluster: Annotated[str, typer.Option("--cluster", help="Name of the EKS cluster.")],
    region: Annotated[str | None, typer.Option("--region", help="Its region.")] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="Profile of ~/.aws/config.")] = None,
) -> None:
    """Print a token for a cluster, as kubectl's credential plugins do. A kubeconfig calls this; it is a secret."""
    from onecopy.targets.aws import eks
    from onecopy.targets.aws.session import Session

    typer.echo(eks.exec_credential(Session(region=region, profile=profile), cluster))


@command.command()
def orphans(
    delete: Annotated[bool, typer.Option("--delete", help="Delete them.")] = False,
    config: options.ConfigFile = None,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """List what a destroyed stack left behind, found by its tags; delete it if told to."""
    sink = options.output(json=json)
    target = _target(config)
    state = target.stacks.read()
    if state is not None and delete:
        raise CloudError(
            f"the stack {target.config.name} is there: what its cluster made is in use",
            hint="`onecopy destroy` removes it all",
        )
    found = target.orphans.find(vpc=target.config.aws.network.vpc_id)
    if state is not None:
        own = {resource.get("PhysicalResourceId") for resource in target.stacks.resources()}
        found = [orphan for orphan in found if orphan.id not in own]
        if found:
            sink.warn(f"the stack {target.config.name} is there: these are in use until it is destroyed")
    rows = [(orphan.kind, orphan.id, orphan.why) for orphan in found]
    listed = [{"kind": kind, "id": name, "why": why} for kind, name, why in rows]
    if delete and found:
        stack.confirm(sink, f"Delete {len(found)}?", yes=yes)
        with renderer(sink) as report:
            left = {orphan.id for orphan in target.orphans.delete(found, report=report)}
        sink.data(
            {"deleted": [o for o in listed if o["id"] not in left], "left": sorted(left)},
            f"deleted {len(found) - len(left)}",
        )
        return
    sink.data({"orphans": listed}, table(["kind", "id", "why"], rows) if rows else "none")


@command.command()
def prices(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; without it, stdout.")] = None,
    region: Annotated[str | None, typer.Option("--region", help="Of the prices (default: the stack's).")] = None,
    instance_type: Annotated[
        list[str] | None, typer.Option("--instance-type", help="Instance types (default: the stack's; repeat).")
    ] = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """Read a region's prices from the AWS price list into a file for `onecopy cost --prices` and `aws.prices`."""
    from onecopy.cost.stack import stack_prices
    from onecopy.targets.aws import prices as price_list
    from onecopy.targets.aws.session import Session

    sink = options.output(json=json)
    aws = stack.resolved(config=config, target="aws").config.aws
    wanted = region or Session(region=aws.region, profile=aws.profile).region
    kinds = instance_type or [*aws.cpu_nodes.instance_types, *aws.gpu_nodes.instance_types]
    session = Session(region=price_list.API_REGION, profile=aws.profile)
    found, missing = price_list.fetch(session, wanted, stack_prices(), kinds)
    for name, why in missing.items():
        sink.warn(f"{name} is left as shipped: {why}")
    text = price_list.as_toml(found)
    if out is not None:
        try:
            out.write_text(text)
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror}") from error
    rows = {name: price.model_dump(mode="json") for name, price in found.items()}
    done = f"wrote {len(found)} prices of {wanted} to {out}; `onecopy cost --prices {out}` takes them"
    sink.data({"region": wanted, "prices": rows, "missing": missing}, text.rstrip() if out is None else done)
