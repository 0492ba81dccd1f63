"""Files from other machines: only from allowed hosts, only from public addresses, and never more than allowed.

A name is resolved once, its addresses are checked, and the connection goes to a checked address: a name server that answers differently
the second time gains nothing. A redirect is a new request, checked anew.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from pave.serving.errors import ApiError, bad_request
from pave.utils.stops import current_stop

_PIECE = 2**18
_MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_STEP_SECONDS = 10.0
"""Longest that one step of a connection may take."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, and not to this machine, its network or a special purpose."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(part) for part in inner if part is not None):
            return False
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_loopback
        or getattr(address, "is_site_local", False)
    )


@dataclass(frozen=True)
class Fetcher:
    """Fetches files over HTTP and HTTPS.

    Args:
        hosts: that are allowed, ``name`` or ``name:port``; without a port only the scheme's own.
        max_bytes: of a file.
        max_seconds: of a whole fetch, redirects included.
        allowed_address: which addresses may be connected to.
    """

    hosts: Sequence[str] = ()
    max_bytes: int = 512 * 2**20
    max_seconds: float = 30.0
    allowed_address: Callable[[Address], bool] = is_public

    def fetch(self, url: str, target: Path, param: str) -> None:
        """Write what is behind a URL to a file.

        Raises:
            ApiError: naming ``param``, if the host is not allowed, its address is not public, it does not answer in time or with a
                file, or the file is too large.
        """
        until = time.monotonic() + min(self.max_seconds, current_stop().left)
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                with self._asked(self._checked(url, param), until, param) as answer:
                    if answer.status not in _REDIRECTS:
                        self._save(answer, target, until, param)
                        return
                    url = urljoin(url, answer.getheader("Location") or "")
        except ApiError:
            target.unlink(missing_ok=True)
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            target.unlink(missing_ok=True)
            late = f"it takes longer than {self.max_seconds:g} s to fetch"
            raise self._failed(
                param, late if time.monotonic() > until else f"it cannot be fetched ({type(error).__name__})"
            ) from error
        raise self._failed(param, f"it leads on more than {_MOST_REDIRECTS} times")

    @staticmethod
    def _failed(param: str, what: str) -> ApiError:
        return bad_request(f"{param}: {what}", param, "fetch_failed")

    def _checked(self, url: str, param: str) -> SplitResult:
        """The parts of a URL whose host is allowed."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise bad_request(f"{param}: the URL cannot be read", param) from None
        host = (parts.hostname or "").rstrip(".").lower()
        if parts.scheme not in _PORTS or not host:
            raise bad_request(f"{param}: only http:// and https:// URLs are fetched", param, "url_not_allowed")
        if parts.username is not None or parts.password is not None or any(ord(c) <= 32 or ord(c) > 126 for c in url):
            raise bad_request(f"{param}: a URL with a password, blanks or other than ASCII characters is not fetched", param)
        usual = port in (None, _PORTS[parts.scheme])
        names = {f"{host}:{port or _PORTS[parts.scheme]}", *([host] if usual else [])}
        if not names.intersection(name.lower() for name in self.hosts):
            raise bad_request(
                f"{param}: files of this host are not fetched; upload the file, or have the host allowed with --allow-host",
                param,
                "url_not_allowed",
            )
        return parts

    @contextlib.contextmanager
    def _asked(self, parts: SplitResult, until: float, param: str) -> Iterator[http.client.HTTPResponse]:
        """The answer to one request."""
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(contextlib.closing(self._connect(host, port, until, param)))
            watched = stack.enter_context(contextlib.closing(stream.dup()))
            timer = threading.Timer(max(0.0, until - time.monotonic()), _cut, [watched])
            stack.callback(timer.cancel)
            timer.start()
            stack.enter_context(current_stop().cutting(partial(_cut, watched)))
            if parts.scheme == "https":
                wrapped = ssl.create_default_context().wrap_socket(stream, server_hostname=host)
                stream = stack.enter_context(contextlib.closing(wrapped))
            connection = http.client.HTTPConnection(host, port)
            connection.sock = stream
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(
                "GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "pave", "Connection": "close"}
            )
            yield stack.enter_context(contextlib.closing(connection.getresponse()))

    def _connect(self, host: str, port: int, until: float, param: str) -> socket.socket:
        """A connection to a checked address of a host."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]
        if not addresses or not all(self.allowed_address(address) for address in addresses):
            raise bad_request(f"{param}: the host has an address that is not public", param, "url_not_allowed")
        for last, address in zip([False] * (len(addresses) - 1) + [True], addresses):
            left = until - time.monotonic()
            try:
                return socket.create_connection((str(address), port), timeout=max(0.01, min(left, _STEP_SECONDS)))
            except OSError:
                if last:
                    raise
        raise AssertionError("there is an address")

    def _save(self, answer: http.client.HTTPResponse, target: Path, until: float, param: str) -> None:
        if answer.status != 200:
            raise self._failed(param, f"the host answered with status {answer.status}")
        if answer.getheader("Content-Encoding", "identity") != "identity":
            raise self._failed(param, "the host sent it compressed")
        too_large = ApiError(
            413, f"{param}: the file is larger than {self.max_bytes} bytes", code="file_too_large", param=param
        )
        if answer.length is not None and answer.length > self.max_bytes:
            raise too_large
        count = 0
        with open(target, "xb") as file:
            while piece := answer.read1(_PIECE):
                count += len(piece)
                if count > self.max_bytes:
                    raise too_large
                file.write(piece)
        if answer.length or time.monotonic() > until or not current_stop().left:
            raise http.client.IncompleteRead(b"")


def _cut(connection: socket.socket) -> None:
    """End a connection whose time is over, wherever its reader waits."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
