"""The registry under faults at every store call, against a reference model of what it promises.

After each call to the store a reader looks: whatever a manifest names must be whole, whatever a ref names must exist.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.checkpoints import checkpoint

from onecopy.core.errors import ObjectMissing, OnecopyError, PreconditionFailed
from onecopy.registry import care, catalogue
from onecopy.registry.publish import publish
from onecopy.registry.sources import open_source
from onecopy.registry.verify import repair, verify
from onecopy.storage import layout
from onecopy.storage.faulty import Call, Fault, FaultyStore, Moment
from onecopy.storage.objectstore import open_store
from onecopy.storage.store import Store

CONTENTS = 3
RANGE = 256  # so that a shard of 2 kB has ranges, parts and a record, as one of 2 GB has
MOMENTS: tuple[Moment, ...] = ("before", "middle", "after", "flip")


class Killed(BaseException):
    """A process that ends without another word."""


@pytest.fixture(scope="module")
def small_ranges() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onecopy.registry.transfer.RANGE_SIZE", RANGE)
        patch.setattr("onecopy.registry.publish.RANGE_SIZE", RANGE)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("contents")
    return [checkpoint(root / str(i), shards=2, elements=1000, seed=i) for i in range(CONTENTS)]


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Store]:
    return lambda: open_store(f"file://{tmp_path}/{uuid.uuid4().hex}")


def look(store: Store) -> None:
    """What any reader may do at any time. Raises when it would be given something that is not whole."""
    for model in catalogue.list_models(store):
        revisions: set[str] = set()
        for revision in store.list_folders(f"{model}/revisions"):
            try:
                found = verify(store, model, revision, deep=True)
            except ObjectMissing:
                continue  # no manifest: it does not exist
            wrong = [problem for problem in found.problems if problem.kind != "extra"]
            if wrong and not _is_there(store, model, revision):
                continue  # deleted while we read
            assert not wrong, wrong
            revisions.add(revision)
        for ref in catalogue.list_refs(store, model):
            assert ref.revision in revisions, f"ref {ref.name} names {ref.revision}, which is not there"


def _is_there(store: Store, model: str, revision: str) -> bool:
    try:
        store.head(layout.manifest_key(model, revision))
    except ObjectMissing:
        return False
    return True


class Reader:
    """Looks after every call that may have changed something; keeps the first thing that it must never see."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self.saw: BaseException | None = None

    def __call__(self, call: Call) -> None:
        if call.method in ("put", "put_stream", "delete") and not call.key.startswith("tiny/uploads"):
            with self._lock:
                try:
                    look(self._store)
                except BaseException as error:
                    self.saw = self.saw or error


def once(number: int, moment: Moment, error: BaseException | None) -> Callable[[Call], Fault | None]:
    return lambda call: Fault(moment, error) if call.number == number else None


