"""Tensors from shared pages to a GPU through a small ring of pinned buffers, on a stream of its own.

A copy out of pageable memory makes the driver stage it piece by piece while the caller waits. Here the host fills one
buffer while the card reads another, so the time tends to the slower of the two and not to their sum. One tensor is kept
in flight beside the one that is handed over. Not run on a card yet: `bench/gpu_ring.py` checks it on one.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

BUFFERS = 4
BUFFER_BYTES = 32 << 20
"""Large enough to hide the start of a transfer (10 µs at 25 GB/s is 0.25 MB), small enough to pin in a moment."""

Named = tuple[str, torch.Tensor]


def to_device(
    tensors: Iterable[Named], device: torch.device, *, buffers: int = BUFFERS, size: int = BUFFER_BYTES
) -> Iterator[Named]:
    """The same tensors on `device`, in the same order, ready for work on the current stream."""
    ring = _Ring(device, buffers, size)
    waiting: tuple[str, torch.Tensor, torch.cuda.Event] | None = None
    for name, tensor in tensors:
        started = (name, *ring.start(tensor))
        if waiting is not None:
            yield _ready(device, *waiting)
        waiting = started
    if waiting is not None:
        yield _ready(device, *waiting)


def _ready(device: torch.device, name: str, tensor: torch.Tensor, done: torch.cuda.Event) -> Named:
    torch.cuda.current_stream(device).wait_event(done)
    return name, tensor


class _Ring:
    def __init__(self, device: torch.device, buffers: int, size: int) -> None:
        self._device, self._size = device, size
        self._stream = torch.cuda.Stream(device)
        self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=True, device="cpu") for _ in range(buffers)]
        self._read = [torch.cuda.Event() for _ in range(buffers)]
        self._next = 0

    def start(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Queues the transfer. Returns the device's tensor and the event after which its bytes are there."""
        target = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        source = tensor.contiguous().reshape(-1).view(torch.uint8)
        into = target.reshape(-1).view(torch.uint8)
        # the allocator may have given memory whose last reader is still queued on the current stream
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for at in range(0, source.numel(), self._size):
            slot = self._next
            self._next = (slot + 1) % len(self._buffers)
            piece = source[at : at + self._size]
            self._read[slot].synchronize()  # the card has read what the buffer held before
            buffer = self._buffers[slot][: piece.numel()]
            buffer.copy_(piece)
            with torch.cuda.stream(self._stream):
                into[at : at + piece.numel()].copy_(buffer, non_blocking=True)
                self._read[slot].record(self._stream)
        done = torch.cuda.Event()
        done.record(self._stream)
        return target, done
