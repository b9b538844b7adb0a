"""CloudFormation as the engine: change sets in, events out, and the first real cause when something fails.

State and rollback are AWS's own. Nothing is kept here: what is known of a stack is asked each time.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from botocore.exceptions import ClientError

from onecopy.core.errors import CloudError, StackError
from onecopy.core.events import Event, Reporter
from onecopy.core.redact import redact
from onecopy.targets.aws.inputs import TAG_STACK
from onecopy.targets.aws.session import Session, code, translated
from onecopy.targets.aws.template import METADATA, compact

# A change set of some fifty resources is made in seconds; AWS itself gives up after an hour
CHANGE_SET_DEADLINE = 600.0
# Control plane about 10 minutes, node groups, NAT and add-ons about 10 more; three times that is not slow but stuck
STACK_DEADLINE = 3600.0
POLL = 5.0
_CANCELLED = ("Resource creation cancelled", "Resource update cancelled", "Resource creation Initiated")
_NO_CHANGES = ("didn't contain changes", "No updates are to be performed")


@dataclass(frozen=True, slots=True)
class StackState:
    """A stack as it stands. token: moves with every change of it."""

    id: str
    status: str
    reason: str
    token: str
    outputs: Mapping[str, str]
    template: Mapping[str, Any]

    @property
    def in_progress(self) -> bool:
        return self.status.endswith("_IN_PROGRESS") and self.status != "REVIEW_IN_PROGRESS"

    @property
    def must_go(self) -> bool:
        """AWS lets nothing be done with it but to delete it."""
        return self.status in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "DELETE_FAILED")

    @property
    def choices(self) -> Mapping[str, Any]:
        return self.template.get("Metadata", {}).get(METADATA, {}).get("choices", {})


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """id None: nothing would change."""

    id: str | None
    is_create: bool
    changes: tuple[Mapping[str, Any], ...]


class Stacks:
    def __init__(self, session: Session, name: str, *, poll: float = POLL) -> None:
        self._session, self.name, self._poll = session, name, poll

    @property
    def _api(self) -> Any:
        return self._session.client("cloudformation")

    def read(self) -> StackState | None:
        """None when there is none, or only an empty one under review. Raises StackError for one that is not ours."""
        with translated("cloudformation:DescribeStacks"):
            try:
                stack = self._api.describe_stacks(StackName=self.name)["Stacks"][0]
            except ClientError as error:
                if code(error) == "ValidationError" and "does not exist" in str(error):
                    return None
                raise
        if stack["StackStatus"] in ("REVIEW_IN_PROGRESS", "DELETE_COMPLETE"):
            return None
        tags = {tag["Key"]: tag["Value"] for tag in stack.get("Tags", [])}
        with translated("cloudformation:GetTemplate"):
            body = self._api.get_template(StackName=stack["StackId"], TemplateStage="Original")["TemplateBody"]
        template = cast(dict[str, Any], json.loads(body) if isinstance(body, str) else body)
        if tags.get(TAG_STACK, template.get("Metadata", {}).get(METADATA, {}).get("stack")) != self.name:
            raise StackError(
                f"a CloudFormation stack called {self.name} is there already, and it is not ours",
                hint="give this one another name (name = …)",
            )
        updated = cast(datetime, stack.get("LastUpdatedTime") or stack["CreationTime"])
        return StackState(
            id=stack["StackId"],
            status=stack["StackStatus"],
            reason=redact(stack.get("StackStatusReason", "")),
            token=f"{stack['StackId']}@{updated.isoformat()}@{stack['StackStatus']}",
            outputs={output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])},
            template=template,
        )

    def resources(self) -> list[Mapping[str, Any]]:
        with translated("cloudformation:ListStackResources"):
            pages = self._api.get_paginator("list_stack_resources").paginate(StackName=self.name)
            return [resource for page in pages for resource in page["StackResourceSummaries"]]

    def propose(
        self,
        template: Mapping[str, Any],
        *,
        current: StackState | None,
        tags: Mapping[str, str],
    ) -> ChangeSet:
        """Makes a change set and reads it. A new stack is left under review until `discard` or `execute`.

        Raises CloudError: AWS refuses the template.
        """
        name = f"onecopy-{uuid.uuid4().hex[:12]}"
        arguments: dict[str, Any] = {
            "StackName": self.name,
            "ChangeSetName": name,
            "ChangeSetType": "UPDATE" if current else "CREATE",
            "TemplateBody": compact(dict(template)),
            "Capabilities": ["CAPABILITY_IAM"],
            "Tags": [{"Key": key, "Value": value} for key, value in sorted(tags.items())],
            # What was made stays when a later part fails: the next apply goes on from there, instead of waiting for a
            # roll back of a control plane that took ten minutes. An update that fails goes back to what ran before.
            "OnStackFailure": "DO_NOTHING" if current is None or current.status == "CREATE_FAILED" else "ROLLBACK",
        }
        with translated("cloudformation:CreateChangeSet"):
            made = self._api.create_change_set(**arguments)
        try:
            return self._read_change_set(made["Id"], is_create=current is None)
        except KeyboardInterrupt:
            self.discard(ChangeSet(made["Id"], current is None, ()))
            raise

    def _read_change_set(self, identity: str, *, is_create: bool) -> ChangeSet:
        deadline = time.monotonic() + CHANGE_SET_DEADLINE
        while True:
            with translated("cloudformation:DescribeChangeSet"):
                page = self._api.describe_change_set(
                    ChangeSetName=identity, StackName=self.name, IncludePropertyValues=True
                )
            status, reason = page["Status"], page.get("StatusReason", "")
            if status == "CREATE_COMPLETE":
                break
            if status == "FAILED":
                self.discard(ChangeSet(identity, is_create, ()))
                if any(text in reason for text in _NO_CHANGES):
                    return ChangeSet(None, is_create, ())
                raise CloudError(f"AWS refuses the change of {self.name}: {redact(reason)}", hint=_hint(reason))
            if time.monotonic() > deadline:
                raise CloudError(
                    f"the change set of {self.name} is not ready after {CHANGE_SET_DEADLINE:.0f} s: {status}"
                )
            time.sleep(min(self._poll, 2.0))
        changes: list[Mapping[str, Any]] = []
        while True:
            changes += [change["ResourceChange"] for change in page["Changes"] if change.get("ResourceChange")]
            if not page.get("NextToken"):
                return ChangeSet(identity, is_create, tuple(changes))
            with translated("cloudformation:DescribeChangeSet"):
                page = self._api.describe_change_set(
                    ChangeSetName=identity,
                    StackName=self.name,
                    IncludePropertyValues=True,
                    NextToken=page["NextToken"],
                )

    def discard(self, change_set: ChangeSet) -> None:
        """A plan leaves nothing behind: neither the change set, nor the empty stack that a first one makes."""
        if change_set.id is None:
            return
        with translated("cloudformation:DeleteChangeSet"):
            self._api.delete_change_set(ChangeSetName=change_set.id, StackName=self.name)
        if change_set.is_create:
            with translated("cloudformation:DeleteStack"):
                self._api.delete_stack(StackName=self.name)

    def execute(self, change_set: ChangeSet, *, report: Reporter, total: int) -> None:
        """Raises StackError with the first real cause when it fails, or does not end in time."""
        if change_set.id is None:
            return
        token = uuid.uuid4().hex
        with translated("cloudformation:ExecuteChangeSet"):
            self._api.execute_change_set(ChangeSetName=change_set.id, StackName=self.name, ClientRequestToken=token)
        with self._interruptible(report, "`onecopy apply` goes on when it rests, `onecopy destroy` then removes it"):
            status = self.follow(token, report=report, total=total)
        if status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
            raise self._failure(token, status)

    def delete(self, *, report: Reporter, total: int, retain: tuple[str, ...] = ()) -> None:
        """Raises StackError with the first real cause. retain: logical ids that a deletion before could not delete."""
        found = self.read()
        if found is None:
            return
        token = uuid.uuid4().hex
        more: dict[str, Any] = {"RetainResources": list(retain)} if retain else {}
        with translated("cloudformation:DeleteStack"):
            self._api.delete_stack(StackName=found.id, ClientRequestToken=token, **more)
        with self._interruptible(report, "`onecopy destroy` goes on when it rests"):
            status = self.follow(token, report=report, total=total, identity=found.id)
        if status != "DELETE_COMPLETE":
            raise self._failure(token, status, identity=found.id)

    @contextmanager
    def _interruptible(self, report: Reporter, after: str) -> Iterator[None]:
        """Ctrl-C ends the watching alone: says so, and how to go on."""
        try:
            yield
        except KeyboardInterrupt:
            text = f"AWS goes on with {self.name}: `onecopy status` shows when it rests; {after}"
            report(Event("stack", "warning", text))
            raise

    def continue_rollback(self, *, report: Reporter) -> None:
        """Out of UPDATE_ROLLBACK_FAILED, in which AWS takes no change."""
        token = uuid.uuid4().hex
        with translated("cloudformation:ContinueUpdateRollback"):
            self._api.continue_update_rollback(StackName=self.name, ClientRequestToken=token)
        status = self.follow(token, report=report, total=0)
        if status != "UPDATE_ROLLBACK_COMPLETE":
            raise self._failure(token, status)

    def follow(self, token: str, *, report: Reporter, total: int, identity: str | None = None) -> str:
        """Reports each event of the operation as it comes, until the stack rests. Returns its status."""
        name = identity or self.name
        seen: set[str] = set()
        done: set[str] = set()
        deadline = time.monotonic() + STACK_DEADLINE
        while True:
            with translated("cloudformation:DescribeStacks"):
                stack = self._api.describe_stacks(StackName=name)["Stacks"][0]
            for event in self.events(token, identity=name):
                if event["EventId"] not in seen:
                    seen.add(event["EventId"])
                    _tell(event, report, done, total)
            status: str = stack["StackStatus"]
            if not status.endswith("_IN_PROGRESS"):
                report(Event("stack", "done" if status.endswith("COMPLETE") else "failed", f"{self.name}: {status}"))
                return status
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.name} is {status} after {STACK_DEADLINE / 60:.0f} minutes",
                    hint="it goes on at AWS; `onecopy apply` takes it up again when it rests",
                )
            time.sleep(self._poll)

    def events(self, token: str, *, identity: str | None = None) -> list[Mapping[str, Any]]:
        """Of one operation, oldest first."""
        with translated("cloudformation:DescribeStackEvents"):
            pages = self._api.get_paginator("describe_stack_events").paginate(StackName=identity or self.name)
            found: list[Mapping[str, Any]] = []
            for page in pages:
                ours = [event for event in page["StackEvents"] if event.get("ClientRequestToken") == token]
                found += ours
                if found and len(ours) < len(page["StackEvents"]):
                    break
        return found[::-1]

    def _failure(self, token: str, status: str, *, identity: str | None = None) -> StackError:
        cause = first_cause(self.events(token, identity=identity))
        state = self._session.client("cloudformation").describe_stacks(StackName=identity or self.name)["Stacks"][0]
        reason = cause or redact(state.get("StackStatusReason", "")) or "AWS gives no reason"
        after = {
            "CREATE_FAILED": "what was made is kept: `onecopy apply` goes on, `onecopy destroy` removes it",
            "UPDATE_ROLLBACK_COMPLETE": "the stack is as it was before; correct the cause and apply again",
            "DELETE_FAILED": "`onecopy destroy` tries again",
        }.get(status, "`onecopy apply` tries again, `onecopy destroy` removes the stack")
        advice = _hint(reason)
        return StackError(f"{self.name} is {status}: {reason}", hint=f"{advice}; {after}" if advice else after)

    def drift(self) -> list[Mapping[str, Any]]:
        """Resources that are no longer as the template says. Takes a minute; raises StackError when AWS cannot tell."""
        with translated("cloudformation:DetectStackDrift"):
            identity = self._api.detect_stack_drift(StackName=self.name)["StackDriftDetectionId"]
        deadline = time.monotonic() + CHANGE_SET_DEADLINE
        while True:
            with translated("cloudformation:DescribeStackDriftDetectionStatus"):
                found = self._api.describe_stack_drift_detection_status(StackDriftDetectionId=identity)
            if found["DetectionStatus"] == "DETECTION_COMPLETE":
                break
            if found["DetectionStatus"] == "DETECTION_FAILED" or time.monotonic() > deadline:
                raise StackError(f"drift of {self.name}: {redact(found.get('DetectionStatusReason', 'no answer'))}")
            time.sleep(self._poll)
        with translated("cloudformation:DescribeStackResourceDrifts"):
            drifts = self._api.describe_stack_resource_drifts(
                StackName=self.name, StackResourceDriftStatusFilters=["MODIFIED", "DELETED"]
            )["StackResourceDrifts"]
        return list(drifts)


def _tell(event: Mapping[str, Any], report: Reporter, done: set[str], total: int) -> None:
    status, logical = event["ResourceStatus"], event["LogicalResourceId"]
    if event.get("ResourceType") == "AWS::CloudFormation::Stack":
        return
    if status.endswith("_COMPLETE"):
        done.add(logical)
    reason = redact(event.get("ResourceStatusReason", ""))
    failed = status.endswith("_FAILED")
    text = f"{logical} ({event['ResourceType']}) {status.lower().replace('_', ' ')}"
    report(
        Event(
            "stack",
            "warning" if failed else "progress",
            f"{text}: {reason}" if failed and reason else text,
            item=logical,
            done=len(done),
            total=max(total, len(done)),
            unit="resources",
        )
    )


def first_cause(events: list[Mapping[str, Any]]) -> str | None:
    """The oldest failure that is not the echo of another. events: oldest first."""
    for event in events:
        reason = event.get("ResourceStatusReason", "")
        is_stack = event.get("ResourceType") == "AWS::CloudFormation::Stack"
        if event["ResourceStatus"].endswith("_FAILED") and not is_stack and not reason.startswith(_CANCELLED):
            return f"{event['LogicalResourceId']} ({event['ResourceType']}): {redact(reason)}"
    return None


_HINTS: tuple[tuple[str, str], ...] = (
    ("VcpuLimitExceeded", "ask for more vCPUs of this family in Service Quotas"),
    ("AddressLimitExceeded", "release an Elastic IP or ask for more in Service Quotas"),
    ("maximum number of addresses", "release an Elastic IP or ask for more in Service Quotas"),
    ("maximum number of VPCs", "delete a VPC, use an existing one (aws.network.vpc_id), or ask for more"),
    ("InsufficientInstanceCapacity", "name more instance types (aws.gpu_nodes.instance_types) or another region"),
    ("NodeCreationFailure", "the nodes did not join: check the subnets' way out, and the CNI"),
    ("already exists", "something of that name is left from before; `onecopy aws orphans` lists what is ours"),
    ("AccessDenied", "`onecopy aws policy` prints the permissions needed"),
    ("not authorized", "`onecopy aws policy` prints the permissions needed"),
    ("unsupported Kubernetes version", "set aws.cluster.version to one that EKS offers"),
    ("has dependencies", "something outside of the stack still uses it; `onecopy aws orphans` lists it"),
    ("DependencyViolation", "something outside of the stack still uses it; `onecopy aws orphans` lists it"),
)


def _hint(reason: str) -> str | None:
    return next((hint for text, hint in _HINTS if text.lower() in reason.lower()), None)


def digest(template: Mapping[str, Any]) -> str:
    return hashlib.sha256(compact(dict(template)).encode()).hexdigest()
