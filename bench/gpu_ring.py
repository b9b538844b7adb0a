"""On a machine with a CUDA card: every byte of the pinned ring against the checkpoint, and its time against plain copies.

    PYTHON_WITH_VLLM bench/gpu_ring.py FOLDER      a Hugging Face folder with safetensors

Run it with the Python that serves, onecopy installed in it. It exits with 1 when one byte differs. It was not run yet:
no card was at hand.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from onecopy.engine.mapped import Checkpoint
from onecopy.engine.ring import to_device


def main(folder: Path) -> int:
    device = torch.device("cuda", torch.cuda.current_device())
    checkpoint = Checkpoint(folder.glob("*.safetensors"))
    for _, tensor in checkpoint.tensors():
        tensor.reshape(-1).view(torch.uint8)[::4096].sum()  # pages in, so that both ways start from memory
    for size in (1 << 20, 32 << 20):  # the small one makes every tensor go round the ring many times
        pairs = zip(checkpoint.tensors(), to_device(checkpoint.tensors(), device, size=size), strict=True)
        for (name, mine), (_, theirs) in pairs:
            raw = mine.contiguous().reshape(-1).view(torch.uint8)
            if not torch.equal(raw, theirs.cpu().reshape(-1).view(torch.uint8)):
                print(f"{name} differs with buffers of {size} bytes", file=sys.stderr)
                return 1
    seconds: dict[str, float] = {}
    for way in ("plain", "ring", "plain", "ring"):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        copies = to_device(checkpoint.tensors(), device) if way == "ring" else checkpoint.tensors()
        for _, tensor in copies:
            tensor.to(device)
        torch.cuda.synchronize()
        seconds[way] = time.perf_counter() - begun
    rates = {f"{way}_gb_per_s": round(checkpoint.bytes / value / 1e9, 2) for way, value in seconds.items()}
    print(json.dumps({"device": torch.cuda.get_device_name(device), "bytes": checkpoint.bytes, **rates}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
