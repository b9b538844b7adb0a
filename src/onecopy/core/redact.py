"""Secrets mask themselves by type, and texts of others are scrubbed before they are shown or kept."""

from __future__ import annotations

import re

_PATTERNS = (
    # presigned URLs (S3, GCS, Azure SAS) carry their secret in the query
    re.compile(r"(?i)([?&](?:x-amz-[a-z-]+|x-goog-[a-z-]+|sig|se|sp|sv|signature|awsaccesskeyid|token)=)[^&\s\"']+"),
    re.compile(r"(?i)(authorization:?\s*(?:bearer|basic|aws4-hmac-sha256)\s+)[^\"'\r\n]+"),
    re.compile(r"()\bhf_[A-Za-z0-9]{8,}"),
    re.compile(r"(?i)((?:secret|password|token|api[_-]?key)[\w-]*[\"']?\s*[:=]\s*[\"']?)[^\s\"',}]+"),
    re.compile(r"(\w+://)[^/\s:@]+:[^/\s@]+@"),
)


def redact(text: str) -> str:
    for pattern in _PATTERNS:
        text = pattern.sub(lambda match: f"{match[1]}***", text)
    return text


class Secret(str):
    """A string that never shows itself in a repr, a traceback's locals or a dataclass dump. Use `reveal()`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def reveal(self) -> str:
        return str.__str__(self)
