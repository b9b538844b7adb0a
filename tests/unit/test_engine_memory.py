"""The kernel's figures, on processes of our own that map one file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from onecopy.engine import memory

MiB = 1 << 20
CODE = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
seen = sum(mapped[at] for at in range(0, len(mapped), 4096))
if len(sys.argv) > 2:
    mapped[0 : len(mapped)] = bytes(len(mapped))
print("ready", flush=True)
sys.stdin.read()
"""


def test_shared_pages_count_once_and_written_ones_each(tmp_path: Path) -> None:
    file = tmp_path / "weights" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(bytes(16 * MiB))
    running: list[subprocess.Popen[str]] = []
    try:
        for extra in ([], [], ["write"]):
            process = subprocess.Popen(
                [sys.executable, "-c", CODE, str(file), *extra],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            running.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        readers, writer = [process.pid for process in running[:2]], running[2].pid
        shared = memory.weights(readers, [tmp_path / "weights"])
        assert 15.9 * MiB <= shared.pss <= 16.1 * MiB
        assert shared.rss == 2 * 16 * MiB
        assert memory.weights([writer], [tmp_path / "weights"]).pss == 16 * MiB
        assert memory.weights(readers, [tmp_path / "other"]).pss == 0
        assert memory.total(readers).pss > shared.pss + memory.private(readers).pss / 2
        assert memory.processes(readers[0]) == [readers[0]]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert memory.weights([running[0].pid], [tmp_path]) == memory.Memory()
