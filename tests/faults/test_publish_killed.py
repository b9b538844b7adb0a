"""kill -9 at random moments of a publish, then one run to the end: nothing half-visible, nothing whole sent twice.

Ten times by default; PUBLISH_KILLS=50 is the long form.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import checkpoint
from tests.fakehub import Hub

from onecopy.core.units import MiB
from onecopy.registry import catalogue
from onecopy.registry.publish import FILES_AT_ONCE
from onecopy.registry.verify import verify
from onecopy.storage.devserver import DevServer
from onecopy.storage.objectstore import open_store

KILLS = int(os.environ.get("PUBLISH_KILLS", "10"))
SHARDS = 4 + 3 * KILLS  # so that the kills find it at work to the last


@pytest.mark.timeout(1200)
def test_killed_again_and_again(s3_server: DevServer, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "repo", shards=SHARDS, elements=5 * MiB)  # 10 MiB a shard: two ranges, two parts
    shard = max(path.stat().st_size for path in folder.iterdir())
    store = open_store(s3_server.uri.child(f"killed-{tmp_path.name}"), s3_server.options)
    secret = s3_server.options.secret_access_key
    assert secret is not None
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "ONECOPY_", "HF_"))}
    env |= {"AWS_ACCESS_KEY_ID": str(s3_server.options.access_key_id), "AWS_SECRET_ACCESS_KEY": secret.reveal()}
    env |= {"AWS_ENDPOINT_URL": s3_server.endpoint, "HF_HOME": str(tmp_path / "hf")}
    chance = random.Random(7)
    finished: set[str] = set()
    kills = lost = 0
    with Hub() as hub:
        hub.add("org/tiny", folder)
        env["HF_ENDPOINT"] = hub.endpoint
        argv = [sys.executable, "-m", "onecopy", "model", "publish", "hf://org/tiny", "--name", "tiny", "--json"]
        argv += ["--store", str(store.uri)]
        hub.faults.cdn_bytes_per_second = 20 * MiB  # of one connection
        while kills < KILLS and len(finished) < SHARDS - FILES_AT_ONCE:
            hub.sent.clear()
            process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            moment = chance.uniform(0, 2 * FILES_AT_ONCE * shard)  # in bytes, so that a busy machine kills no sooner
            deadline = time.monotonic() + 60
            while sum(hub.sent.values()) < moment and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            again = {path for path in finished if hub.sent[path] > MiB}
            assert not again, f"whole files read again: {again}"
            assert list(catalogue.list_revisions(store, "tiny")) == [], "visible before it is whole"
            assert not list(store.list("tiny/refs"))
            folders = store.list_folders("tiny/uploads")
            records = [info.key for f in folders for info in store.list(f"tiny/uploads/{f}")]
            new = {key.split("/", 3)[3].removesuffix(".json") for key in records} - finished
            lost += sum(hub.sent.values()) - len(new) * shard
            finished |= new
        hub.faults.cdn_bytes_per_second = 0
        hub.sent.clear()
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        assert not {path for path in finished if hub.sent[path] > MiB}
    print(f"{kills} kills, {len(finished)} of {SHARDS} files kept, {lost} bytes read in vain of {result['bytes']}")
    assert verify(store, "tiny", deep=True).problems == ()
    assert finished, "no file was ever finished: the kills came too early to show anything"
    assert result["bytes_sent"] <= result["bytes"] - len(finished) * (shard - 1000)
    # What a kill may cost: the files in flight, and for each file its header once more
    assert lost <= kills * (FILES_AT_ONCE * shard + SHARDS * 1000)


def test_a_killed_file_goes_on_by_part(s3_server: DevServer, tmp_path: Path) -> None:
    """One file of six parts, killed when some are in the store: those are read again, to be compared, and not sent."""
    folder = checkpoint(tmp_path / "model", shards=1, elements=48 * MiB)
    store = open_store(s3_server.uri.child(f"parts-{tmp_path.name}"), s3_server.options)
    secret = s3_server.options.secret_access_key
    assert secret is not None
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "ONECOPY_"))}
    env |= {"AWS_ACCESS_KEY_ID": str(s3_server.options.access_key_id), "AWS_SECRET_ACCESS_KEY": secret.reveal()}
    argv = [sys.executable, "-m", "onecopy", "model", "publish", str(folder), "--name", "tiny", "--json"]
    argv += ["--store", str(store.uri)]
    env["AWS_ENDPOINT_URL"] = s3_server.endpoint
    client: Any = store._uploads._s3()  # type: ignore[attr-defined]
    process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept = 0
    while process.poll() is None and kept < 2:
        for upload in store.list_uploads("tiny/"):
            place = {"Bucket": store.uri.bucket, "Key": f"{store.uri.prefix}/{upload.key}"}
            kept = sum(part["Size"] for part in client.list_parts(**place, UploadId=upload.upload_id).get("Parts", ()))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert kept, "it was over before it could be killed"
    assert list(catalogue.list_revisions(store, "tiny")) == []
    result = json.loads(subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout)
    assert result["bytes_sent"] <= result["bytes"] - kept
    assert verify(store, "tiny", deep=True).problems == ()
    assert store.list_uploads("tiny/") == []