@pytest.mark.parametrize("killed", [False, True], ids=["failing", "killed"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_publish_with_a_fault_at_every_call(
    moment: Moment, killed: bool, folders: list[Path], fresh: Callable[[], Store], small_ranges: None
) -> None:
    for number in itertools.count():
        store = fresh()
        first = publish(open_source(str(folders[0])), store, "tiny")
        reader = Reader(store)
        faulty = FaultyStore(store, once(number, moment, Killed() if killed else None), after=reader)
        try:
            publish(open_source(str(folders[1])), faulty, "tiny")
        except (OnecopyError, Killed):
            assert catalogue.resolve(store, "tiny").revision  # old or new, and whole: the reader looked
        again = publish(open_source(str(folders[1])), store, "tiny")
        assert reader.saw is None, reader.saw
        assert catalogue.resolve(store, "tiny") == again.manifest
        assert verify(store, "tiny", deep=True).problems == ()
        assert verify(store, "tiny", first.revision, deep=True).ok
        assert list(store.list("tiny/uploads")) == []
        if number >= faulty.calls:
            break
    assert number > 12, "the faults struck nothing"


@pytest.mark.parametrize("moment", ["before", "middle", "after"])
def test_delete_and_gc_with_a_fault_at_every_call(
    moment: Moment, folders: list[Path], fresh: Callable[[], Store], small_ranges: None
) -> None:
    for number in itertools.count():
        store = fresh()
        first = publish(open_source(str(folders[0])), store, "tiny")
        publish(open_source(str(folders[1])), store, "tiny")
        reader = Reader(store)
        faulty = FaultyStore(store, once(number, moment, None), after=reader)
        with contextlib.suppress(OnecopyError):
            care.collect(faulty, care.plan_gc(faulty, grace=0))
        care.collect(store, care.plan_gc(store, grace=0))
        assert reader.saw is None, reader.saw
        assert list(store.list(layout.revision_prefix("tiny", first.revision))) == []
        assert verify(store, "tiny", deep=True).problems == ()
        if number >= faulty.calls:
            break
    assert number > 5


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_two_publishers_at_once(
    data: st.DataObject, folders: list[Path], fresh: Callable[[], Store], small_ranges: None
) -> None:
    """Of the same content, or of two, with faults in one of them: one ref, whole revisions, no mix."""
    store = fresh()
    contents = data.draw(st.tuples(st.integers(0, 1), st.integers(0, 1)))
    number, moment = data.draw(st.integers(0, 60)), data.draw(st.sampled_from(MOMENTS))
    reader = Reader(store)
    results: list[object] = [None, None]

    def work(i: int) -> None:
        decide = once(number, moment, None) if i else lambda _: None
        try:
            results[i] = publish(
                open_source(str(folders[contents[i]])), FaultyStore(store, decide, after=reader), "tiny"
            )
        except OnecopyError as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reader.saw is None, reader.saw
    if contents[0] != contents[1] and isinstance(results[0], OnecopyError):
        assert isinstance(results[0], PreconditionFailed), "only the ref can be lost to another content"
    if contents[0] == contents[1]:
        assert not isinstance(results[0], OnecopyError), results[0]
    for content in contents:
        try:
            publish(open_source(str(folders[content])), store, "tiny")
        except PreconditionFailed:
            pytest.fail("nobody else is there any more")
    assert verify(store, "tiny", deep=True).problems == ()


class RegistryMachine(RuleBasedStateMachine):
    """Publishing, moving, deleting, collecting, damaging and mending in any order, each with a fault or none."""

    folders: list[Path]
    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.store = open_store(f"file://{self.root}/{uuid.uuid4().hex}")
        self.refs: dict[str, int] = {}
        self.there: set[int] = set()
        self.ids: dict[int, str] = {}

    def through(self, number: int | None, moment: Moment) -> FaultyStore:
        decide = (lambda _: None) if number is None else once(number, moment, None)
        return FaultyStore(self.store, decide)

    fault = st.one_of(st.none(), st.integers(0, 60))
    content = st.integers(0, CONTENTS - 1)
    ref = st.sampled_from(["main", "canary"])
    moment = st.sampled_from(MOMENTS)

    @rule(content=content, ref=ref, number=fault, moment=moment)
    def publish(self, content: int, ref: str, number: int | None, moment: Moment) -> None:
        for store in (self.through(number, moment), self.store):
            try:
                done = publish(open_source(str(self.folders[content])), store, "tiny", ref=ref)
            except OnecopyError:
                assert store is not self.store, "without a fault it ends right"
            else:
                break
        else:
            raise AssertionError
        assert self.ids.setdefault(content, done.revision) == done.revision
        self.there.add(content)
        self.refs[ref] = content

    @rule(content=content, ref=ref, number=fault, moment=moment)
    def move(self, content: int, ref: str, number: int | None, moment: Moment) -> None:
        revision = self.ids.get(content, "f" * 16)
        try:
            before = catalogue.read_ref(self.store, "tiny", ref)
            catalogue.write_ref(self.through(number, moment), "tiny", ref, revision, expected=before)
        except ObjectMissing:
            assert content not in self.there or number is not None
        except OnecopyError:
            assert number is not None
        now = catalogue.read_ref(self.store, "tiny", ref)
        if now is not None and now.revision == revision and content in self.there:
            self.refs[ref] = content

    @rule(content=content, number=fault, moment=moment)
    def delete(self, content: int, number: int | None, moment: Moment) -> None:
        if content not in self.ids:
            return
        try:
            care.delete_revision(self.through(number, moment), "tiny", self.ids[content])
        except PreconditionFailed:
            assert content in self.refs.values()
        except OnecopyError:
            assert number is not None or content not in self.there
        if not _is_there(self.store, "tiny", self.ids[content]):
            self.there.discard(content)

    @rule(number=fault, moment=moment)
    def gc(self, number: int | None, moment: Moment) -> None:
        try:
            store = self.through(number, moment)
            care.collect(store, care.plan_gc(store, grace=0))
        except OnecopyError:
            assert number is not None
        else:
            if number is None:
                self.there = set(self.refs.values())
        self.there = {content for content in self.there if _is_there(self.store, "tiny", self.ids[content])}

    @rule(content=content)
    def damage_and_mend(self, content: int) -> None:
        if content not in self.there:
            return
        key = layout.file_key("tiny", self.ids[content], "model-00001-of-00002.safetensors")
        self.store.put(key, bytes(self.store.head(key).size))
        found = verify(self.store, "tiny", self.ids[content], deep=True)
        assert {problem.kind for problem in found.problems} >= {"digest"}
        repair(self.store, found, source=open_source(str(self.folders[content])))

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        look(self.store)
        assert {r.name: r.revision for r in catalogue.list_refs(self.store, "tiny")} == {
            name: self.ids[content] for name, content in self.refs.items()
        }
        listed = {info.revision for info in catalogue.list_revisions(self.store, "tiny")}
        assert listed == {self.ids[content] for content in self.there}
        assert set(self.refs.values()) <= self.there


def test_any_order_of_things(folders: list[Path], tmp_path: Path, small_ranges: None) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    RegistryMachine.folders, RegistryMachine.root = folders, tmp_path
    run_state_machine_as_test(
        RegistryMachine, settings=settings(max_examples=20, stateful_step_count=12, deadline=None)
    )
