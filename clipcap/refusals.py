"""What a filesystem raised in; a `StorageError` out: which call was refused, and what to do."""

from __future__ import annotations

import errno
from typing import Final, Literal

from clipcap.errors import AccessDeniedError, NotFoundError, StorageError, TransientStorageError

Call = Literal["list", "get", "put", "delete"]
_LATER: Final = frozenset(
    (
        *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout"),
        *("408", "425", "429", "500", "502", "503", "504"),
    )
)
_DENIED: Final = frozenset(("ExpiredToken", "InvalidAccessKeyId", "401", "403", "451"))
_MISSING: Final = frozenset(("404", "410", "KeyTooLongError", "InvalidObjectName"))
_TAKEN: Final = frozenset(("409", "412"))
_NOT_A_PLACE: Final = frozenset((errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP))
_LOOKED_IN: Final = {
    "s3": "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), profile (AWS_PROFILE, or "
    "CLIPCAP_S3_PROFILES for a bucket), instance role. For a store other than AWS set "
    "AWS_ENDPOINT_URL too.",
    "gs": "environment (GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SERVICE_ACCOUNT), the machine.",
    "az": "environment (AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY), the machine.",
}
_OTHER_TIME: Final = frozenset(("RequestTimeTooSkewed", "RequestExpired"))
NO_KEYS: Final = "no keys"
NO_NAME: Final = "InvalidObjectName"
NOT_PUBLIC: Final = "not public"


class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """The HTTP status of an answer, and the store's own word for it (`NoSuchKey`) where it has one.

    Nothing else of an answer is kept, since it may repeat keys; only `said` is shown to people.
    """

    def __init__(self, status: str, name: str = "", *, said: str = "") -> None:
        super().__init__(name or status)
        self.status, self.name, self.said = status, name, said

    def is_one_of(self, codes: frozenset[str]) -> bool:
        """Tell whether status or name stand in a list."""
        return self.status in codes or self.name in codes

    @property
    def is_passing(self) -> bool:
        """Whether the same request may do well a little later."""
        return self.is_one_of(_LATER)


class Damaged(ConnectionError):  # noqa: N818 - an answer too
    """What came is not whole, or not what was asked for; asked again, it may be."""

    def __init__(self) -> None:
        super().__init__("its answer is damaged, or none to what was asked")


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
        if isinstance(error, Refusal) and self.kind == "put" and error.is_one_of(_TAKEN):
            raise FileExistsError(f"{self.url} is there already.") from error
        if (refusal := _translate(self.kind, self.url, error)) is not None:
            raise refusal from error


def _translate(kind: Call, url: str, error: BaseException) -> StorageError | None:
    where = f"Cannot {kind} {url}"
    if isinstance(error, Refusal):
        return _of_store(url, where, error)
    name = type(error).__name__
    if isinstance(error, PermissionError):
        return AccessDeniedError(f"{where}: access denied ({name}). {_keys_hint(url)}")
    if isinstance(error, NotADirectoryError):
        return NotFoundError(f"{where}: a part of its path is a file, not a folder.")
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where}: it is not there ({name}).")
    if isinstance(error, Damaged):
        return TransientStorageError(f"{where}: {error}.")
    if isinstance(error, TimeoutError | ConnectionError):
        return TransientStorageError(
            f"{where}: the store did not answer in time ({str(error) or name})."
        )
    return _of_system(kind, where, error) if isinstance(error, OSError) else None


def _of_store(url: str, where: str, error: Refusal) -> StorageError:
    if error.status == NO_KEYS:
        return AccessDeniedError(f"{where}: no credentials found. {error.said}{_keys_hint(url)}")
    if error.status in _TAKEN:  # of a read: no longer the version that it began with
        return TransientStorageError(f"{where}: it was replaced while it was read.")
    if error.is_passing:
        return TransientStorageError(f"{where}: the store did not answer in time ({error}).")
    if error.status == NOT_PUBLIC:
        return AccessDeniedError(
            f"{where}: access denied: it leads to an address that is not of the public web. "
            f"{error.said or '`private_addresses` in the options of the source allows it.'}"
        )
    if error.is_one_of(_OTHER_TIME):
        return AccessDeniedError(
            f"{where}: access denied ({error}): the clock of this machine must be within minutes "
            "of the store's, but is not. Set it (`timedatectl set-ntp true`) and run again."
        )
    if error.is_one_of(_DENIED):
        return AccessDeniedError(f"{where}: access denied ({error}). {_keys_hint(url)}")
    if error.is_one_of(_MISSING) or (url.startswith("http") and error.status[0] in "34"):
        return NotFoundError(f"{where}: {error.said or 'it is not there'} ({error}).")
    return StorageError(f"{where}: {error.said or 'the store refuses'} ({error}).")


def _of_system(kind: Call, where: str, error: OSError) -> StorageError:
    if kind == "get" and error.errno in _NOT_A_PLACE:
        return NotFoundError(f"{where}: no object can have this name ({error.strerror}).")
    full = " The disk is full." if error.errno == errno.ENOSPC else ""
    return StorageError(f"{where}: {error.strerror or type(error).__name__}.{full}")


def _keys_hint(url: str) -> str:
    if url.startswith("http"):
        return "Web addresses are read without a login."
    looked_in = _LOOKED_IN.get(url.partition("://")[0].removesuffix("a"))
    return (
        f"Keys were looked for in: {looked_in}" if looked_in else "Check the rights of the folder."
    )
