"""One load by one loader, in a fresh process: `loaders.py NAME`, with its task as JSON on the first line of stdin.

It imports what it needs, says "ready", waits for a line, loads, says what it took, and stays until the next line, so
that its memory can be read from outside. Imports are not counted, for anybody; making clients and reading headers is.
A load is done when every tensor is in memory and mapped.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

THREADS = 8
RANGE = 8 << 20
PIECE = 1 << 20
Task = dict[str, Any]
"""uri (of the revision, s3://…), store, model, bucket, endpoint, region, files: [[key, size]…], urls: {key: presigned},
manifest, folder (for what is written), own (ours alone)."""
Load = Callable[[Task], object]


def floor() -> Load:
    """Signed ranges by plain sockets into files of the folder, nothing checked: what the machine can do."""

    def load(task: Task) -> object:
        parts = [
            (key, start, min(size, start + RANGE)) for key, size in task["files"] for start in range(0, size, RANGE)
        ]
        files = {
            key: os.open(Path(task["folder"], str(at)), os.O_RDWR | os.O_CREAT)
            for at, (key, _) in enumerate(task["files"])
        }
        lock = threading.Lock()

        def work() -> None:
            where = urlsplit(task["endpoint"])
            buffer = memoryview(bytearray(PIECE))
            with socket.create_connection((where.hostname, where.port)) as connection:
                while True:
                    with lock:
                        if not parts:
                            return
                        key, at, end = parts.pop(0)
                    url = urlsplit(task["urls"][key])
                    ask = f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nRange: bytes={at}-{end - 1}\r\n\r\n"
                    connection.sendall(ask.encode())
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += connection.recv(4096)
                    head, _, body = head.partition(b"\r\n\r\n")
                    if not re.match(rb"HTTP/1.1 206", head):
                        raise RuntimeError(head)
                    os.pwrite(files[key], body, at)
                    at += len(body)
                    while at < end:
                        count = connection.recv_into(buffer, min(PIECE, end - at))
                        os.pwrite(files[key], buffer[:count], at)
                        at += count

        _parallel(work)
        return [_mapped(handle) for handle in files.values()]

    return load


def onecopy() -> Load:
    from onecopy.storage.objectstore import StoreOptions, open_store
    from onecopy.weights.cache import NodeCache
    from onecopy.weights.manifest import Manifest

    def load(task: Task) -> object:
        store = open_store(task["store"], StoreOptions(endpoint=task["endpoint"], region=task["region"]))
        manifest = Manifest.from_json(Path(task["manifest"]).read_bytes(), where=task["manifest"])
        filled = NodeCache(Path(task["folder"]), headroom=0.0).fill(store, manifest)
        maps: list[object] = []
        for path in sorted(filled.path.glob("*.safetensors")):
            handle = os.open(path, os.O_RDONLY)
            maps.append(_mapped(handle))
            os.close(handle)
        return maps

    return load


def runai_streamer() -> Load:
    os.environ.setdefault("RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING", "0")
    os.environ.setdefault("RUNAI_STREAMER_CONCURRENCY", str(THREADS))  # vLLM's own default for S3
    from runai_model_streamer import SafetensorsStreamer

    def load(task: Task) -> object:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files([f"s3://{task['bucket']}/{key}" for key, _ in task["files"]])
            return {name: tensor.clone() for name, tensor in streamer.get_tensors()}  # as vLLM takes them

    return load


def boto3() -> Load:
    import boto3 as sdk
    from botocore.config import Config

    def load(task: Task) -> object:
        client = sdk.client(
            "s3",
            endpoint_url=task["endpoint"],
            region_name=task["region"],
            config=Config(max_pool_connections=THREADS, s3={"addressing_style": "path"}),
        )

        def read(key: str, start: int, view: memoryview) -> None:
            body = client.get_object(Bucket=task["bucket"], Key=key, Range=f"bytes={start}-{start + len(view) - 1}")[
                "Body"
            ]
            at = 0
            while at < len(view):
                at += body.readinto(view[at:])

        return _ranges(task, read)

    return load


def obstore() -> Load:
    import obstore as sdk
    from obstore.store import S3Store

    def load(task: Task) -> object:
        store = S3Store(
            task["bucket"], endpoint=task["endpoint"], region=task["region"], client_options={"allow_http": True}
        )

        def read(key: str, start: int, view: memoryview) -> None:
            view[:] = memoryview(sdk.get_range(store, key, start=start, end=start + len(view)))

        return _ranges(task, read)

    return load


def s3fs() -> Load:
    import s3fs as sdk

    def load(task: Task) -> object:
        fs = sdk.S3FileSystem(client_kwargs={"endpoint_url": task["endpoint"], "region_name": task["region"]})

        def read(key: str, start: int, view: memoryview) -> None:
            view[:] = fs.cat_file(f"{task['bucket']}/{key}", start=start, end=start + len(view))

        return _ranges(task, read)

    return load


def s3torchconnector() -> Load:
    from s3torchconnector import S3Checkpoint, S3ClientConfig

    def load(task: Task) -> object:
        checkpoint = S3Checkpoint(
            region=task["region"], endpoint=task["endpoint"], s3client_config=S3ClientConfig(force_path_style=True)
        )

        def one(key: str) -> object:
            with checkpoint.reader(f"s3://{task['bucket']}/{key}") as reader:
                return reader.read()

        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(one, [key for key, _ in task["files"]]))

    return load


def download() -> Load:
    """boto3's transfer manager to files in the folder, then safetensors' own reader into memory."""
    import boto3 as sdk
    from boto3.s3.transfer import TransferConfig
    from safetensors.torch import load_file

    def load(task: Task) -> object:
        client = sdk.client("s3", endpoint_url=task["endpoint"], region_name=task["region"])
        tensors: dict[str, object] = {}
        for at, (key, _) in enumerate(task["files"]):
            path = str(Path(task["folder"], str(at)))
            client.download_file(task["bucket"], key, path, Config=TransferConfig(max_concurrency=THREADS))
            tensors |= {name: tensor.clone() for name, tensor in load_file(path).items()}
            Path(path).unlink()
        return tensors

    return load


LOADERS: dict[str, Callable[[], Load]] = {
    "floor": floor,
    "onecopy": onecopy,
    "runai-model-streamer": runai_streamer,
    "boto3": boto3,
    "obstore": obstore,
    "s3fs": s3fs,
    "s3torchconnector": s3torchconnector,
    "download+safetensors": download,
}


def _ranges(task: Task, read: Callable[[str, int, memoryview], None]) -> object:
    """Eight ranges at once into one buffer a file."""
    buffers = {key: bytearray(size) for key, size in task["files"]}
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [
            pool.submit(read, key, start, memoryview(buffer)[start : start + RANGE])
            for key, buffer in buffers.items()
            for start in range(0, len(buffer), RANGE)
        ]
        for job in jobs:
            job.result()
    return buffers


def _parallel(work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for job in [pool.submit(work) for _ in range(THREADS)]:
            job.result()


def _mapped(handle: int) -> mmap.mmap:
    return mmap.mmap(handle, 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)


def _cpu() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def main() -> None:
    task: Task = json.loads(sys.stdin.readline())
    load = LOADERS[sys.argv[1]]()
    print("ready", flush=True)
    sys.stdin.readline()
    cpu, began = _cpu(), time.monotonic()
    kept = load(task)
    ended = time.monotonic()
    print(json.dumps({"began": began, "ended": ended, "cpu": _cpu() - cpu}), flush=True)
    sys.stdin.readline()
    del kept
    os._exit(0)  # some peers' runtimes take long to wind down, or crash at it


if __name__ == "__main__":
    main()
