"""The one module that reads the process environment, and the register of every variable that is read.

`docs/reference/environment.md` is generated from REGISTER; a variable that is not in it cannot be read.
"""

from __future__ import annotations

import os

REGISTER: dict[str, str] = {
    "ONECOPY_HOME": "Folder of the local stack's state (default: $XDG_DATA_HOME/onecopy).",
    "ONECOPY_ENVIRONMENTS": "Folder of the Python environments that `onecopy up` makes (default: $XDG_CACHE_HOME/onecopy/environments).",
    "ONECOPY_CONFIG": "Path of the configuration file (default: ./onecopy.toml).",
    "ONECOPY_LOAD_REPORTS": "Folder where each replica leaves what its load did (bytes by source, seconds by phase), one JSON file a process.",
    "ONECOPY_DIE_WITH_PARENT": "Set by onecopy for its replicas: vLLM's engine process ends when its API server does.",
    "ONECOPY_HELM": "Path of the helm binary (default: helm on PATH).",
    "KUBECONFIG": "Kubeconfig of the kubernetes target, as kubectl takes it.",
    "XDG_DATA_HOME": "Base of the default home.",
    "XDG_CACHE_HOME": "Base of the default environments folder.",
    "ONECOPY_API_KEY": "Key of a protected endpoint, sent by `onecopy loadtest` as a bearer token.",
    "NO_COLOR": "Any value: no colour on the terminal.",
    "AWS_ENDPOINT_URL": "Endpoint of an S3-compatible store, and of AWS's APIs.",
    "AWS_ENDPOINT_URL_S3": "Endpoint of an S3-compatible store; goes before AWS_ENDPOINT_URL.",
    "AWS_REGION": "Region of the store.",
    "AWS_DEFAULT_REGION": "Region of the store, when AWS_REGION is not set.",
    "AWS_ACCESS_KEY_ID": "Key of the store; goes before profiles.",
    "AWS_PROFILE": "Profile of the AWS configuration files to use for the store.",
    "AWS_SHARED_CREDENTIALS_FILE": "AWS credentials file (default: ~/.aws/credentials).",
    "AWS_CONFIG_FILE": "AWS configuration file (default: ~/.aws/config).",
    "AWS_SKIP_SIGNATURE": "Any value: requests to a public bucket are not signed.",
    "HF_TOKEN": "Token for gated and private models on the hub.",
    "HF_TOKEN_PATH": "File that holds the hub token.",
}


def read(name: str) -> str | None:
    """The variable's value, or None when unset or empty. Raises KeyError for one that is not registered."""
    if name not in REGISTER and not name.startswith("ONECOPY_"):
        raise KeyError(f"{name} is not in the environment register")
    return os.environ.get(name) or None


def prefixed(prefix: str) -> dict[str, str]:
    """All set variables that start with `prefix`."""
    return {key: value for key, value in os.environ.items() if key.startswith(prefix) and value}


def child(**changes: str | None) -> dict[str, str]:
    """A copy of the environment for a child process; None removes a variable."""
    env = dict(os.environ)
    for key, value in changes.items():
        if value is None:
            env.pop(key, None)
        else:
            env[key] = value
    return env
