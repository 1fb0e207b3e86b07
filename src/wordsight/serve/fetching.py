"""Fetching: images by their URL, from hosts that are allowed alone, and in a way that reaches nothing else.

A host's name is resolved once, each of its addresses has to be a public one, and the connection goes to that
very address: a name that points elsewhere a moment later reaches nothing. No redirect is followed."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property, partial
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from wordsight.data.images import Unreadable
from wordsight.serve.refused import Refused

PORTS = {"http": 80, "https": 443}
SECONDS = 10.0  # for all of it
STEP = 2**16  # bytes that are read at a time
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # addresses that stand for one of IPv4
HEADERS = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "User-Agent": "wordsight",
    "Connection": "close",
}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Place(NamedTuple):
    """Where a URL leads."""

    secure: bool
    host: str
    port: int
    path: str


class Fetch:
    """Gets images from `hosts`, each a name, or a name and a port: `images.example.org`, `cdn.local:8080`.
    `private`: these may be of this machine or network.
    """

    def __init__(self, hosts: Iterable[str], *, private: bool, most: int, seconds: float = SECONDS):
        self.hosts, self.private = {host.lower() for host in hosts}, private
        self.most, self.seconds = most, seconds

    @cached_property
    def certificates(self) -> ssl.SSLContext:
        """Those that this machine trusts, read once."""
        return ssl.create_default_context()

    def check(self, url: str) -> Place:
        """Where it leads. Errors: Refused for a URL that is none, and for a host that is not allowed."""
        if not self.hosts:
            raise Refused(400, "urls: no host is allowed here; send the image itself")
        place = _place(url)
        name = f"[{place.host}]" if ":" in place.host else place.host  # as URLs write an address of IPv6
        usual = place.port in PORTS.values() and not self.hosts.isdisjoint((place.host, name))
        if not usual and f"{name}:{place.port}" not in self.hosts:
            raise Refused(400, f"urls: the host {place.host[:100]!r} is not allowed; send the image itself")
        return place

    def __call__(self, url: str) -> bytes:
        """The bytes behind a URL. Errors: Unreadable where they cannot be had, Refused as `check`."""
        place = self.check(url)
        address = self._address(place)
        try:
            with closing(self._connection(place, address)) as connection, self._watched(connection):
                connection.request("GET", place.path, headers=HEADERS)
                with connection.getresponse() as answer:
                    return self._body(answer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreadable("its URL cannot be read, or not in time") from error

    def _address(self, place: Place) -> str:
        try:
            found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Unreadable("its URL's host is not known") from error
        addresses = [str(where[4][0]) for where in found]
        if not self.private and not all(is_public(address) for address in addresses):
            raise Unreadable("its URL's host is of a private network, which is not allowed")
        return addresses[0]

    def _connection(self, place: Place, address: str) -> http.client.HTTPConnection:
        """To this address, whatever the name means by now."""
        connect = partial(socket.create_connection, (address, place.port))
        if not place.secure:
            return _Pinned(place.host, place.port, connect, None)
        return _Pinned(place.host, place.port, connect, self.certificates)

    @contextmanager
    def _watched(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        """Within it, the connection ends after so many seconds, however slowly something still comes."""
        connection.timeout = self.seconds
        connection.connect()
        sock = connection.sock  # which the connection forgets once the answer has it
        late = threading.Event()

        def end() -> None:
            late.set()
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        if late.is_set():  # what was read looks whole
            raise TimeoutError

    def _body(self, answer: http.client.HTTPResponse) -> bytes:
        if answer.status != 200:
            moved = ", a redirect, which is not followed" if 300 <= answer.status < 400 else ""
            raise Unreadable(f"its URL answers with status {answer.status}{moved}")
        parts, size = [], 0
        while part := answer.read(STEP):
            parts.append(part)
            size += len(part)
            if size > self.most or (answer.length or 0) > self.most:
                raise Unreadable(f"what its URL gives is larger than {self.most // 2**20} MB")
        return b"".join(parts)


class _Pinned(http.client.HTTPConnection):
    """A connection whose address was looked up, and looked at, before."""

    def __init__(self, host: str, port: int, connect: partial[socket.socket], tls: ssl.SSLContext | None):
        super().__init__(host, port)
        self._connect, self._tls = connect, tls
        self.default_port = PORTS["https" if tls else "http"]

    def connect(self) -> None:
        self.sock = self._connect(timeout=self.timeout)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)


def _place(url: str) -> Place:
    """Errors: Refused for what is no plain http or https URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Refused(400, "urls: this is no URL") from error
    if parts.scheme not in PORTS or not host or parts.username is not None or not _plain(url):
        raise Refused(400, "urls: give an http or https URL of an image, without a user's name")
    return Place(parts.scheme == "https", host, port or PORTS[parts.scheme], _path(parts))


def _path(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _plain(url: str) -> bool:
    """Whether a URL is written as they are sent: no blank could begin another header."""
    return all("!" <= sign <= "~" for sign in url)


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, and of no machine or network of ours."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return all(one.is_global and not one.is_multicast and not one.is_reserved for one in _meant(found))


def _meant(address: Address) -> Sequence[Address]:
    """An address, and that of IPv4 which it stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    inner = address.sixtofour or (address.teredo or (None, None))[1]
    if address in NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return [address] if inner is None else [address, inner]
