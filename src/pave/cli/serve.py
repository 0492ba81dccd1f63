"""``pave serve``: answer requests over HTTP as OpenAI's API does."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pave.cli.shared import BaseOption, DeviceOption, DtypeOption, EncodersOption, MismatchOption, check_model_options

if TYPE_CHECKING:
    from pave.serving.auth import Keys
    from pave.serving.limits import Limits

logger = logging.getLogger(__name__)


def command(
    base: str | None = BaseOption,
    patch: list[str] | None = typer.Option(
        None,
        "--patch",
        metavar="NAME=PATCH",
        help="A patch, a folder or a hub id, by the name that clients use. May be repeated.",
    ),
    host: str = typer.Option(
        "127.0.0.1", "--host", help="Address to listen on. The default is reached from this machine alone."
    ),
    port: int = typer.Option(
        8000, "--port", min=0, max=65535, help="Port to listen on; 0 takes a free one, which the log names."
    ),
    api_keys: Path | None = typer.Option(
        None,
        "--api-keys",
        metavar="FILE",
        help="A file of keys, one a line, that only its owner may open; requests need one of them.",
    ),
    open_to_all: bool = typer.Option(False, "--open", help="Listen on an address that others reach without asking for keys."),
    admin_token_file: Path | None = typer.Option(
        None,
        "--admin-token-file",
        metavar="FILE",
        help="A file with the token that loads and unloads patches. Without it nobody can.",
    ),
    allow_path: list[Path] | None = typer.Option(
        None, "--allow-path", metavar="FOLDER", help="Clients may name files in this folder. May be repeated."
    ),
    allow_host: list[str] | None = typer.Option(
        None,
        "--allow-host",
        metavar="HOST[:PORT]",
        help="Files are fetched from this host, where its address is public. May be repeated.",
    ),
    name: list[str] | None = typer.Option(
        None,
        "--name",
        metavar="HOST",
        help="A name that the server is known under, where it is not localhost. May be repeated.",
    ),
    limit: list[str] | None = typer.Option(
        None, "--limit", metavar="NAME=VALUE", help="Any limit of docs/serving.md, such as waiting=128. May be repeated."
    ),
    frames: int | None = typer.Option(
        None, "--frames", min=1, help="Frames to look at where a request does not say. Default: as the patch was trained."
    ),
    cache_gigabytes: float = typer.Option(
        2.0, "--cache-gigabytes", min=0, help="Most memory for encoded videos and side features."
    ),
    device: str = DeviceOption,
    dtype: str = DtypeOption,
    allow_base_mismatch: bool = MismatchOption,
    encoders: list[str] | None = EncodersOption,
) -> None:
    """\b
    pave serve
    pave serve --base llava-hf/llava-onevision-qwen2-7b-ov-hf --patch hearing=my-patch

    Answer requests over HTTP as OpenAI's API does, at /v1, and people on a page at /. Without --base the one that the first patch was trained
    on answers, and without a patch either the small Video LLM inside pave, with the patch inside pave that hears. SIGTERM and Ctrl-C end
    it when what it has accepted is answered.
    """
    from pave.serving.limits import Limits
    from pave.utils.embedded import AUDIO_PATCH

    patches = _patches(patch or []) or ({} if base else {"hearing": AUDIO_PATCH})
    limits = _limits(limit or [], Limits)
    _check_dtype_and_names(base, patches, dtype)
    from pave.utils.optional import require

    for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        require(package, extra="serve", purpose="pave serve")
    from pave.serving.server import Access, bound, is_loopback, make_services, serve

    access = Access(
        keys=_keys(api_keys, "--api-keys"),
        admin=_keys(admin_token_file, "--admin-token-file"),
        roots=tuple(allow_path or ()),
        fetch_hosts=tuple(allow_host or ()),
        names=tuple(name or ()),
    )
    if not is_loopback(host) and not access.keys and not open_to_all:
        raise ValueError(f"--host {host} lets others in: give --api-keys FILE, or --open if everybody may ask")
    _log_as_json()
    with bound(host, port) as listening:  # before the model is loaded, which takes minutes
        engine, shown = _engine(base, patches, device, dtype, frames, cache_gigabytes, encoders or [])
        services = make_services(
            engine,
            patches,
            base=shown,
            access=access,
            limits=limits,
            encoders=encoders or (),
            allow_base_mismatch=allow_base_mismatch,
        )
        serve(services, access, listening, host=host, ready=_say_where)


def _say_where(url: str) -> None:
    typer.echo(f"Open {url} in a browser. Ctrl-C ends the server.")


def _engine(
    base: str | None,
    patches: dict[str, str],
    device: str,
    dtype: str,
    frames: int | None,
    cache_gigabytes: float,
    encoders: list[str],
) -> tuple[Any, str]:
    """The engine, and what clients call its base."""
    from pave.cli.models import hide_loading_bars
    from pave.data.media import FrameSampling
    from pave.inference.engine import Engine
    from pave.patching import resolve_patch
    from pave.patching.base_of import base_of_patch
    from pave.utils.threads import settle_threads

    hide_loading_bars()
    wanted, revision = base, None
    if wanted is None:
        first = next(iter(patches.values()))
        wanted, revision = base_of_patch(resolve_patch(first), first)
    engine = Engine.from_pretrained(
        wanted,
        revision=revision,
        device=device,
        dtype=dtype,
        sampling=FrameSampling(num_frames=frames) if frames else None,
        encoders=encoders,
        cache_bytes=int(cache_gigabytes * 2**30),
    )
    if engine.model.device.type == "cpu":
        settle_threads(engine.model.num_parameters())
    return engine, Path(wanted).name if Path(wanted).is_dir() else wanted


def _log_as_json() -> None:
    from pave.cli.shared import message_level
    from pave.serving.logs import log_as_json

    log_as_json(message_level.get())


def _keys(path: Path | None, option: str) -> Keys:
    from pave.serving.auth import Keys

    return Keys() if path is None else Keys.from_file(path, option)


def _check_dtype_and_names(base: str | None, patches: dict[str, str], dtype: str) -> None:
    for folder in (*patches.values(), None):
        check_model_options(base, folder, dtype)


def _patches(given: list[str]) -> dict[str, str]:
    """The patches of ``--patch`` by name."""
    patches: dict[str, str] = {}
    for option in given:
        name, _, where = option.partition("=")
        if not name or not where:
            raise ValueError(f"--patch {option!r}: expected NAME=PATCH, such as hearing=runs/hearing/patch")
        if name in patches:
            raise ValueError(f"--patch {option!r}: the name {name!r} is given twice")
        patches[name] = where
    return patches


def _limits(given: list[str], kind: type[Limits]) -> Limits:
    """The limits with the values of ``--limit``."""
    known: dict[str, type[int] | type[float]] = {field.name: type(getattr(kind(), field.name)) for field in fields(kind)}
    values: dict[str, Any] = {}
    for option in given:
        name, _, text = option.partition("=")
        if name not in known:
            raise ValueError(f"--limit {option!r}: there is no limit {name!r}; there are {', '.join(known)}")
        try:
            values[name] = known[name](text)
        except ValueError:
            raise ValueError(f"--limit {option!r}: {name} is a {'whole ' if known[name] is int else ''}number") from None
    return kind(**values)
