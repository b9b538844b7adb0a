"""Multipart uploads that were never completed: they cost money and no listing shows them. S3 only.

obstore cannot list or abort another process's upload, so boto3 does (extra `aws`). Azure drops uncommitted blocks
after a week by itself; on GCS set a lifecycle rule (AbortIncompleteMultipartUpload); a folder has none.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from onecopy.core.errors import PermissionDenied, StoreError
from onecopy.storage.objectstore import ObjectStore
from onecopy.storage.store import Store


@dataclass(frozen=True, slots=True)
class Upload:
    """key: below the store's prefix. initiated: seconds since the epoch."""

    key: str
    upload_id: str
    initiated: float


def can_list_uploads(store: Store) -> bool:
    """False where there are none to list, or boto3 is not installed."""
    return store.uri.scheme == "s3" and importlib.util.find_spec("boto3") is not None


def list_uploads(store: Store, prefix: str = "") -> list[Upload]:
    """Uploads below `prefix` that are under way or abandoned; empty where `can_list_uploads` is false."""
    if not can_list_uploads(store):
        return []
    client = _client(store)
    base = f"{store.uri.prefix}/" if store.uri.prefix else ""
    found: list[Upload] = []
    try:
        for page in client.get_paginator("list_multipart_uploads").paginate(
            Bucket=store.uri.bucket, Prefix=f"{base}{prefix}"
        ):
            found.extend(
                Upload(upload["Key"].removeprefix(base), upload["UploadId"], upload["Initiated"].timestamp())
                for upload in page.get("Uploads", ())
            )
    except Exception as error:
        raise _translate(error, "list multipart uploads of", store) from error
    return found


def abort_upload(store: Store, key: str, upload_id: str) -> None:
    """Idempotent."""
    base = f"{store.uri.prefix}/" if store.uri.prefix else ""
    try:
        _client(store).abort_multipart_upload(Bucket=store.uri.bucket, Key=f"{base}{key}", UploadId=upload_id)
    except Exception as error:
        if "NoSuchUpload" not in str(error):
            raise _translate(error, "abort multipart uploads of", store) from error


def _client(store: Store) -> Any:
    # Imported by name: neither brings types
    boto3: Any = importlib.import_module("boto3")
    config: Any = importlib.import_module("botocore.config").Config

    inner: Any = store
    while not isinstance(inner, ObjectStore):  # a wrapper holds what it wraps as `inner`
        inner = inner.inner
    options = inner.options
    secret = options.secret_access_key
    return boto3.client(
        "s3",
        endpoint_url=inner.endpoint,
        region_name=inner.region,
        aws_access_key_id=options.access_key_id,
        aws_secret_access_key=secret.reveal() if secret else None,
        verify=str(options.ca_file) if options.ca_file else None,
        config=config(s3={"addressing_style": "path" if inner.endpoint else "auto"}, retries={"max_attempts": 3}),
    )


def _translate(error: Exception, action: str, store: Store) -> StoreError:
    code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
    if code in ("AccessDenied", "403"):
        return PermissionDenied(
            f"no permission to {action} {store.uri}",
            hint="it needs s3:ListBucketMultipartUploads and s3:AbortMultipartUpload",
        )
    return StoreError(f"the store failed to {action} {store.uri}: {code or type(error).__name__}")
