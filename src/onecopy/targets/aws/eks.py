"""A way into the cluster without the aws command: tokens made here, and a kubeconfig that asks us for them.

A token is a presigned sts:GetCallerIdentity that names the cluster; EKS asks STS who signed it. Read from the
authenticator's own documentation (kubernetes-sigs/aws-iam-authenticator): prefix `k8s-aws-v1.`, header
`x-k8s-aws-id`, at most 60 s between signing and use, 15 minutes of life.
"""

from __future__ import annotations

import base64
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from botocore.signers import RequestSigner

from onecopy.core.errors import CloudError
from onecopy.core.redact import Secret
from onecopy.targets.aws.session import Session, translated

PREFIX = "k8s-aws-v1."
HEADER = "x-k8s-aws-id"
URL_SECONDS = 60
TOKEN_MINUTES = 14
"""One less than EKS grants, so that nobody uses a token in its last second."""


def token(session: Session, cluster: str) -> Secret:
    """Raises CloudError without credentials. No call is made."""
    with translated("sign a token"):
        client: Any = session.client("sts")
        signer: Any = cast(Any, RequestSigner)(
            client.meta.service_model.service_id,
            session.region,
            "sts",
            "v4",
            client._request_signer._credentials,
            client.meta.events,
        )
        request: dict[str, Any] = {
            "method": "GET",
            "url": f"https://{session.sts_host}/?Action=GetCallerIdentity&Version=2011-06-15",
            "body": {},
            "headers": {HEADER: cluster},
            "context": {},
        }
        url: str = signer.generate_presigned_url(
            request, region_name=session.region, expires_in=URL_SECONDS, operation_name=""
        )
    return Secret(PREFIX + base64.urlsafe_b64encode(url.encode()).decode().rstrip("="))


def exec_credential(session: Session, cluster: str) -> str:
    """What kubectl, helm and lightkube expect of a credential plugin, as JSON. Holds the token: print it to them alone."""
    expires = datetime.now(UTC) + timedelta(minutes=TOKEN_MINUTES)
    return json.dumps(
        {
            "kind": "ExecCredential",
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "spec": {},
            "status": {
                "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "token": token(session, cluster).reveal(),
            },
        }
    )


def kubeconfig(session: Session, cluster: str, *, profile: str | None) -> dict[str, Any]:
    """Names the cluster and this program; holds no secret. Raises CloudError when the cluster is not active."""
    with translated("eks:DescribeCluster"):
        found: dict[str, Any] = session.client("eks").describe_cluster(name=cluster)["cluster"]
    if found.get("status") != "ACTIVE":
        raise CloudError(f"cluster {cluster} is {found.get('status')}", hint="wait for it, then try again")
    server: dict[str, Any] = {"server": found["endpoint"]}
    if authority := found.get("certificateAuthority", {}).get("data"):
        server["certificate-authority-data"] = authority
    arguments = ["-m", "onecopy", "aws", "token", "--cluster", cluster, "--region", session.region]
    plugin: dict[str, Any] = {
        "apiVersion": "client.authentication.k8s.io/v1beta1",
        "command": sys.executable,
        "args": [*arguments, "--profile", profile] if profile else arguments,
        "interactiveMode": "Never",
    }
    name = found["arn"]
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": server}],
        "users": [{"name": name, "user": {"exec": plugin}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


def write_kubeconfig(session: Session, cluster: str, path: Path, *, profile: str | None) -> Path:
    """YAML is a superset of JSON, so JSON it is."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    body = json.dumps(kubeconfig(session, cluster, profile=profile), indent=1) + "\n"
    path.touch(mode=0o600)
    path.write_text(body, encoding="utf-8")
    return path
