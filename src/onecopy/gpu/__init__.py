"""GPU planning: `plan_gpu(shape_of(config), card=find_card("L4"), weights_bytes=…, replicas=2)`."""

from __future__ import annotations

from onecopy.gpu.cards import Card, Instance, cards, find_card, instances
from onecopy.gpu.plan import GpuPlan, Start, Suggestion, plan_gpu
from onecopy.gpu.shape import ModelShape, read_shape, shape_of

__all__ = [
    "Card",
    "GpuPlan",
    "Instance",
    "ModelShape",
    "Start",
    "Suggestion",
    "cards",
    "find_card",
    "instances",
    "plan_gpu",
    "read_shape",
    "shape_of",
]
