"""A host name in, a connection to a public address out: the one that was looked at, no other.

A table of addresses comes from strangers, and this machine may reach what they cannot: its own
services, the machines beside it, what a cloud tells whoever asks 169.254.169.254. So
names are looked up here, every address found must belong to the public internet, and the
connection goes to that very address; a second look-up could be answered in another way. Where
private addresses are allowed, those are not at which a cloud gives its machines their keys.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

import httpcore

from clipcap import wire
from clipcap.refusals import NOT_PUBLIC, Refusal

_NAT64: Final = IPv6Network("64:ff9b::/96")  # how a machine without IPv4 reaches a public one
_UNICAST: Final = IPv6Network("2000::/3")  # all that is given out; the rest is local or nobody's
_PER_HOST: Final = 8
_DEAD_S: Final = 60.0
_DEAD_HOSTS: Final = 10_000
_NOBODY: Final = tuple(
    ip_network(text)  # is_global differs on these between versions of Python
    for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")
)

_KEYS: Final = tuple(
    ip_network(text)  # the local link, and where AWS, Google, Alibaba, Oracle and Azure are beside
    for text in (
        *("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "fd20:ce::/32"),
        *("100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32"),
    )
)


def is_public(text: str) -> bool:
    """Tell whether an IP address is one machine's on the public internet, in whatever disguise."""
    address = _undisguised(text)
    if isinstance(address, IPv6Address) and address not in _UNICAST:
        return False
    is_nobodys = any(address in network for network in (*_NOBODY, *_KEYS))
    return address.is_global and not address.is_multicast and not is_nobodys


def has_keys(text: str) -> bool:
    """Tell whether an IP address is of the local link, or one where clouds give out keys."""
    return any(_undisguised(text) in network for network in _KEYS)


def _undisguised(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    if isinstance(address, IPv6Address) and address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def lookup(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host, as the system finds them; it bounds the time itself.

    Raises:
        Unreachable: there are none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise wire.Unreachable("no such host") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Guard(wire.Backend):
    """Opens connections to public addresses alone, or to private ones that have no keys too."""

    def __init__(self, *, private: bool = False) -> None:
        super().__init__()
        self._private = private

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that answers, if all of them are allowed.

        Raises:
            Refusal: one of them is not.
        """
        found = lookup(host, port)
        if any(map(has_keys, found)):
            raise Refusal(NOT_PUBLIC, said="Not even `private_addresses` allows one of keys.")
        if not self._private and not all(map(is_public, found)):
            raise Refusal(NOT_PUBLIC)
        for address in found[:-1]:
            try:
                return super().connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return super().connect_tcp(found[-1], port, timeout, local_address, socket_options)


class Hosts:
    """How many requests each host has at the moment, and which could not be reached."""

    def __init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        """Know of nothing: in a forked process, whose lock a thread that is gone may hold."""
        self._free = threading.Condition()
        self._busy: Counter[str] = Counter()
        self._dead: OrderedDict[tuple[str, str], float] = OrderedDict()

    @contextmanager
    def turn(self, protocol: str, host: str, *, is_trusted: bool) -> Iterator[None]:
        """Wait until a host has fewer than `_PER_HOST` requests.

        Raises:
            Unreachable: nobody could reach it by this protocol a moment ago (its certificate may be
                of the past, and its plain pages good); a trusted one is tried all the same.
        """
        with self._free:
            self._free.wait_for(lambda: self._busy[host] < _PER_HOST)
            if not is_trusted and self._dead.get((protocol, host), 0.0) > time.monotonic():
                raise wire.Unreachable("nor a moment ago")
            self._busy[host] += 1
        try:
            yield
        except wire.Unreachable:
            self._bury((protocol, host))
            raise
        finally:
            with self._free:
                self._busy[host] -= 1
                if not self._busy[host]:
                    del self._busy[host]
                self._free.notify_all()

    def _bury(self, place: tuple[str, str]) -> None:
        with self._free:
            self._dead[place] = time.monotonic() + _DEAD_S
            self._dead.move_to_end(place)
            if len(self._dead) > _DEAD_HOSTS:
                self._dead.popitem(last=False)
