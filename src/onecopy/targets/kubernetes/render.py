"""Stages as files for GitOps: `manifests/NN-<stage>.yaml`, `helm/<release>.values.yaml`, `helm/releases.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from onecopy.core.errors import UsageError
from onecopy.targets.kubernetes.build import Stage


def write(stages: Sequence[Stage], out: Path) -> list[Path]:
    """Returns what was written, sorted. Files of an earlier rendering that are no longer made are removed.

    Raises UsageError when `out` cannot be written.
    """
    files: dict[Path, str] = {}
    for number, stage in enumerate(stages):
        if stage.objects:
            files[out / "manifests" / f"{number:02d}-{stage.name}.yaml"] = dump_all(list(stage.objects))
        for release in stage.releases:
            files[out / "helm" / f"{release.name}.values.yaml"] = dump(release.values)
    listed = [release.as_dict() for stage in stages for release in stage.releases]
    files[out / "helm" / "releases.yaml"] = dump({"releases": listed})
    try:
        for folder in ("manifests", "helm"):
            (out / folder).mkdir(parents=True, exist_ok=True)
            for old in (out / folder).glob("*.yaml"):
                if old not in files:
                    old.unlink()
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error}", hint="name another folder with --out") from error
    return sorted(files)


class _Dumper(yaml.SafeDumper):
    """Block style, lists indented, no anchors: what people read in a review."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless
        super().increase_indent(flow, False)


def dump(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120)


def dump_all(values: list[Any]) -> str:
    return yaml.dump_all(values, Dumper=_Dumper, sort_keys=False, width=120, explicit_start=True)
