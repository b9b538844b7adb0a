"""What `up` refuses, before anything is started or written. No engine is needed for any of it."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from tests.local.stack import Cli

from onecopy.storage.devserver import DevServer

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "home")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that is fine: one tensor of 4 float32."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(folder / "model.safetensors", {"w": (0, 16)}, 16)
    return folder


def write_safetensors(path: Path, tensors: dict[str, tuple[int, int]], size: int) -> None:
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}
            for name, (start, end) in tensors.items()
        }
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


def refused(cli: Cli, model: Path | str, *args: str, env: dict[str, str] | None = None) -> str:
    message = cli.refused("up", "--detach", "--port", "0", "--model", str(model), *args, env=env)
    assert not cli.home.exists(), "something was written before the error"
    return message


def test_folder_without_config(cli: Cli, model: Path) -> None:
    (model / "config.json").unlink()
    assert "config.json" in refused(cli, model)


def test_folder_without_safetensors(cli: Cli, model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "safetensors" in refused(cli, model)


def test_no_such_folder(cli: Cli, tmp_path: Path) -> None:
    assert "nowhere" in refused(cli, tmp_path / "nowhere")


def test_truncated_safetensors(cli: Cli, model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "model.safetensors" in refused(cli, model)


def test_overlapping_safetensors(cli: Cli, model: Path) -> None:
    write_safetensors(model / "model.safetensors", {"a": (0, 12), "b": (8, 16)}, 16)
    assert "model.safetensors" in refused(cli, model)


def test_port_in_use(cli: Cli, model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = cli.refused("up", "--detach", "--model", str(model), "--port", str(port))
    assert f"port {port}" in message
    assert not cli.home.exists()


def test_too_little_memory(cli: Cli, model: Path) -> None:
    message = refused(cli, model, "--replicas", "256")
    assert "256 replicas need" in message
    assert "is available" in message


def test_store_unreachable(cli: Cli, model: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{closed.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }
        assert "no answer from the store" in refused(cli, model, "--store", "s3://bucket/models", env=env)


def test_wrong_credentials_and_missing_bucket_are_told_apart(cli: Cli, model: Path, tmp_path: Path) -> None:
    with DevServer(tmp_path / "server", bucket="there") as server:
        options = server.options
        assert options.access_key_id
        assert options.secret_access_key
        env = {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": options.access_key_id,
            "AWS_SECRET_ACCESS_KEY": options.secret_access_key.reveal(),
        }
        assert "no such bucket: elsewhere" in refused(cli, model, "--store", "s3://elsewhere/models", env=env)
        wrong = {**env, "AWS_SECRET_ACCESS_KEY": "wrong"}
        message = refused(cli, model, "--store", "s3://there/models", env=wrong)
        assert "refused the credentials" in message
        assert "wrong" not in message.replace("wrong, missing", "")


def test_unknown_setting(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "onecopy.toml").write_text("[router]\nprot = 1\n")
    assert "router.prot" in cli.refused("up", "--detach")


def test_state_of_another_version(cli: Cli, model: Path) -> None:
    cli.home.mkdir()
    (cli.home / "state.json").write_text('{"format": 0}')
    assert "another version" in cli.refused("up", "--detach", "--port", "0", "--model", str(model))
    assert [path.name for path in cli.home.iterdir()] == ["state.json"]


def test_a_cache_folder_that_is_too_small(cli: Cli, model: Path, tmp_path: Path) -> None:
    """A real tmpfs of one page: the error comes at the start, with what is needed, and never as a SIGBUS."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        write_safetensors(model / "model.safetensors", {"w": (0, 1 << 20)}, 1 << 20)
        message = refused(cli, model, env={"ONECOPY_CACHE_DIR": str(small)})
        assert "node cache needs 2.1 MB" in message
    finally:
        subprocess.run(["umount", small], check=True)
