"""Starting and ending a server."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from pave.data.media import MediaChildren
from pave.inference.engine import Engine
from pave.inference.request import Request
from pave.serving.app import make_app
from pave.serving.auth import Keys
from pave.serving.chat import Services
from pave.serving.fetching import Fetcher
from pave.serving.files import Uploads
from pave.serving.limits import Limits
from pave.serving.metrics import Metrics
from pave.serving.patches import Catalog
from pave.serving.scheduler import Scheduler
from pave.serving.sources import Sources

logger = logging.getLogger(__name__)

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """Who may come in, and what they may reach.

    Raises:
        ValueError: if a root is no folder.
    """

    keys: Keys = field(default_factory=Keys)
    """Who may ask; with none everybody who reaches the address."""
    admin: Keys = field(default_factory=Keys)
    """Who may load and unload patches; with none nobody."""
    roots: tuple[Path, ...] = ()
    """Folders whose files may be named by path."""
    fetch_hosts: tuple[str, ...] = ()
    """Hosts that files are fetched from."""
    names: tuple[str, ...] = ()
    """Under which the server is known, beside those of loopback; none for any where it does not bind to loopback."""

    def __post_init__(self) -> None:
        for root in self.roots:
            if not root.is_dir():
                raise ValueError(f"--allow-path {root}: there is no such folder")
        object.__setattr__(self, "roots", tuple(root.resolve() for root in self.roots))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_services(
    engine: Engine,
    patches: Mapping[str, str | Path] | None = None,
    *,
    base: str,
    access: Access,
    limits: Limits,
    encoders: Sequence[str] = (),
    allow_base_mismatch: bool = False,
) -> Services:
    """Everything behind the routes, started.

    Args:
        engine: with the base. Patches that it carries already are not served.
        patches: folders or hub ids by the names that clients use.
        base: what clients call the base.
        access: roots and hosts of files.
        limits: of everything.
        encoders: modules with side encoders of one's own.
        allow_base_mismatch: load patches of other bases.

    Raises:
        ValueError: if a patch cannot be loaded.
    """
    metrics = Metrics(lambda: scheduler.places, lambda: len(catalog.all()))
    scheduler = Scheduler(engine, limits, metrics.batch)
    catalog = Catalog(
        engine.model, engine.processor, base, scheduler.between, encoders=encoders, allow_base_mismatch=allow_base_mismatch
    )
    uploads = Uploads(limits)
    fetcher = Fetcher(access.fetch_hosts, limits.file_megabytes * 2**20, limits.fetch_seconds)
    services = Services(
        engine,
        limits,
        catalog,
        scheduler,
        uploads,
        Sources(uploads, fetcher, limits, access.roots),
        metrics,
        MediaChildren(limits.readers, limits.reading),
        ThreadPoolExecutor(limits.readers, "pave-read"),
    )
    try:
        for name, folder in (patches or {}).items():
            catalog.load(name, folder)
        services.base_frames = engine.reader.frames_of(Request(None, "?", patches=None))
    except BaseException:
        services.close()
        raise
    return services


class Server(uvicorn.Server):
    """uvicorn's server, which says at once that it is about to end, and then answers what it has admitted."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to end: nothing new is admitted from now on. A second Ctrl-C ends at once. uvicorn's own would raise the signal again
        when all is answered, and a process that ended well would say that it was killed."""
        self._services.scheduler.stop_admitting()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was admitted, and end."""
        self._services.scheduler.stop_admitting()
        logger.info("ending; what was admitted is answered first")
        await super().shutdown(sockets)


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens.

    Raises:
        ValueError: if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise ValueError(f"--host {host} --port {port}: {error.strerror or error}; choose another one") from None
        listening.listen(1024)
        yield listening


def make_server(services: Services, access: Access, *, host: str = "127.0.0.1") -> Server:
    """A server that runs by ``run(sockets=[...])``, in any thread, until its ``should_exit`` is set, and then closes the services.

    Args:
        services: of the server.
        access: keys, the administrator's token and names.
        host: the address that it will listen on.
    """
    names = (*_LOOPBACK_NAMES, *access.names) if is_loopback(host) or access.names else ()
    config = uvicorn.Config(
        make_app(services, access.keys, access.admin, hosts=names),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(services.limits.deadline_seconds) + 10,
        limit_concurrency=4 * services.limits.waiting + 64,
    )
    return Server(config, services)


def serve(
    services: Services,
    access: Access,
    listening: socket.socket,
    *,
    host: str = "127.0.0.1",
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C, then what was admitted, then return.

    Args:
        services: closed at the end.
        access: keys, the administrator's token and names.
        listening: what ``bound`` gives. The log says its port.
        host: what it is bound to.
        ready: told the server's address once it can be reached.
    """
    shown = f"[{host}]" if ":" in host else host
    models = [services.catalog.base, *(patch.name for patch in services.catalog.all())]
    url = f"http://{shown}:{listening.getsockname()[1]}"
    logger.info("listening", extra={"facts": {"url": url, "models": models}})
    ready(url)
    try:
        make_server(services, access, host=host).run(sockets=[listening])
    finally:
        services.uploads.close()  # also where a second Ctrl-C ended it at once
