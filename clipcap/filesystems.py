"""A canonical URL in, calls of the fsspec filesystem behind it out: under a deadline, translated.

Only `clipcap.storage` asks here. What a call raises becomes a `StorageError`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from clipcap.errors import SettingsError
from clipcap.refusals import Call, translated

S3: Final = ("s3", "s3a")
_WEB: Final = ("http", "https")
_CONNECT_S: Final = 10
_READ_S: Final = 60
_S3_ENVIRONMENT: Final = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
)


@dataclass(frozen=True, slots=True)
class Store:
    """A filesystem, and the name that a URL has in it; no call takes longer than `deadline_s`."""

    url: str
    name: str
    filesystem: Any
    deadline_s: float

    def call(self, kind: Call, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run a method of fsspec, such as `cat_file`, on the name.

        Raises:
            StorageError: the store refused, or did not answer before the deadline.
        """
        fs = self.filesystem
        with translated(kind, self.url):
            if not isinstance(fs, AsyncFileSystem):
                return getattr(fs, method)(self.name, *args, **kwargs)
            function = getattr(fs, f"_{method}")
            return sync(fs.loop, function, self.name, *args, timeout=self.deadline_s, **kwargs)

    def visible_buckets(self) -> list[str]:
        """Return the buckets that these credentials may see; none where they may not even ask."""
        fs = self.filesystem
        try:
            found = sync(fs.loop, fs._lsbuckets, timeout=self.deadline_s)
        except (OSError, ValueError):
            return []
        return sorted(bucket["name"] for bucket in found)


def open_store(url: str, *, deadline_s: float) -> Store:
    """Return the filesystem that a canonical URL stands for, without asking it anything.

    Raises:
        SettingsError: there is none for such URLs.
    """
    protocol, _, rest = url.partition("://")
    if protocol in S3:
        environment = tuple(os.environ.get(name) for name in _S3_ENVIRONMENT)
        return Store(url, rest, _s3(environment), deadline_s)
    name = {"memory": f"/{rest}", **dict.fromkeys(_WEB, url)}.get(protocol, rest)
    try:
        return Store(url, name, fsspec.filesystem(protocol), deadline_s)
    except (ImportError, ValueError, TypeError) as error:
        raise SettingsError(f"The URL {url} cannot be opened: {error}.") from error


@lru_cache(maxsize=8)
def _s3(environment: tuple[str | None, ...]) -> Any:  # noqa: ANN401 - fsspec is untyped
    """Return one filesystem per environment, so that a changed key or endpoint is seen."""
    import s3fs  # noqa: PLC0415 - 0.8 s that a local run need not wait for

    return s3fs.S3FileSystem(
        endpoint_url=environment[0] or environment[1],
        use_listings_cache=False,
        skip_instance_cache=True,
        default_fill_cache=False,
        config_kwargs={
            "connect_timeout": _CONNECT_S,
            "read_timeout": _READ_S,
            "retries": {"max_attempts": 3, "mode": "standard"},
        },
    )
