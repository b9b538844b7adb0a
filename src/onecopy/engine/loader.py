"""`--load-format onecopy`: vLLM's own loading, fed from mapped files, and on a CPU one copy for all replicas.

`--model` is a published revision (plain Hugging Face layout with onecopy.json) or any Hugging Face folder. How the
weights are held on a CPU, best first; each falls back to the next, said once in the log:
  packed  one image per machine, made by the first replica, mapped by all (needs AVX512 with bf16, a published revision
          and a cache folder that can be written)
  views   parameters point into the checkpoint's own pages where the bytes are the same; the rest stays private
  copy    as vLLM does it: quantised models, online quantisation, anything that is not plainly the two above
On other devices tensors are handed to vLLM's own loading. A folder without weights sends us to the store, the node cache
or both that `--model-loader-extra-config` names (keys: `Settings`); tensors are then handed over while the fetch still
runs. With neither, vLLM's default loading has the last word.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import vllm
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.logger import init_logger
from vllm.model_executor.layers import utils as layer_utils
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.weight_utils import filter_duplicate_safetensors_files
from vllm.platforms import current_platform

from onecopy.core import environment
from onecopy.engine import image, ring
from onecopy.engine.load_report import LoadReport
from onecopy.engine.mapped import Checkpoint, UnknownDtype
from onecopy.engine.origin import Origin, open_origin

# below vLLM's name space: other loggers are silent in its workers
logger = init_logger("vllm.onecopy")

PACKED_FOLDER = ".packed"
SHARING = ("auto", "packed", "views", "copy")


@dataclass(frozen=True, slots=True)
class Settings:
    """Keys of `--model-loader-extra-config`."""

    share: str = "auto"
    """Best way of sharing to try: packed, views or copy; auto is packed."""
    packed_dir: str | None = None
    """Folder of the packed images; by default `.packed` beside the revision."""
    wait: float = 600.0
    """Longest wait for another replica that packs, in seconds."""
    ring: bool = False
    """Device: stage tensors through a ring of pinned buffers. Not proven on a card, so it is off."""
    store: str | None = None
    """Where the weights are when --model holds none: s3://bucket/prefix, gs://…, az://…; credentials by environment."""
    name: str | None = None
    """The model's name in that store."""
    revision: str | None = None
    """Its revision: an id, never a ref, so that what runs cannot change."""
    cache: str | None = None
    """Node cache to fill and map (default: ONECOPY_CACHE_DIR); without one, each replica keeps a private copy."""

    @classmethod
    def parse(cls, extra: Any) -> Settings:
        if not isinstance(extra, dict):
            raise TypeError(f"model-loader-extra-config must be an object, not {extra!r}")
        known = [item.name for item in fields(cls)]
        for key in extra:
            if key not in known:
                raise ValueError(f"model-loader-extra-config: unknown key {key!r}; known are {', '.join(known)}")
        settings = cls(**extra)
        if settings.share not in SHARING:
            raise ValueError(
                f"model-loader-extra-config: share is {settings.share!r}; it is one of {', '.join(SHARING)}"
            )
        return settings


@dataclass(slots=True)
class _Load:
    """State of one model's load. linear: products that replace vLLM's repacking, by id of the module."""

    origin: Origin
    share: str
    report: LoadReport
    checkpoint: Checkpoint | None = None
    linear: dict[int, image.Linear] = field(default_factory=dict)


