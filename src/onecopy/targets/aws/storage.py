"""The model bucket and who may use it. Bucket and key are retained: destroying a stack never destroys models."""

from __future__ import annotations

from typing import Any, NamedTuple

from troposphere import AWSHelperFn, GetAtt, Ref, Sub, Tags, Template, iam, kms, s3

from onecopy.targets.aws import policies
from onecopy.targets.aws.inputs import Inputs

# What an upload that was given up leaves behind is billed until it is aborted
ABORT_DAYS = 7
# Deleted and overwritten objects can be had back for this long
NONCURRENT_DAYS = 30
# The shortest that KMS allows; a stack's own key protects nothing that outlives the cluster
KEY_WAIT_DAYS = 7


class Bucket(NamedTuple):
    name: Any
    arn: AWSHelperFn
    key: Any
    """ARN of its KMS key, or None with S3's own keys."""


def add_bucket(template: Template, inputs: Inputs) -> Bucket:
    name: Any = (
        inputs.store.bucket if inputs.store else Sub(f"{inputs.name}-models-${{AWS::AccountId}}-${{AWS::Region}}")
    )
    if not inputs.choices.create_bucket:
        return Bucket(name, _arn(name), inputs.choices.bucket_key or inputs.aws.bucket.kms_key)
    key: Any = inputs.aws.bucket.kms_key
    if inputs.aws.bucket.encryption == "kms" and key is None:
        template.add_resource(
            kms.Key(
                "ModelKey",
                Description=f"Models of the onecopy stack {inputs.name}",
                EnableKeyRotation=True,
                KeyPolicy=policies.key_administration(),
                DeletionPolicy="Retain",
                UpdateReplacePolicy="Retain",
            )
        )
        key = GetAtt("ModelKey", "Arn")
    rule: dict[str, Any] = {"SSEAlgorithm": "AES256"}
    if key is not None:
        rule = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    bucket = template.add_resource(
        s3.Bucket(
            "ModelBucket",
            BucketName=name,
            PublicAccessBlockConfiguration=s3.PublicAccessBlockConfiguration(
                BlockPublicAcls=True, BlockPublicPolicy=True, IgnorePublicAcls=True, RestrictPublicBuckets=True
            ),
            OwnershipControls=s3.OwnershipControls(
                Rules=[s3.OwnershipControlsRule(ObjectOwnership="BucketOwnerEnforced")]
            ),
            VersioningConfiguration=s3.VersioningConfiguration(Status="Enabled"),
            BucketEncryption=s3.BucketEncryption(
                ServerSideEncryptionConfiguration=[
                    s3.ServerSideEncryptionRule(
                        BucketKeyEnabled=key is not None,
                        ServerSideEncryptionByDefault=s3.ServerSideEncryptionByDefault(**rule),
                    )
                ]
            ),
            LifecycleConfiguration=s3.LifecycleConfiguration(
                Rules=[
                    s3.LifecycleRule(
                        Id="abort-incomplete-uploads",
                        Status="Enabled",
                        AbortIncompleteMultipartUpload=s3.AbortIncompleteMultipartUpload(
                            DaysAfterInitiation=ABORT_DAYS
                        ),
                    ),
                    s3.LifecycleRule(
                        Id="expire-noncurrent",
                        Status="Enabled",
                        NoncurrentVersionExpiration=s3.NoncurrentVersionExpiration(NoncurrentDays=NONCURRENT_DAYS),
                    ),
                ]
            ),
            DeletionPolicy="Retain",
            UpdateReplacePolicy="Retain",
        )
    )
    template.add_resource(
        s3.BucketPolicy(
            "ModelBucketPolicy",
            Bucket=Ref(bucket),
            PolicyDocument=policies.tls_only(name),
            DeletionPolicy="Retain",
            UpdateReplacePolicy="Retain",
        )
    )
    return Bucket(Ref(bucket), GetAtt(bucket, "Arn"), key)


def _arn(name: Any) -> AWSHelperFn:
    return Sub("arn:${AWS::Partition}:s3:::${Bucket}", Bucket=name)


def role_documents(inputs: Inputs, bucket: Bucket) -> dict[str, policies.Document]:
    """What each role of a service account may do; `{}` stands for a managed policy."""
    arguments = (bucket.arn, inputs.prefix, inputs.models, bucket.key)
    return {
        "Reader": policies.reader(*arguments),
        "Writer": policies.writer(*arguments),
        "LoadBalancer": policies.load_balancer_controller(inputs.name),
        "ExternalSecrets": policies.external_secrets(inputs.name),
        "EbsCsi": {},
    }


MANAGED = {"EbsCsi": "service-role/AmazonEBSCSIDriverPolicy"}


def managed_policy(name: str) -> AWSHelperFn:
    return Sub(f"arn:${{AWS::Partition}}:iam::aws:policy/{name}")


def add_roles(template: Template, inputs: Inputs, bucket: Bucket) -> None:
    """One role for each job, taken by service accounts alone. No name of their own: IAM makes one, nothing collides."""
    documents = role_documents(inputs, bucket)
    for role in dict.fromkeys(account.role for account in inputs.accounts):
        held_by = [account for account in inputs.accounts if account.role == role]
        trust: Any = policies.irsa_trust(held_by) if inputs.identity == "irsa" else policies.pod_trust(inputs.name)
        body: dict[str, Any] = {"AssumeRolePolicyDocument": trust, "Tags": Tags(Name=f"{inputs.name}-{role}")}
        if role in MANAGED:
            body["ManagedPolicyArns"] = [managed_policy(MANAGED[role])]
        else:
            body["Policies"] = [iam.Policy(PolicyName=role, PolicyDocument=documents[role])]
        template.add_resource(iam.Role(f"{role}Role", **body))
