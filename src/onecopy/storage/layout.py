"""Where things lie below a store's prefix.

<model>/revisions/<revision>/<file>          plain Hugging Face layout: any tool can read it
<model>/revisions/<revision>/onecopy.json    the manifest, written last: without it the revision does not exist
<model>/refs/<ref>.json                      a movable name
"""

from __future__ import annotations

MANIFEST = "onecopy.json"


def revision_prefix(model: str, revision: str) -> str:
    return f"{model}/revisions/{revision}"


def manifest_key(model: str, revision: str) -> str:
    return f"{revision_prefix(model, revision)}/{MANIFEST}"


def ref_key(model: str, ref: str) -> str:
    return f"{model}/refs/{ref}.json"
