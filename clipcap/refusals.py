"""What a filesystem raised in; a `StorageError` out: which call was refused, and what to do."""

from __future__ import annotations

import errno
from typing import Final, Literal

from clipcap.errors import AccessDeniedError, NotFoundError, StorageError, TransientStorageError

Call = Literal["list", "get", "put", "delete"]
_LATER: Final = frozenset(
    (
        "SlowDown",
        "InternalError",
        "ServiceUnavailable",
        "RequestTimeout",
        "500",
        "502",
        "503",
        "504",
        "408",
        "429",
    )
)
_DENIED: Final = frozenset(
    (
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "401",
        "403",
        "451",
        "Forbidden",
        "ExpiredToken",
    )
)
_MISSING: Final = frozenset(
    (
        "NoSuchBucket",
        "NoSuchKey",
        "404",
        "NotFound",
        "InvalidBucketName",
        "InvalidObjectName",
        "KeyTooLongError",
    )
)
_TAKEN: Final = frozenset(("PreconditionFailed", "ConditionalRequestConflict", "412"))

_CONNECTION: Final = frozenset(
    ("aiohttp.client_exceptions.ClientError", "botocore.exceptions.HTTPClientError")
)
_NOT_A_PLACE: Final = frozenset((errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP))

_NO_ANSWER: Final = frozenset(
    (
        "FSTimeoutError",
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
        "IncompleteReadError",
        "ClientConnectorError",
        "ResponseStreamingError",
    )
)


class translated:  # noqa: N801 - a verb: `with translated("get", url)`
    """Turn what a filesystem raises into a `StorageError` that names the call and what to do.

    A class, because the client libraries' errors have no common base that could be caught by name.
    """

    def __init__(self, kind: Call, url: str) -> None:
        self.kind, self.url = kind, url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, StorageError | FileExistsError):
            return
        if _code(error) in _TAKEN:  # s3fs makes EINVAL of it, or FileExistsError, by the store
            raise FileExistsError(f"{self.url} is there already.") from error
        if (refusal := _translate(self.kind, self.url, error)) is not None:
            raise refusal from error


def _translate(kind: str, url: str, error: BaseException) -> StorageError | None:
    code = _code(error)
    name = type(error).__name__
    where = f"Cannot {kind} {url}"
    if isinstance(error, PermissionError) or code in _DENIED:
        return AccessDeniedError(f"{where}: access denied ({code or name}). {_keys_hint(url)}")
    if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return AccessDeniedError(f"{where}: no credentials found. {_keys_hint(url)}")
    if isinstance(error, NotADirectoryError):
        return NotFoundError(f"{where}: a part of its path is a file, not a folder.")
    if isinstance(error, FileNotFoundError) or code in _MISSING:
        return NotFoundError(f"{where}: it is not there ({code or name}).")
    later = isinstance(error, TimeoutError | ConnectionError) or code in _LATER
    if later or name in _NO_ANSWER:
        return TransientStorageError(f"{where}: the store did not answer in time ({code or name}).")
    found = _of_client(url, where, error)
    return _of_system(kind, where, error) if not found and isinstance(error, OSError) else found


def _of_system(kind: str, where: str, error: OSError) -> StorageError:
    if kind == "get" and error.errno in _NOT_A_PLACE:
        return NotFoundError(f"{where}: no object can have this name ({error.strerror}).")
    full = " The disk is full." if error.errno == errno.ENOSPC else ""
    return StorageError(f"{where}: {error.strerror or type(error).__name__}.{full}")


def _code(error: BaseException) -> str:
    """Return the store's own error code, looked for along the chain of causes."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code", ""))
        if isinstance(status := getattr(cause, "status", None), int):  # of an HTTP answer
            return str(status)
        cause = cause.__cause__
    return ""


def _of_client(url: str, where: str, error: BaseException) -> StorageError | None:
    """Judge what a client library raised of its own, without importing it."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if "botocore.exceptions.ParamValidationError" in kinds:
        return NotFoundError(f"{where}: no object can have this address.")
    if url.startswith("http") and (_code(error) or isinstance(error, ValueError)):
        return NotFoundError(f"{where}: the server does not give it ({_code(error) or error}).")
    if kinds & _CONNECTION:
        return TransientStorageError(f"{where}: the connection failed ({type(error).__name__}).")
    if "botocore.exceptions.BotoCoreError" in kinds:
        return StorageError(f"{where}: {error}.")
    return None


def _keys_hint(url: str) -> str:
    if url.startswith("http"):
        return "Web addresses are read without a login."
    if not url.startswith("s3"):
        return "Check the rights of the folder."
    return (
        "Keys were looked for in: environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), profile "
        "(AWS_PROFILE), instance role. For a store other than AWS set AWS_ENDPOINT_URL too."
    )
