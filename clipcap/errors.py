"""Every error the project raises, the exit code it ends with, and whether trying again can help."""

from __future__ import annotations

from typing import ClassVar, Final, Literal, get_args

Reason = Literal[
    "not_found",
    "access_denied",
    "timeout",
    "empty_file",
    "not_an_image",
    "truncated",
    "decode_failed",
    "unsupported_format",
    "decompression_bomb",
    "too_small",
    "too_large",
    "bad_sidecar",
    "duplicate_key",
    "opted_out",
    "oom",
    "model_error",
    "caption_empty",
]
"""Why an image was left out: the closed list of the output contract."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
RETRYABLE_REASONS: Final[frozenset[Reason]] = frozenset(
    ("timeout", "access_denied", "oom", "model_error")
)
"""Reasons that are tried again next night; the others wait until the object changes."""
LIMIT_REASONS: Final[frozenset[Reason]] = frozenset(
    ("too_large", "too_small", "decompression_bomb")
)
"""Reasons that hold only under the limits of that night: tried again under others."""


class ClipcapError(Exception):
    """Base of all errors; the message says what must be, what is, where, and what to do."""

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False


class SettingsError(ClipcapError):
    """The caller asked for what cannot be: a name, a file, or two things that do not fit."""

    exit_code = 2


class HubError(ClipcapError):
    """The model hub did not answer and the model is not on this machine."""

    exit_code = 3


class StorageError(ClipcapError):
    """A store refused: no credentials, no bucket, not writable."""

    exit_code = 4


class NotFoundError(StorageError):
    """The object, folder or bucket is not there."""


class DamagedError(StorageError):
    """An object is there, but is not whole."""


class AccessDeniedError(StorageError):
    """The store knows who asks, or cannot tell, and says no."""


class TransientStorageError(StorageError):
    """The store said "later": a timeout, a reset, a 5xx."""

    retryable = True


class DeviceError(ClipcapError):
    """The device asked for is not there, or the model does not fit into it."""

    exit_code = 5


class TooManyRejectsError(ClipcapError):
    """More images were rejected than the run allows."""

    exit_code = 6


class DriftError(ClipcapError):
    """The night differs from those before it, or a canary image lost its label: not published."""

    exit_code = 9


class LeaseError(ClipcapError):
    """Another run works on the output, or took it over from this one."""

    exit_code = 7


class StalledError(ClipcapError):
    """A run took no step any more; its process was ended."""

    exit_code = 10


class ServerError(ClipcapError):
    """The Prefect server did not answer."""

    exit_code = 8


class WorkerLostError(ServerError):
    """A worker, or the process in which it worked, ended before it could say what it did."""

    retryable = True


class PartitionsFailedError(ClipcapError):
    """Some partitions of a run failed; the others kept their commits."""


class ImageError(ClipcapError):
    """One image cannot be used; becomes a reject, never the end of a shard."""

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep the contract's `reason` beside the text."""
        super().__init__(message)
        self.reason: Reason = reason
