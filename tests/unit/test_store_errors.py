"""Errors that no server can be asked for: the text is obstore's own, taken from a machine that is no instance."""

from __future__ import annotations

from obstore.exceptions import GenericError

from onecopy.core.errors import CredentialsInvalid
from onecopy.storage.objectstore import translate
from onecopy.storage.uri import StoreUri

NO_INSTANCE = (
    "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 4.9ms"
    " - Server returned non-2xx status code: 403 Forbidden"
)


def test_no_credentials_anywhere() -> None:
    error = translate(GenericError(NO_INSTANCE), "list", StoreUri.parse("s3://bucket/models"), "")
    assert isinstance(error, CredentialsInvalid)
    assert "no credentials" in error.message
    assert "AWS_ACCESS_KEY_ID" in (error.hint or "")
