"""Where things lie below a store's prefix.

<model>/revisions/<revision>/<file>          plain Hugging Face layout: any tool can read it
<model>/revisions/<revision>/onecopy.json    the manifest, written last: without it the revision does not exist
<model>/refs/<ref>.json                      a movable name
<model>/leases/<holder>.json                 somebody needs a revision until a time, whatever the refs say
<model>/uploads/<revision>/<file>.json       what a publisher knows of a file it has finished; gone once committed
"""

from __future__ import annotations

MANIFEST = "onecopy.json"


def revision_prefix(model: str, revision: str) -> str:
    return f"{model}/revisions/{revision}"


def file_key(model: str, revision: str, path: str) -> str:
    return f"{revision_prefix(model, revision)}/{path}"


def manifest_key(model: str, revision: str) -> str:
    return file_key(model, revision, MANIFEST)


def ref_key(model: str, ref: str) -> str:
    return f"{model}/refs/{ref}.json"


def lease_key(model: str, holder: str) -> str:
    return f"{model}/leases/{holder}.json"


def uploads_prefix(model: str, revision: str) -> str:
    return f"{model}/uploads/{revision}"


def upload_key(model: str, revision: str, path: str) -> str:
    return f"{uploads_prefix(model, revision)}/{path}.json"
