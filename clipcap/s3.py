"""A bucket and an exact key in, signed requests to an S3 server out.

For what obstore cannot say: its paths have no words for keys such as `a//b`, `/a` or `a/../b`, its
listings fail on them and drop slashes at both ends, and it reads no profiles. Reads and writes of
usual keys go through obstore, which needs less than half the CPU for each.
"""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import httpcore

from clipcap import s3options, wire
from clipcap.errors import SettingsError
from clipcap.refusals import NO_KEYS, NO_NAME, Refusal

_ENVIRONMENT: Final = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE"),
    *s3options.ENVIRONMENT,
)
_NO_KEYS_S: Final = 60.0  # asking the metadata service of a machine without one takes seconds
_LOGIN_S: Final = 10.0  # for the servers that give the keys of a role or a login
_SLOWEST_BYTES_PER_S: Final = 2**20  # a large body may take longer, at this pace
_TRIES: Final = 3
_PAUSE_S: Final = 0.2
_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_BUCKET: Final = re.compile(rb"<Bucket>.*?<Name>([^<]*)</Name>.*?</Bucket>", re.DOTALL)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_HOST: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")  # a bucket that can be part of one


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server sent; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    data: bytes


def environment() -> tuple[str | None, ...]:
    """Return what the environment says of S3: one account, and one client, for each."""
    return tuple(map(os.environ.get, _ENVIRONMENT))


@lru_cache(maxsize=64)
def bucket(name: str, environment: tuple[str | None, ...], deadline_s: float) -> Bucket:
    """Return a bucket, of which each request ends before a deadline.

    Raises:
        Refusal: no bucket can have this name, or there are no keys.
        OSError: the store does not answer.
    """
    return Bucket(name, account(environment, s3options.profile(name)), deadline_s)


@lru_cache(maxsize=16)
def account(_environment: tuple[str | None, ...], profile: str = "") -> Account:
    """Return the account that an environment stands for, or a profile of its own in it."""
    return Account(profile)


def _forget() -> None:
    """Let a forked process make connections of its own."""
    bucket.cache_clear()
    account.cache_clear()


os.register_at_fork(after_in_child=_forget)