class OnecopyModelLoader(DefaultModelLoader):
    """See the module."""

    def __init__(self, load_config: LoadConfig) -> None:
        self.settings = Settings.parse(load_config.model_loader_extra_config)
        # hf: safetensors where there are some, else what else vLLM can read
        super().__init__(replace(load_config, load_format="hf", model_loader_extra_config={}))
        self._load: _Load | None = None

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        report, settings = LoadReport(model=model_config.model, sharing="copy"), self.settings
        cache = settings.cache or environment.read("ONECOPY_CACHE_DIR")
        weights = open_origin(
            Path(model_config.model),
            store=settings.store,
            name=settings.name,
            revision=settings.revision,
            cache=Path(cache) if cache else None,
            report=report,
            say=_say,
        )
        with report.phase("total"), weights as origin:
            report.sharing, why = self._sharing(origin, vllm_config, model_config)
            if why:
                _say(f"weights held as {report.sharing}: {why}")
            self._load = load = _Load(origin, report.sharing, report)
            try:
                with self._dispatch(load):
                    model = super().load_model(vllm_config, model_config, prefix)
                origin.finish()  # where vLLM's own reader had the last word, or some file was of no use
            finally:
                self._load = None
        report.finish(logger.info)
        return model

    def download_model(self, model_config: ModelConfig) -> None:
        if not self.settings.store:
            super().download_model(model_config)

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        load = self._load
        self.counter_before_loading_weights = time.perf_counter()
        if load is None or load.share == "copy":
            super().load_weights(model, model_config)
        elif load.share == "packed":
            self._load_packed(load, model, model_config)
        else:
            self._load_views(load, model, model_config)

    def _get_weights_iterator(self, source: DefaultModelLoader.Source) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors as views on the mapped files, in file order. What only vLLM's reader filters is left to it."""
        own = (
            self.local_expert_ids is None
            and self._encoder_only_lm_prefixes is None
            and source.is_unused_weight is None
            and self.load_config.safetensors_load_strategy in (None, "lazy")
        )
        if own:
            _, names, safetensors, _ = self._prepare_weights(
                source.model_or_path,
                source.subfolder,
                source.revision,
                source.fall_back_to_pt,
                source.allow_patterns_overrides,
            )
            try:
                checkpoint = self._checkpoint([Path(name) for name in names]) if safetensors else None
            except UnknownDtype as error:
                _say(f"vLLM's own reader is used: {error}")
                checkpoint = None
            if checkpoint is not None:
                tensors = checkpoint.tensors()
                if self.settings.ring and current_platform.is_cuda() and get_tensor_model_parallel_world_size() == 1:
                    # with several ranks each needs a slice only, which vLLM cuts from the mapped tensor itself
                    tensors = ring.to_device(tensors, torch.device("cuda", torch.cuda.current_device()))
                for at, (name, tensor) in enumerate(tensors):
                    if not at and self._load is not None and self._load.origin.files is not None:
                        _say("the first tensor is here, others are still on their way")
                    yield source.prefix + name, tensor
                return
        if self._load is not None:
            self._load.origin.finish()  # it reads whole files
        yield from super()._get_weights_iterator(source)

    def _prepare_weights(
        self,
        model_name_or_path: str,
        subfolder: str | None,
        revision: str | None,
        fall_back_to_pt: bool,
        allow_patterns_overrides: list[str] | None,
    ) -> tuple[str, list[str], bool, str]:
        """The model's own files where they are, or where they will be: what is being filled is not looked into."""
        load = self._load
        if load is None or model_name_or_path != load.report.model:
            return super()._prepare_weights(
                model_name_or_path, subfolder, revision, fall_back_to_pt, allow_patterns_overrides
            )
        if subfolder is not None or allow_patterns_overrides is not None or not load.origin.files:
            load.origin.finish()
        folder, names = str(load.origin.folder), load.origin.files
        if names is None:
            return super()._prepare_weights(folder, subfolder, revision, fall_back_to_pt, allow_patterns_overrides)
        index = SAFE_WEIGHTS_INDEX_NAME  # it lies in --model, beside the config
        wanted = filter_duplicate_safetensors_files(
            [str(Path(model_name_or_path) / name) for name in names], model_name_or_path, index
        )
        return folder, [str(load.origin.folder / Path(name).name) for name in wanted], True, index

    def _checkpoint(self, files: list[Path]) -> Checkpoint:
        load = self._load
        if load is None:
            return Checkpoint(files)
        if load.checkpoint is None or set(load.checkpoint.headers) != set(files):
            load.checkpoint = Checkpoint(files, load.origin.wait, load.origin.open)
            load.report.add_bytes("cache", load.checkpoint.bytes)
        return load.checkpoint

    def _main_checkpoint(self, model_config: ModelConfig) -> Checkpoint:
        _, names, _, _ = self._prepare_weights(model_config.model, None, model_config.revision, False, None)
        return self._checkpoint([Path(name) for name in names])

    def _sharing(self, origin: Origin, vllm_config: VllmConfig, model_config: ModelConfig) -> tuple[str, str]:
        """(packed | views | copy, why not better)."""
        wanted = "packed" if self.settings.share == "auto" else self.settings.share
        if wanted == "copy":
            return "copy", ""
        if not current_platform.is_cpu():
            return "copy", "the weights go to the device"
        if model_config.quantization is not None or vllm_config.quant_config is not None:
            return "copy", f"{model_config.quantization} weights are repacked by vLLM in each replica"
        if not (origin.files or any(origin.folder.glob("*.safetensors"))):
            return "copy", "no safetensors files"
        if origin.private:
            return "copy", "nobody else maps a private copy"
        if wanted == "views":
            return "views", ""
        if not origin.published:
            return "views", f"{origin.folder} is not a published revision, so its files may change"
        if not image.can_pack():
            return "views", f"no packed kernels for {image.isa()}"
        return "packed", ""

    def _load_views(self, load: _Load, model: nn.Module, model_config: ModelConfig) -> None:
        with load.report.phase("read"):
            super().load_weights(model, model_config)
        load.origin.finish()
        with load.report.phase("share"):
            shared, private = image.share_views(model, self._main_checkpoint(model_config))
        load.report.add_bytes("shared", shared)
        load.report.add_bytes("private", private)

    def _load_packed(self, load: _Load, model: nn.Module, model_config: ModelConfig) -> None:
        folder = self._image_folder(load.origin.folder, model)
        try:
            opened = self._open_image(load, folder, model, model_config)
        except (image.ImageError, OSError) as error:  # nothing of the model was changed yet
            logger.warning("onecopy: weights held as views: %s", error)
            load.share = load.report.sharing = "views"
            self._load_views(load, model, model_config)
            return
        with load.report.phase("map"):
            load.linear = opened.attach(model)
        load.report.add_bytes("packed", opened.bytes)

    def _open_image(self, load: _Load, folder: Path, model: nn.Module, model_config: ModelConfig) -> image.Image:
        """The image, made first if it is not there. One replica packs while the others wait for its lock."""
        with ExitStack() as held:
            with load.report.phase("wait"):
                # who waits for another's packing waits for the fill first: it has a time of its own
                held.enter_context(_locked(folder, self.settings.wait, load.origin.finish))
            if not (folder / image.INDEX).exists():
                with load.report.phase("read"):
                    super().load_weights(model, model_config)
                load.origin.finish()
                with load.report.phase("pack"):
                    written = image.build(model, self._main_checkpoint(model_config), folder)
                load.report.add_bytes("packed_written", written)
                # the packer has read the whole checkpoint: without this its pages would stay mapped beside the image
                self._main_checkpoint(model_config).release()
        load.origin.finish()
        return image.Image(folder, self._main_checkpoint(model_config))

    def _image_folder(self, folder: Path, model: nn.Module) -> Path:
        root = Path(self.settings.packed_dir) if self.settings.packed_dir else folder.parent / PACKED_FOLDER
        rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        key = f"{folder.name}-{image.isa()}-vllm{vllm.__version__}-rank{rank}of{ranks}-{image.layout_digest(model)}"
        return root / key

    @contextmanager
    def _dispatch(self, load: _Load) -> Iterator[None]:
        """While a model loads, vLLM's choice of a CPU product goes through us: what is shared is not repacked.

        vLLM looks the function up at each call, so replacing it here reaches every layer.
        """
        if not current_platform.is_cpu():
            yield
            return
        original = layer_utils.dispatch_cpu_unquantized_gemm

        def dispatch(layer: nn.Module, remove_weight: bool) -> None:
            product = load.linear.get(id(layer))
            if product is not None:
                layer.cpu_linear = product
            elif load.share == "copy" or layer.weight.is_meta or layer.weight.ndim != 2:
                original(layer, remove_weight)
            else:
                layer.cpu_linear = nn.functional.linear

        layer_utils.dispatch_cpu_unquantized_gemm = dispatch
        try:
            yield
        finally:
            layer_utils.dispatch_cpu_unquantized_gemm = original


def _say(message: str) -> None:
    logger.info("onecopy: %s", message)


@contextmanager
def _locked(folder: Path, timeout: float, busy: Callable[[], object]) -> Iterator[None]:
    """Held while packing. The lock of a dead holder is free. busy: done first when it is held. Raises TimeoutError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    deadline: float | None = None
    with folder.with_name(folder.name + ".lock").open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline is None:
                    busy()
                    deadline = time.monotonic() + timeout
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another replica has packed {folder} for {timeout:.0f} s") from None
                time.sleep(0.02)
        yield
