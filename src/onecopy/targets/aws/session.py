"""One door to AWS: clients with deadlines and retries, who the caller is, and errors in our own words.

boto3 reads its own environment and files (AWS_PROFILE, AWS_ENDPOINT_URL, SSO, instance roles …): nothing is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import boto3
import boto3.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from onecopy.core import environment
from onecopy.core.errors import CloudError, ConfigError
from onecopy.core.redact import redact

DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden"})
_EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidClientTokenId", "UnrecognizedClientException",
     "AuthFailure", "SignatureDoesNotMatch"}
)  # fmt: skip
_LOGIN = "sign in again (`aws sso login`, new keys, or another AWS_PROFILE)"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls. arn: of the IAM role or user itself, also when the call is made from a session of the role."""

    account: str
    arn: str
    partition: str


class Session:
    def __init__(self, *, region: str | None, profile: str | None) -> None:
        """Raises ConfigError: no such profile, no region."""
        # boto3 alone of all AWS's tools does not read AWS_REGION
        region = region or environment.read("AWS_REGION")
        try:
            self._boto: Any = cast(Any, boto3.session).Session(region_name=region, profile_name=profile)
        except ProfileNotFound as error:
            raise ConfigError(str(error), hint="`aws configure list-profiles` shows them; set aws.profile") from error
        if not self._boto.region_name:
            raise ConfigError("no AWS region is set", hint="set aws.region in onecopy.toml, or AWS_REGION")
        self.region: str = self._boto.region_name
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        if service not in self._clients:
            config = Config(
                connect_timeout=10,
                read_timeout=60,
                # adaptive: stack events are asked for often, and the account's rate limits are shared with others
                retries={"mode": "adaptive", "max_attempts": 8},
                user_agent_extra="onecopy",
            )
            with translated(f"open {service}"):
                self._clients[service] = self._boto.client(service, config=config)
        return self._clients[service]

    @property
    def sts_host(self) -> str:
        """The region's own STS, whatever AWS_ENDPOINT_URL says: EKS takes tokens for no other."""
        partition: str = self._boto.get_partition_for_region(self.region)
        return f"sts.{self.region}.amazonaws.com{'.cn' if partition == 'aws-cn' else ''}"

    @cached_property
    def identity(self) -> Identity:
        """Raises CloudError: no or expired credentials, no way to AWS."""
        with translated("sts:GetCallerIdentity"):
            found = self.client("sts").get_caller_identity()
        arn: str = found["Arn"]
        _, partition, service, _, account, resource = arn.split(":", 5)
        if service == "sts" and resource.startswith("assumed-role/"):
            # The session's ARN leaves out the role's path, which only IAM can tell; most roles have none
            arn = f"arn:{partition}:iam::{account}:role/{resource.split('/')[1]}"
        return Identity(found["Account"], arn, partition)


def code(error: ClientError) -> str:
    return str(cast(dict[str, Any], error.response).get("Error", {}).get("Code", ""))


def message(error: ClientError) -> str:
    return redact(str(cast(dict[str, Any], error.response).get("Error", {}).get("Message", "") or error))


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Raises CloudError for whatever boto3 raises. action: as IAM names it, e.g. `eks:DescribeCluster`."""
    try:
        yield
    except ClientError as error:
        raise _client_error(action, error) from error
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
        raise CloudError(
            f"no AWS credentials: {error}", hint="set AWS_PROFILE, run `aws configure`, or give an instance role"
        ) from error
    except (SSOError, TokenRetrievalError) as error:
        raise CloudError(f"the AWS sign-in has ended: {error}", hint=_LOGIN) from error
    except NoRegionError as error:
        raise ConfigError("no AWS region is set", hint="set aws.region in onecopy.toml, or AWS_REGION") from error
    except (EndpointConnectionError, ConnectionError) as error:
        raise CloudError(
            f"{action}: {error}", hint="check the network, the region's name, and AWS_ENDPOINT_URL"
        ) from error
    except BotoCoreError as error:
        raise CloudError(f"{action}: {redact(str(error))}") from error


def _client_error(action: str, error: ClientError) -> CloudError:
    kind = code(error)
    text = message(error)
    if kind in DENIED:
        return CloudError(
            f"{action} is not permitted: {text}", hint="`onecopy aws policy` prints the permissions needed"
        )
    if kind in _EXPIRED:
        return CloudError(f"AWS refuses the credentials: {text}", hint=_LOGIN)
    return CloudError(f"{action}: {kind}: {text}")
