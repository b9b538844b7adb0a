"""The AWS target: a stack's account half by CloudFormation, then its cluster half by the Kubernetes target.

Order of an apply: change set → (Calico → nodes) → charts → Kubernetes target. Of a destruction: the same backwards, so
that controllers remove their load balancers while they still can. Every step can be stopped and taken up again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecopy.config.schema import StackConfig
from onecopy.core.errors import CloudError, OnecopyError, StackError, UsageError
from onecopy.core.events import Event, Reporter, silent
from onecopy.core.paths import default_home
from onecopy.targets.aws import changes
from onecopy.targets.aws.costs import plan_cost
from onecopy.targets.aws.eks import write_kubeconfig
from onecopy.targets.aws.inputs import Choices, Inputs, make_inputs
from onecopy.targets.aws.orphans import Orphans
from onecopy.targets.aws.preflight import Preflight
from onecopy.targets.aws.report import Report
from onecopy.targets.aws.session import Session
from onecopy.targets.aws.stacks import POLL, ChangeSet, Stacks, StackState, digest
from onecopy.targets.aws.template import build_template
from onecopy.targets.base import Change, Drift, FieldChange, PartStatus, Plan, Rendered, Status, fingerprint
from onecopy.targets.preflight import Finding, from_error

if TYPE_CHECKING:
    from onecopy.cost.stack import MonthlyCost
    from onecopy.targets.aws.workloads import Workloads

LOAD_BALANCER_DEADLINE = 600.0


@dataclass(frozen=True, slots=True)
class Proposal:
    plan: Plan
    change_set: ChangeSet
    template: Mapping[str, Any]
    inputs: Inputs
    state: StackState | None
    refused: tuple[str, ...]


class AwsTarget:
    """See `onecopy.targets.base.Target`. poll: seconds between two looks at what AWS does."""

    name = "aws"

    def __init__(self, config: StackConfig, *, poll: float = POLL, session: Session | None = None) -> None:
        self.config = config
        make_inputs(config)  # what cannot work is refused before any call
        self._poll = poll
        self._opened = session

    @property
    def session(self) -> Session:
        if self._opened is None:
            self._opened = Session(region=self.config.aws.region, profile=self.config.aws.profile)
        return self._opened

    @property
    def stacks(self) -> Stacks:
        return Stacks(self.session, self.config.name, poll=self._poll)

    @property
    def orphans(self) -> Orphans:
        return Orphans(self.session, self.config.name, poll=self._poll)

    def plan(self, *, destroy: bool = False, rollback: bool = False) -> Plan:
        if destroy:
            return self._plan_destroy()
        proposal = self._propose(rollback=rollback)
        self.stacks.discard(proposal.change_set)
        return proposal.plan

    def apply(self, plan: Plan, *, report: Reporter = silent) -> None:
        state = self.stacks.read()
        if state is not None and state.status == "UPDATE_ROLLBACK_FAILED":
            self.stacks.continue_rollback(report=report)
        proposal = self._propose(rollback=plan.rollback)
        try:
            plan.check_current(proposal.plan)
            if proposal.refused:
                raise StackError(
                    proposal.refused[0], hint="take the change back, or destroy the stack and make it anew"
                )
        except StackError:
            self.stacks.discard(proposal.change_set)
            raise
        self.stacks.execute(proposal.change_set, report=report, total=len(proposal.change_set.changes))
        if not self.config.aws.workloads:
            return
        workloads = self._workloads(proposal.inputs)
        if proposal.inputs.is_calico:
            self._nodes_after_calico(proposal, workloads, report)
        workloads.apply(rollback=plan.rollback, report=report)

    def destroy(self, plan: Plan, *, delete_models: frozenset[str] = frozenset(), report: Reporter = silent) -> None:
        plan.check_current(self._plan_destroy())
        state = self.stacks.read()
        if state is not None:
            self._destroy_workloads(state, delete_models, report)
            self._delete_stack(report)
        elif delete_models:
            raise UsageError("there is no stack, so no model of it either", hint="`onecopy model delete`")
        left = self.orphans.delete(self.orphans.find(vpc=self.config.aws.network.vpc_id), report=report)
        if left:
            names = ", ".join(f"{orphan.kind} {orphan.id}" for orphan in left)
            raise StackError(f"left behind, and still in use: {names}", hint="`onecopy destroy` tries again")
        if state is not None and "BucketName" in state.outputs:
            report(Event("bucket", "skipped", f"kept: s3://{state.outputs['BucketName']}"))

    def status(self) -> Status:
        state = self.stacks.read()
        if state is None:
            missing = PartStatus(kind="CloudFormation stack", name=self.config.name, health="missing")
            return Status(target="aws", stack=self.config.name, parts=(missing,))
        health = "progressing" if state.in_progress else "failed" if "FAILED" in state.status else "ready"
        health = "failed" if state.must_go else health
        reason = None if health == "ready" else f"{state.status}: {state.reason}".rstrip(": ")
        parts = [PartStatus(kind="CloudFormation stack", name=self.config.name, health=health, reason=reason)]
        if not self.config.aws.workloads or "ClusterEndpoint" not in state.outputs:
            return Status(target="aws", stack=self.config.name, parts=tuple(parts))
        try:
            below = self._workloads(self._inputs(state), state).status()
        except CloudError as error:
            why = f"{error.message}; is this machine's address in aws.cluster.public_cidrs?"
            parts.append(PartStatus(kind="EKS cluster", name=self.config.name, health="failed", reason=why))
            return Status(target="aws", stack=self.config.name, parts=tuple(parts))
        return Status(
            target="aws",
            stack=self.config.name,
            parts=(*parts, *below.parts),
            weights=below.weights,
            endpoints=below.endpoints,
        )

    def outputs(self) -> dict[str, Any]:
        """Raises StackError when there is no stack."""
        state = self._required_state()
        made: dict[str, Any] = {"aws": dict(sorted(state.outputs.items()))}
        if "ClusterEndpoint" in state.outputs:
            made["kubeconfig"] = "onecopy aws kubeconfig --out kubeconfig"
            if self.config.aws.workloads:
                made.update(self._workloads(self._inputs(state), state).outputs())
        return made

    def render(self, out: Path) -> Rendered:
        calico = self.config.aws.cluster.cni == "calico"
        inputs = make_inputs(self.config, Choices(api_cidrs=self.config.aws.cluster.public_cidrs, nodes=not calico))
        out.mkdir(parents=True, exist_ok=True)
        templates = {"template.json": inputs, **({"template-nodes.json": _with_nodes(inputs)} if calico else {})}
        files = [out / name for name in templates]
        for path, made in zip(files, templates.values(), strict=True):
            path.write_text(json.dumps(build_template(made), indent=1) + "\n", encoding="utf-8")
        warnings: list[str] = []
        if not inputs.choices.api_cidrs:
            warnings.append(
                "aws.cluster.public_cidrs is not set: the template's API server answers inside its VPC alone"
                " (`onecopy apply` opens it to the address that it is run from)"
            )
        if calico:
            warnings.append(
                "template.json makes no nodes: install Calico, then update the stack to template-nodes.json"
            )
        if not self.config.aws.workloads:
            return Rendered(files=tuple(files), warnings=tuple(warnings))
        from onecopy.targets.aws.workloads import Workloads, cluster_config

        below = Workloads(inputs, cluster_config(inputs, {}, None, region=self.config.aws.region), {}).render(out)
        return Rendered(files=(*files, *below.files), warnings=(*warnings, *below.warnings))

    def drift(self) -> tuple[Drift, ...]:
        """Resources that were changed behind the stack's back. Asks AWS to compare: takes a minute."""
        self._required_state()
        return tuple(
            Drift(
                kind=found["ResourceType"],
                name=found["LogicalResourceId"],
                status=found["StackResourceDriftStatus"],
                fields=tuple(
                    FieldChange(path=d["PropertyPath"].lstrip("/"), before=d["ExpectedValue"], after=d["ActualValue"])
                    for d in found.get("PropertyDifferences", [])
                ),
            )
            for found in self.stacks.drift()
        )

    def examine(self) -> list[Finding]:
        """Everything that can be said of the account before an apply. Changes nothing."""
        try:
            state = self.stacks.read()
            _refuse_state(state, self.config.name)
            checks, _ = self._choose(state)
        except OnecopyError as error:
            return [from_error("account", error)]
        if not self.config.aws.workloads or state is None or "ClusterEndpoint" not in state.outputs:
            return checks.findings
        from onecopy.targets.kubernetes import doctor

        try:
            return [*checks.findings, *doctor.examine(self._workloads(self._inputs(state), state).target)]
        except OnecopyError as error:
            return [*checks.findings, from_error("cluster", error)]

    def _required_state(self) -> StackState:
        state = self.stacks.read()
        if state is None:
            raise StackError(f"no stack {self.config.name} in {self.session.region}", hint="`onecopy apply` makes it")
        return state

    def _inputs(self, state: StackState | None) -> Inputs:
        return make_inputs(self.config, Choices.from_dict(state.choices) if state else None)

    def _workloads(self, inputs: Inputs, state: StackState | None = None) -> Workloads:
        """The way into the cluster, which must stand."""
        from onecopy.targets.aws.workloads import Workloads, cluster_config

        found = state or self._required_state()
        path = (
            default_home()
            / "aws"
            / f"{self.session.identity.account}-{self.session.region}-{self.config.name}.kubeconfig"
        )
        write_kubeconfig(self.session, self.config.name, path, profile=self.config.aws.profile)
        config = cluster_config(inputs, found.outputs, path, region=self.session.region)
        return Workloads(inputs, config, found.outputs)

    def _propose(self, *, rollback: bool) -> Proposal:
        state = self.stacks.read()
        _refuse_state(state, self.config.name)
        checks, choices = self._choose(state)
        checks.raise_problems()
        inputs = make_inputs(self.config, choices)
        template = build_template(inputs)
        change_set = self.stacks.propose(template, current=state, tags=inputs.tags)
        try:
            plan, refused = self._plan_of(change_set, state, checks, inputs, template, rollback=rollback)
        except BaseException:
            self.stacks.discard(change_set)  # the cluster did not answer, or somebody pressed Ctrl-C
            raise
        return Proposal(plan, change_set, template, inputs, state, refused)

    def _plan_of(
        self,
        change_set: ChangeSet,
        state: StackState | None,
        checks: Report,
        inputs: Inputs,
        template: Mapping[str, Any],
        *,
        rollback: bool,
    ) -> tuple[Plan, tuple[str, ...]]:
        refused = tuple(changes.refusals(change_set.changes))
        later = None if inputs.choices.nodes else build_template(_with_nodes(inputs))
        found: list[Change] = changes.plan_changes(change_set.changes, template, later=later)
        warnings = [*checks.warnings, *(f"{text}: apply refuses this" for text in refused)]
        seen: list[Any] = [state.token if state else None, digest(template), dict(inputs.tags)]
        if self.config.aws.workloads:
            if state is not None and "ClusterEndpoint" in state.outputs:
                try:
                    below = self._workloads(inputs, state).plan(rollback=rollback)
                except CloudError as error:
                    # The change may be what lets us in again (another address in aws.cluster.public_cidrs)
                    if change_set.id is None:
                        raise
                    warnings.append(f"what runs on the cluster is planned once it answers: {error.message}")
                else:
                    found += below.changes
                    warnings += below.warnings
                    seen.append(below.seen)
            else:
                warnings.append("what runs on the cluster is planned once it stands; apply goes on to it by itself")
        cost = plan_cost(
            inputs,
            later or template,
            state.template if state else None,
            region=self.session.region,
            ingress=_ingress(found, self.config),
            extended=checks.extended,
        )
        below_changes = self.config.aws.workloads and any(
            c.group != changes.GROUP and c.action != "no-op" for c in found
        )
        plan = Plan(
            target="aws",
            stack=self.config.name,
            changes=tuple(found),
            seen=fingerprint(seen),
            rollback=rollback,
            warnings=(*warnings, *cost.warnings()),
            cost=cost,
            duration=changes.duration(found, workloads=below_changes or (state is None and self.config.aws.workloads)),
        )
        return plan, refused

    def _choose(self, state: StackState | None) -> tuple[Report, Choices]:
        if state is None:
            checks = Preflight(self.session, make_inputs(self.config))
            return checks.report, replace(checks.new_stack(), nodes=self.config.aws.cluster.cni == "vpc")
        checks = Preflight(self.session, self._inputs(state))
        return checks.report, checks.existing_stack(Choices.from_dict(state.choices))

    def _nodes_after_calico(self, proposal: Proposal, workloads: Workloads, report: Reporter) -> None:
        """Nodes get Ready only with a pod network, and the network needs an API server to be installed in."""
        workloads.install_calico(report=report)
        if proposal.inputs.choices.nodes:
            return
        inputs = _with_nodes(proposal.inputs)
        nodes = self.stacks.propose(build_template(inputs), current=self.stacks.read(), tags=inputs.tags)
        self.stacks.execute(nodes, report=report, total=len(nodes.changes))

    def _plan_destroy(self) -> Plan:
        state = self.stacks.read()
        if state is not None and state.in_progress:
            raise StackError(f"{self.config.name} is {state.status}", hint="wait until it rests, then destroy")
        found: list[Change] = []
        seen: list[Any] = ["destroy", state.token if state else None]
        warnings: list[str] = []
        cost: MonthlyCost | None = None
        if state is not None:
            kept = {
                name
                for name, body in state.template.get("Resources", {}).items()
                if body.get("DeletionPolicy") == "Retain"
            }
            found += [
                changes.resource_change(resource, kept=resource["LogicalResourceId"] in kept)
                for resource in self.stacks.resources()
            ]
            standing = state.template.get("Resources", {})
            cost = plan_cost(
                self._inputs(state),
                {"Resources": {name: body for name, body in standing.items() if name in kept}},
                state.template,
                region=self.session.region,
                ingress=(self.config.kubernetes.ingress.host is not None, False),
                extended=False,
            )
            if kept:
                warnings.append(f"models stay: s3://{state.outputs.get('BucketName', '(the bucket)')} is kept")
        else:
            orphans = self.orphans.find(vpc=self.config.aws.network.vpc_id)
            seen.append([orphan.id for orphan in orphans])
            found += [
                Change(group="orphans", kind=orphan.kind, name=orphan.id, action="delete", note=orphan.why)
                for orphan in orphans
            ]
        return Plan(
            target="aws",
            stack=self.config.name,
            changes=tuple(found),
            seen=fingerprint(seen),
            destroy=True,
            warnings=tuple(warnings),
            cost=cost,
            duration=changes.duration(found, workloads=self.config.aws.workloads and state is not None),
        )

    def _destroy_workloads(self, state: StackState, delete_models: frozenset[str], report: Reporter) -> None:
        """Through the cluster while it answers, so that controllers clear up after themselves; else by tags alone."""
        reached = False
        if self.config.aws.workloads and "ClusterEndpoint" in state.outputs:
            try:
                self._workloads(self._inputs(state), state).destroy(delete_models=delete_models, report=report)
                reached = True
            except CloudError as error:
                if delete_models:
                    raise
                report(
                    Event("cluster", "warning", f"not reached, so its load balancers go by their tags: {error.message}")
                )
        deadline = time.monotonic() + (LOAD_BALANCER_DEADLINE if reached else 0)
        while found := self.orphans.load_balancers():
            report(Event("load-balancers", "progress", f"waiting for {len(found)} to go"))
            if time.monotonic() >= deadline:
                self.orphans.delete(found, report=report)
                return
            time.sleep(self._poll)

    def _delete_stack(self, report: Reporter) -> None:
        resources = self.stacks.resources()
        # A stack whose creation failed has no outputs yet, but it may have a network already
        own = (r.get("PhysicalResourceId") for r in resources if r["ResourceType"] == "AWS::EC2::VPC")
        vpc = self.config.aws.network.vpc_id or next(own, None)
        try:
            self.stacks.delete(report=report, total=len(resources))
        except StackError as error:
            # Most often an interface or a security group that a controller made holds the network: remove, then again
            report(Event("stack", "warning", error.message))
            self.orphans.delete(self.orphans.find(vpc=vpc), report=report)
            self.stacks.delete(report=report, total=len(resources))


def _ingress(found: Iterable[Change], config: StackConfig) -> tuple[bool, bool]:
    """Whether a load balancer stands now, and whether one would: by the cluster's own plan, where there is one."""
    seen = [change.action for change in found if change.kind == "Ingress"]
    wanted = config.aws.workloads and config.kubernetes.ingress.host is not None
    return any(action != "create" for action in seen), any(a != "delete" for a in seen) if seen else wanted


def _with_nodes(inputs: Inputs) -> Inputs:
    return replace(inputs, choices=replace(inputs.choices, nodes=True))


def _refuse_state(state: StackState | None, name: str) -> None:
    if state is None:
        return
    if state.in_progress:
        raise StackError(
            f"{name} is {state.status}", hint="another run is at work; `onecopy status` shows when it rests"
        )
    if state.must_go:
        raise StackError(
            f"{name} is {state.status}, and AWS changes it no more: {state.reason}",
            hint="`onecopy destroy` removes what is left of it; then apply again",
        )
    if state.status == "UPDATE_ROLLBACK_FAILED":
        raise CloudError(
            f"{name} is {state.status}: {state.reason}",
            hint="`onecopy destroy`, or continue its roll back in the console",
        )
