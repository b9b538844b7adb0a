"""Servers that stand for the clouds: MiniStack (S3 with IAM enforced) and Azurite (Azure Blob).

Azurite is 366 MB of npm packages, so it is only used where it is: `npm install --prefix DIR azurite@3.37.0`, then
AZURITE=DIR. For GCS no registry carries a server of its XML interface: that backend is not proven by any test.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onecopy.core.redact import Secret
from onecopy.storage.objectstore import StoreOptions, open_store
from onecopy.storage.store import Store

ACCOUNT = "123456789012"
REGION = "us-east-1"
# Azurite's own, published account: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def served(argv: list[str], port: int, folder: Path, env: dict[str, str]) -> Iterator[str]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{argv[0]} did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Aws:
    """MiniStack with IAM on. The account's root needs no policy; `user` makes one that has the given policy only."""

    endpoint: str

    def client(self, service: str) -> Any:
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCOUNT,
            aws_secret_access_key="root",
        )

    def root(self) -> StoreOptions:
        return StoreOptions(self.endpoint, REGION, ACCOUNT, Secret("root"), retries=1)

    def user(self, statements: list[dict[str, Any]]) -> StoreOptions:
        iam, name = self.client("iam"), f"user-{uuid.uuid4().hex[:8]}"
        iam.create_user(UserName=name)
        if statements:
            policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
            iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return StoreOptions(self.endpoint, REGION, key["AccessKeyId"], Secret(key["SecretAccessKey"]), retries=1)


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    folder, port = tmp_path_factory.mktemp("ministack"), free_port()
    env = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    env |= {"AUTH": "true", "GATEWAY_PORT": str(port), "MINISTACK_HOST": "127.0.0.1", "TMPDIR": str(folder)}
    env |= {"IOT_MTLS_ENABLED": "0"}
    for endpoint in served([str(Path(sys.executable).with_name("ministack"))], port, folder, env):
        found = Aws(endpoint)
        found.client("s3").create_bucket(Bucket="models")
        yield found


@pytest.fixture
def ministack_store(aws: Aws) -> Store:
    return open_store(f"s3://models/test-{uuid.uuid4().hex[:12]}", aws.root())


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    installed = os.environ.get("AZURITE")
    if not installed or shutil.which("node") is None:
        pytest.skip("AZURITE names no folder with azurite in it, or there is no node")
    folder, port = tmp_path_factory.mktemp("azurite"), free_port()
    argv = ["node", f"{Path(installed).resolve()}/node_modules/azurite/dist/src/blob/main.js", "--inMemoryPersistence"]
    argv += ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--skipApiVersionCheck", "--disableTelemetry"]
    yield from served(argv, port, folder, dict(os.environ))


@pytest.fixture
def azure_store(azurite: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)
    container = f"test-{uuid.uuid4().hex[:12]}"
    made = subprocess.run(
        ["node", "-e", _MAKE_CONTAINER, azurite, AZURE_ACCOUNT, AZURE_KEY, container],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return open_store(
        f"az://{AZURE_ACCOUNT}/{container}/some/prefix", StoreOptions(endpoint=f"{azurite}/{AZURE_ACCOUNT}")
    )


# Creating a container is not part of the store protocol; node's own crypto signs the one request
_MAKE_CONTAINER = """
const [endpoint, account, key, name] = process.argv.slice(1), crypto = require("crypto"), date = new Date().toUTCString();
const canonical = `PUT\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\nx-ms-date:${date}\\nx-ms-version:2021-08-06\\n/${account}/${account}/${name}\\nrestype:container`;
const signature = crypto.createHmac("sha256", Buffer.from(key, "base64")).update(canonical, "utf8").digest("base64");
fetch(`${endpoint}/${account}/${name}?restype=container`, {method: "PUT", headers: {"x-ms-date": date, "x-ms-version": "2021-08-06",
  Authorization: `SharedKey ${account}:${signature}`}}).then(async r => { if (r.status !== 201) { console.error(r.status, await r.text()); process.exit(1); } });
"""


@pytest.fixture(params=["s3", "ministack", "azure", "file"])
def any_store(request: pytest.FixtureRequest) -> Store:
    """A fresh, empty store; the test runs once on each backend that can be had."""
    return request.getfixturevalue(f"{request.param}_store")
