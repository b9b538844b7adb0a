"""Publishing from a hub, over HTTP from a server that answers, redirects, limits, cuts and lies as real ones do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.checkpoints import checkpoint
from tests.fakehub import Hub

from onecopy.core.errors import IntegrityError, SourceChanged, SourceDenied, SourceError, SourceMissing, UsageError
from onecopy.core.events import Event
from onecopy.core.units import MiB
from onecopy.registry import catalogue
from onecopy.registry.publish import publish
from onecopy.registry.sources import Selection
from onecopy.registry.sources.hub import HubSource
from onecopy.storage import layout
from onecopy.storage.store import Store


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as made:
        folder = checkpoint(tmp_path / "repo", elements=6 * MiB)
        (folder / "original").mkdir()
        (folder / "original/consolidated.00.safetensors").write_bytes(b"the same weights again")
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
        made.add("org/tiny", folder)
        yield made


def opened(hub: Hub, text: str = "hf://org/tiny", selection: Selection | None = None) -> HubSource:
    return HubSource(text, selection, endpoint=hub.endpoint)


def test_pinned_checked_and_whole(hub: Hub, store: Store) -> None:
    repo = hub.repos["org/tiny"]
    result = publish(opened(hub), store, "tiny")
    manifest = catalogue.resolve(store, "tiny")
    assert (manifest.source.uri, manifest.source.revision) == ("hf://org/tiny", repo.commit)
    assert {file.path for file in manifest.files} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    for file in manifest.files:
        key = layout.file_key("tiny", manifest.revision, file.path)
        assert store.get(key)[0] == (repo.folder / file.path).read_bytes()
    assert result.bytes_sent == manifest.total_bytes
    assert hub.requests["hub"] <= 1 + 2 * len(manifest.files), "ranges must not go through the hub itself"
    again = publish(opened(hub), store, "tiny")
    assert (again.revision, again.bytes_sent) == (result.revision, 0)


def test_the_same_content_from_a_folder_is_the_same_revision(hub: Hub, file_store: Store) -> None:
    from onecopy.registry.sources import open_source

    folder = publish(open_source(str(hub.repos["org/tiny"].folder)), file_store, "tiny")
    assert publish(opened(hub), file_store, "tiny").bytes_sent == 0
    assert catalogue.resolve(file_store, "tiny") == folder.manifest


def test_selection(hub: Hub) -> None:
    chosen = opened(hub, selection=Selection(include=("*.json", "*00001*"), exclude=("tok*",)))
    assert [file.path for file in chosen.files] == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    with pytest.raises(UsageError, match="matches no file"):
        opened(hub, selection=Selection(include=("*.gguf",)))


def test_cut_slow_expired_and_failing_connections_are_got_over(
    hub: Hub, file_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onecopy.registry.sources.hub.random.uniform", lambda low, high: 0.01)
    hub.faults.hub_500 = 1
    hub.faults.cdn_500 = 3
    hub.faults.cdn_cut = 4
    hub.faults.cdn_expired = 2
    hub.faults.cdn_no_range = 1
    hub.faults.cdn_bytes_per_second = 20 * MiB
    result = publish(opened(hub), file_store, "tiny")
    for file in result.manifest.files:
        key = layout.file_key("tiny", result.revision, file.path)
        assert file_store.get(key)[0] == (hub.repos["org/tiny"].folder / file.path).read_bytes()


def test_a_flipped_bit_commits_nothing(hub: Hub, store: Store) -> None:
    source = opened(hub)
    shard = next(file for file in source.files if file.path.startswith("model-00001"))
    hub.faults.cdn_flip = 1000
    with pytest.raises(IntegrityError, match="SHA-256") as caught:
        publish(source, store, "tiny")
    assert shard.sha256 is not None
    assert shard.sha256 in caught.value.message or shard.path not in caught.value.message
    assert list(catalogue.list_revisions(store, "tiny")) == []
    assert not [info for info in store.list() if info.key.endswith(shard.path)]


def test_rate_limits_are_waited_for_as_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("onecopy.registry.sources.hub.time.sleep", waited.append)
    events: list[Event] = []
    hub.faults.api_429, hub.faults.retry_after = 2, "7"
    HubSource("hf://org/tiny", endpoint=hub.endpoint, report=events.append)
    assert waited == [7, 7]
    assert "waiting 7 s" in events[0].message
    hub.faults.api_429 = 1000
    with pytest.raises(SourceError, match="limits requests"):
        opened(hub)


def test_refusals_are_told_apart(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.repos["org/tiny"].folder
    hub.add("org/gated", folder, gated=True)
    hub.add("org/private", folder, private=True)
    with pytest.raises(SourceMissing, match="no such revision"):
        opened(hub, "hf://org/tiny@v9")
    with pytest.raises(SourceMissing, match="not on the hub"):
        opened(hub, "hf://org/none")
    with pytest.raises(SourceMissing, match="private") as missing:
        opened(hub, "hf://org/private")
    assert missing.value.hint is not None
    assert "HF_TOKEN" in missing.value.hint
    with pytest.raises(UsageError):
        opened(hub, "hf://a/b/c")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert opened(hub, "hf://org/private").files
    gated = opened(hub, "hf://org/gated")  # listing a gated model is allowed, its files are not
    with pytest.raises(SourceDenied, match="gated") as denied:
        gated.read(gated.files[0], 0, 1)
    assert denied.value.hint is not None
    assert "org/gated" in denied.value.hint
    monkeypatch.setenv("HF_TOKEN", hub.accepted)
    assert len(bytes(gated.read(gated.files[1], 0, 10))) == 10
    assert hub.leaked == [], "the token goes to the hub, never to where it redirects"


def test_a_token_from_a_file(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/private", hub.repos["org/tiny"].folder, private=True)
    token = tmp_path / "hf/token"
    token.parent.mkdir(exist_ok=True)
    token.write_text(hub.token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(token))
    assert opened(hub, "hf://org/private").files


def test_no_hub_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onecopy.registry.sources.hub.time.sleep", lambda _: None)
    with pytest.raises(SourceError, match="no answer from the hub"):
        HubSource("hf://org/tiny", endpoint="http://127.0.0.1:9")


def test_a_file_that_changed_under_its_commit(hub: Hub, file_store: Store, tmp_path: Path) -> None:
    source = opened(hub)
    shutil.copyfile(hub.repos["org/tiny"].folder / "config.json", tmp_path / "repo/model-00001-of-00002.safetensors")
    with pytest.raises((SourceChanged, IntegrityError)):
        publish(source, file_store, "tiny")
    assert list(file_store.list()) == []
