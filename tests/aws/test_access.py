"""The roles by real calls against a service that enforces IAM: the reader reads its models and nothing else."""

from __future__ import annotations

import json
import secrets
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from tests.aws.conftest import REGION, Emulator
from tests.aws.test_life import apply, client, session, target

from onecopy.targets.aws.eks import HEADER, PREFIX, exec_credential, token
from onecopy.targets.aws.session import Session

KEYS = ("models/one/revisions/a/model.safetensors", "models/other/revisions/a/model.safetensors", "elsewhere.txt")


def as_role(role_arn: str) -> Any:
    """An S3 client that acts as the role. A user who may assume it stands in for EKS, which the emulator does not play:
    the role's trust is opened to that user for the test; what the role may do is not touched."""
    iam, name = client("iam"), role_arn.rsplit("/", 1)[1]
    account = role_arn.split(":")[4]
    user = f"tester-{uuid.uuid4().hex[:8]}"
    iam.create_user(UserName=user)
    may = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": role_arn}],
    }
    iam.put_user_policy(UserName=user, PolicyName="assume", PolicyDocument=json.dumps(may))
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{account}:user/{user}"}, "Action": "sts:AssumeRole"}
        ],
    }
    iam.update_assume_role_policy(RoleName=name, PolicyDocument=json.dumps(trust))
    key = iam.create_access_key(UserName=user)["AccessKey"]
    sts = boto3.client(
        "sts", region_name=REGION, aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"]
    )
    held = sts.assume_role(RoleArn=role_arn, RoleSessionName="test")["Credentials"]
    return boto3.client(
        "s3",
        region_name=REGION,
        aws_access_key_id=held["AccessKeyId"],
        aws_secret_access_key=held["SecretAccessKey"],
        aws_session_token=held["SessionToken"],
    )


@pytest.fixture
def stack(aws: Emulator) -> dict[str, str]:
    apply(target())
    outputs = target().outputs()["aws"]
    for key in KEYS:
        client("s3").put_object(Bucket=outputs["BucketName"], Key=key, Body=b"weights")
    # The emulator speaks plain HTTP, which the bucket's policy denies to all but the root: seen here, then out of the way
    denied(lambda: as_role(outputs["ReaderRoleArn"]).get_object(Bucket=outputs["BucketName"], Key=KEYS[0]))
    client("s3").delete_bucket_policy(Bucket=outputs["BucketName"])
    return outputs


def denied(call: Callable[[], Any]) -> None:
    with pytest.raises(ClientError) as caught:
        call()
    assert caught.value.response["Error"]["Code"] in ("AccessDenied", "403", "Forbidden")


def test_the_reader_reads_its_models_and_nothing_else(stack: dict[str, str]) -> None:
    bucket, s3 = stack["BucketName"], as_role(stack["ReaderRoleArn"])
    assert s3.get_object(Bucket=bucket, Key=KEYS[0])["Body"].read() == b"weights"
    assert s3.list_objects_v2(Bucket=bucket, Prefix="models/one/")["KeyCount"] == 1
    for key in KEYS[1:]:
        denied(lambda key=key: s3.get_object(Bucket=bucket, Key=key))
    for prefix in ("", "models/", "models/other/", "models/one-more/"):
        denied(lambda prefix=prefix: s3.list_objects_v2(Bucket=bucket, Prefix=prefix))
    denied(lambda: s3.list_objects_v2(Bucket=bucket))
    denied(lambda: s3.put_object(Bucket=bucket, Key=KEYS[0], Body=b"other"))
    denied(lambda: s3.delete_object(Bucket=bucket, Key=KEYS[0]))
    denied(lambda: s3.get_bucket_policy(Bucket=bucket))
    denied(lambda: s3.list_buckets())


def test_the_writer_publishes_its_models_and_deletes_nothing(stack: dict[str, str]) -> None:
    bucket, s3 = stack["BucketName"], as_role(stack["WriterRoleArn"])
    new = "models/one/revisions/b/model.safetensors"
    s3.put_object(Bucket=bucket, Key=new, Body=b"new", IfNoneMatch="*")
    upload = s3.create_multipart_upload(Bucket=bucket, Key=f"{new}.2")["UploadId"]
    assert [u["Key"] for u in s3.list_multipart_uploads(Bucket=bucket, Prefix="models/one/")["Uploads"]] == [f"{new}.2"]
    part = s3.upload_part(Bucket=bucket, Key=f"{new}.2", UploadId=upload, PartNumber=1, Body=b"part")
    assert len(s3.list_parts(Bucket=bucket, Key=f"{new}.2", UploadId=upload)["Parts"]) == 1
    parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    s3.complete_multipart_upload(Bucket=bucket, Key=f"{new}.2", UploadId=upload, MultipartUpload=parts)
    assert s3.get_object(Bucket=bucket, Key=new)["Body"].read() == b"new"
    for key in (KEYS[1], KEYS[2], "models/new-model/x"):
        denied(lambda key=key: s3.put_object(Bucket=bucket, Key=key, Body=b"x"))
    denied(lambda: s3.get_object(Bucket=bucket, Key=KEYS[1]))
    denied(lambda: s3.delete_object(Bucket=bucket, Key=new))
    denied(lambda: s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"}))


def test_the_bucket_is_closed_and_versioned(aws: Emulator) -> None:
    apply(target())
    bucket, s3 = target().outputs()["aws"]["BucketName"], client("s3")
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    statement = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"][0]
    assert (statement["Effect"], statement["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})


@pytest.fixture
def review(aws: Emulator) -> Callable[[str, str], dict[str, Any]]:
    """The emulator's authenticator, which recomputes the signature as AWS does: token, cluster → TokenReview status."""
    secret = secrets.token_hex(16)
    aws.set(webhook_token=secret)
    apply(target())

    def ask(cluster: str, given: str) -> dict[str, Any]:
        account = session().identity.account
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": given}}
        request = urllib.request.Request(
            f"{aws.endpoint}/_ministack/eks-auth/{account}/{REGION}/{cluster}/{secret}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["status"]

    return ask


def test_a_token_made_here_is_accepted_for_its_cluster_alone(review: Callable[[str, str], dict[str, Any]]) -> None:
    iam = client("iam")
    iam.create_user(UserName="operator")
    key = iam.create_access_key(UserName="operator")["AccessKey"]
    account = session().identity.account
    arn = f"arn:aws:iam::{account}:user/operator"
    client("eks").create_access_entry(
        clusterName="demo", principalArn=arn, username="operator", kubernetesGroups=["crew"]
    )
    mine = _session_with(key)
    given = token(mine, "demo").reveal()
    assert given.startswith(PREFIX)
    status = review("demo", given)
    assert status["authenticated"] is True, status
    assert status["user"]["username"] == "operator"
    assert not review("demo", token(mine, "another").reveal()).get("authenticated")
    assert not review("demo", given[:-4] + "AAAA").get("authenticated")
    other = _session_with({**key, "SecretAccessKey": "x" * 40})
    assert not review("demo", token(other, "demo").reveal()).get("authenticated")


def _session_with(key: dict[str, str]) -> Session:
    made = Session(region=REGION, profile=None)
    made._boto = boto3.session.Session(key["AccessKeyId"], key["SecretAccessKey"], region_name=REGION)
    return made


def test_a_token_does_not_show_itself(aws: Emulator) -> None:
    made = token(session(), "demo")
    assert PREFIX not in f"{made} {made!r}"
    credential = json.loads(exec_credential(session(), "demo"))
    assert credential["status"]["token"].startswith(PREFIX)
    assert HEADER == "x-k8s-aws-id"