class Account:
    """Where an S3 store is, and the keys to it: from environment, profile or instance role."""

    def __init__(self, name: str = "") -> None:
        """Read environment and profile; no server is asked yet.

        Args:
            name: a profile to go by before the environment; empty: as AWS's own tools do.

        Raises:
            Refusal: the profile is not there, or cannot be read.
            SettingsError: a variable cannot be what it is.
        """
        import botocore.config  # noqa: PLC0415 - 0.2 s that a local run need not wait for
        import botocore.exceptions  # noqa: PLC0415
        import botocore.session  # noqa: PLC0415

        self._refused = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
        self._session = botocore.session.Session(profile=name or None)
        self.options = s3options.options()
        limits = {"connect_timeout": _LOGIN_S, "read_timeout": _LOGIN_S}
        retries = {"total_max_attempts": 2, "mode": "standard"}
        self._session.set_default_client_config(botocore.config.Config(**limits, retries=retries))
        self._keys: Any = None
        self._look_again_at = 0.0
        self._lock = threading.Lock()
        try:
            profile = self._session.get_scoped_config()
            self.endpoint = self._endpoint(profile, is_own=bool(name))
            asked = os.environ.get("AWS_REGION") or self._session.get_config_variable("region")
        except self._refused as error:
            raise _no_keys(error) from error
        self.region = asked or "us-east-1"
        own = profile.get("s3", {})
        style = own.get("addressing_style", "auto") if isinstance(own, dict) else "auto"
        usual = style == "virtual" or (style == "auto" and not self.endpoint)
        self.is_virtual = usual if self.options.is_virtual is None else self.options.is_virtual
        self.authorities = str(self._session.get_config_variable("ca_bundle") or "")
        proxy = "" if urllib.request.proxy_bypass(self._host) else _proxy(self._base)
        self.connections = wire.pool(wire.Backend(), authorities=self.authorities, proxy=proxy)

    @property
    def is_lasting(self) -> bool:
        """Whether the keys are good for ever: those of a role or a login are not."""
        self.keys()
        return not hasattr(self._keys, "refresh_needed")

    def keys(self) -> Any:  # noqa: ANN401 - botocore is untyped
        """Return the keys of this moment: `access_key`, `secret_key`, `token`.

        Raises:
            Refusal: there are none, or a role or login does not give them.
        """
        with self._lock:
            if self._keys is None and time.monotonic() >= self._look_again_at:
                self._look_again_at = time.monotonic() + _NO_KEYS_S
                try:
                    self._keys = self._session.get_credentials()
                except self._refused as error:
                    raise _no_keys(error) from error
        if self._keys is None:
            raise Refusal(NO_KEYS)
        try:
            return self._keys.get_frozen_credentials()
        except self._refused as error:
            raise _no_keys(error) from error

    def base(self, bucket: str, region: str) -> str:
        """Return the URL that the keys of a bucket are appended to."""
        root = self.endpoint or f"https://s3.{region}.amazonaws.com{_suffix(region)}"
        if not (self.is_virtual and _HOST.fullmatch(bucket)):
            return f"{root}/{bucket}" if bucket else root
        scheme, _, host = root.partition("://")
        return f"{scheme}://{bucket}.{host}"

    def _endpoint(self, profile: Mapping[str, Any], *, is_own: bool) -> str:
        services = self._session.full_config.get("services", {})
        service = services.get(profile.get("services"), {}).get("s3", {})
        own = service.get("endpoint_url") if isinstance(service, dict) else None
        given = (own or profile.get("endpoint_url"),)
        around = tuple(map(os.environ.get, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")))
        found = next(filter(None, given + around if is_own else around + given), "")
        endpoint = str(found).rstrip("/")
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise SettingsError(
                "The address of an S3 store (AWS_ENDPOINT_URL) must begin with http:// or https://."
            )
        return endpoint

    @property
    def _base(self) -> str:
        return self.base("", self.region)

    @property
    def _host(self) -> str:
        return urlsplit(self._base).hostname or ""


class Bucket:
    """One bucket, asked with exact keys; every call ends before the deadline."""

    def __init__(self, name: str, account: Account, deadline_s: float) -> None:
        """Find out the bucket's region, which takes one request.

        Raises:
            Refusal: no bucket can have this name.
        """
        if not _NAME.fullmatch(name):
            raise Refusal("404", NO_NAME, said="no bucket can have this name")
        self.name, self.account, self.deadline_s = name, account, deadline_s
        self.region = account.region
        try:
            headers = self.request("HEAD", "").headers
        except Refusal as error:
            if error.is_passing or error.status == NO_KEYS:
                raise
            headers = error.headers if isinstance(error, _Refused) else {}
        self.region = headers.get("x-amz-bucket-region", account.region)

    @property
    def base(self) -> str:
        """The URL that keys are appended to."""
        return self.account.base(self.name, self.region)

    def request(
        self,
        method: str,
        key: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Send a signed request, again where that may help and do no harm, and return its answer.

        Raises:
            Refusal: the server refuses, in its own words.
            TimeoutError: it does not answer in time.
            ConnectionError: there is no server, or the connection broke.
        """
        url = f"{self.base}/{quote(key, safe='/~')}" if key else self.base
        url += f"?{urlencode(query, quote_via=quote)}" if query else ""
        return self._tried(method, url, headers or {}, body)

    def visible(self) -> list[str]:
        """Return the buckets that these keys may see; none where they may not even ask."""
        try:
            answer = self._tried("GET", f"{self.account.base('', self.region)}/", {}, b"")
        except (Refusal, OSError):
            return []
        return sorted(name.decode(errors="replace") for name in _BUCKET.findall(answer.data))

    def _tried(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        until = time.monotonic() + self.deadline_s + len(body) / _SLOWEST_BYTES_PER_S
        left = 1 if "if-none-match" in headers else _TRIES  # a second try would meet the first one
        pause = _PAUSE_S
        while True:
            left -= 1
            try:
                return self._once(method, url, headers, body, until)
            except (Refusal, ConnectionError) as error:
                lasts = isinstance(error, Refusal) and not error.is_passing
                if lasts or not left or time.monotonic() + pause >= until:
                    raise
            time.sleep(pause)
            pause *= 4

    def _once(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, until: float
    ) -> Answer:
        import botocore.auth  # noqa: PLC0415
        import botocore.awsrequest  # noqa: PLC0415

        own = self.account.options
        all_headers = {**own.headers, **(own.put_headers if method == "PUT" else {}), **headers}
        unsigned = botocore.awsrequest.AWSRequest(method, url, all_headers, body)
        botocore.auth.S3SigV4Auth(self.account.keys(), "s3", self.region).add_auth(unsigned)
        length = {} if method in ("GET", "HEAD") else {"Content-Length": str(len(body))}
        to_send = {"Host": urlsplit(url).netloc, **length, **dict(unsigned.headers)}
        request = httpcore.Request(method, url, headers=to_send, content=body)
        with wire.exchange(self.account.connections, request, until=until) as response:
            data = b"".join(response.iter_stream())
            found = wire.headers_of(response)
        if response.status >= 300:
            code = _CODE.search(data)
            raise _Refused(str(response.status), code[1].decode() if code else "", found)
        return Answer(response.status, found, data)


def _no_keys(error: Exception) -> Refusal:
    """Say why there are no keys, but not what a program said that was to give them."""
    is_other = "CredentialRetrieval" in type(error).__name__
    return Refusal(NO_KEYS, said=f"{type(error).__name__ if is_other else error}. ")


class _Refused(Refusal):
    def __init__(self, status: str, name: str, headers: Mapping[str, str]) -> None:
        super().__init__(status, name)
        self.headers = headers


def _suffix(region: str) -> str:
    return ".cn" if region.startswith("cn-") else ""


def _proxy(url: str) -> str:
    return urllib.request.getproxies().get(urlsplit(url).scheme, "")
