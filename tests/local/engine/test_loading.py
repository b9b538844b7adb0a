"""What the load format serves, against vLLM's own loading of the same folder."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.local.engine.conftest import Serve, Served
from tests.local.engine.models import VOCABULARY, Tiny, write

from onecopy.engine.launch import wait_ready
from onecopy.engine.load_report import read_reports

pytestmark = pytest.mark.engine
Publish = Callable[[Path], Path]

PROMPT = [random.Random(7).randrange(100, VOCABULARY) for _ in range(48)]
ROUNDING = 0.15
"""Natural log. bf16 keeps 8 bits, and the products add in another order; a wrong tensor is off by several units."""


def difference(one: Served, other: Served) -> float:
    rows = zip(one.prompt_logprobs(PROMPT), other.prompt_logprobs(PROMPT), strict=True)
    return max(abs(mine - theirs) for mine, theirs in rows)


@pytest.mark.parametrize(
    ("tiny", "sharing"),
    [
        pytest.param(Tiny(shards=7), "packed", id="seven-shards"),
        pytest.param(Tiny("qwen2", tied=True), "packed", id="tied-with-biases"),
        pytest.param(Tiny("qwen3", tied=False, order="model"), "packed", id="norms-on-q-and-k"),
        pytest.param(Tiny(intermediate=200), "packed", id="shapes-the-kernel-refuses"),
        pytest.param(Tiny(dtype="F32"), "packed", id="float32-files"),
        pytest.param(Tiny(quantization="int8"), "copy", id="int8"),
    ],
)
def test_same_predictions_as_vllm(
    tiny: Tiny, sharing: str, smollm2: Path, tmp_path: Path, publish: Publish, start: Serve
) -> None:
    folder = write(tmp_path / "tiny", tiny, smollm2)
    revision = publish(folder)
    ours = [start(revision, name=f"ours-{at}") for at in range(2)]
    theirs = start(folder, name="theirs", load_format="safetensors")
    for served in (*ours, theirs):
        wait_ready(served.replica, served.endpoint, 120)
    for served in ours:
        assert served.report["sharing"] == sharing
        assert difference(served, theirs) <= ROUNDING
    if sharing == "packed":
        assert sorted("packed_written" in served.report["bytes"] for served in ours) == [False, True]


def test_two_ranks_predict_as_one(smollm2: Path, tmp_path: Path, publish: Publish, start: Serve) -> None:
    """Each rank maps an image of its own, of its part of the weights."""
    folder = write(tmp_path / "tiny", Tiny(shards=3), smollm2)
    revision = publish(folder)
    ours = start(revision, name="ours", engine_args=("--tensor-parallel-size", "2"))
    theirs = start(folder, name="theirs", load_format="safetensors")
    for served in (ours, theirs):
        wait_ready(served.replica, served.endpoint, 120)
    assert difference(ours, theirs) <= ROUNDING
    assert [report["sharing"] for report in read_reports(ours.reports)] == ["packed", "packed"]
    assert len(list(revision.parent.glob(".packed/*of2-*/index.json"))) == 2


def test_another_checkpoint_is_told_apart(smollm2: Path, tmp_path: Path, serve: Serve) -> None:
    """The measure of the tests above sees one layer's q and k swapped for another's."""
    one = serve(write(tmp_path / "one", Tiny(seed=0), smollm2), name="one", load_format="safetensors")
    other = serve(write(tmp_path / "other", Tiny(seed=1), smollm2), name="other", load_format="safetensors")
    assert difference(one, other) > 10 * ROUNDING


def test_views_when_the_cache_cannot_be_written(smollm2: Path, tmp_path: Path, publish: Publish, serve: Serve) -> None:
    """As in a pod whose cache volume is read-only. A file stands where the images' folder would be: root obeys no mode."""
    folder = write(tmp_path / "tiny", Tiny(order="model"), smollm2)
    revision = publish(folder)
    (revision.parent / ".packed").write_text("")
    ours = serve(revision, name="ours")
    assert ours.report["sharing"] == "views"
    assert "weights held as views" in ours.replica.log.read_text()
    assert ours.report["bytes"]["private"] == 0
    theirs = serve(folder, name="theirs", load_format="safetensors")
    assert difference(ours, theirs) <= ROUNDING


def test_a_folder_that_may_change_is_never_packed(smollm2: Path, tmp_path: Path, serve: Serve) -> None:
    folder = write(tmp_path / "tiny", Tiny(), smollm2)
    assert serve(folder).report["sharing"] == "views"
    assert not (tmp_path / ".packed").exists()


def test_a_damaged_image_is_not_used(smollm2: Path, tmp_path: Path, publish: Publish, serve: Serve) -> None:
    revision = publish(write(tmp_path / "tiny", Tiny(), smollm2))
    serve(revision, name="first").replica.stop()
    (index,) = revision.parent.glob(".packed/*/index.json")
    index.chmod(0o644)
    index.write_text("{")
    served = serve(revision, name="second")
    assert served.report["sharing"] == "views"
    assert served.complete("x", 4)


def test_a_packer_that_was_killed_is_replaced(smollm2: Path, publish: Publish, start: Serve) -> None:
    revision = publish(smollm2)
    packed = revision.parent / ".packed"
    first = start(revision, name="first")
    while not list(packed.glob(".new-*")):
        assert first.replica.poll() is None
    first.replica.signal(9)
    first.replica.stop()
    assert not list(packed.glob("*/index.json"))
    second = start(revision, name="second")
    wait_ready(second.replica, second.endpoint, 120)
    assert second.report["bytes"]["packed_written"] > 0
    shutil.rmtree(packed)


def test_smollm2_answers_like_vllm_and_makes_sense(smollm2: Path, publish: Publish, serve: Serve) -> None:
    ours = serve(publish(smollm2), name="ours")
    theirs = serve(smollm2, name="theirs", load_format="safetensors")
    assert difference(ours, theirs) <= ROUNDING
    for prompt in ("The capital of France is", "Once upon a time"):
        mine, reference = ours.complete(prompt, 8), theirs.complete(prompt, 8)
        assert mine == reference
    question = [{"role": "user", "content": "What is the capital of France?"}]
    mine, reference = (
        served.post("/v1/chat/completions", messages=question, max_tokens=32)["choices"][0]["message"]["content"]
        for served in (ours, theirs)
    )
    # so small a model can miss it by a rounding: with AMX, vLLM's own loading answers otherwise than with AVX512 alone
    assert ("Paris" in mine) == ("Paris" in reference)
