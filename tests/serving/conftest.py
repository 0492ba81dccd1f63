"""One base, three patches and a few clips for all tests of the server."""

import pytest

from pave.inference.engine import Engine
from served import running, save_patches, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder of clips and side files."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


@pytest.fixture(scope="session")
def patches(tmp_path_factory):
    """Folders of patches by name."""
    return save_patches(tmp_path_factory.mktemp("patches"), "hearing", "moving", "watching")


@pytest.fixture(scope="session")
def alone(patches):
    """An engine of its own with the same patches under their plain names: what answers are compared with."""
    return Engine.from_pretrained("playground", patches, device="cpu")


@pytest.fixture
def engine():
    """An engine with the base only, for a server to put patches on."""
    return Engine.from_pretrained("playground", device="cpu")


@pytest.fixture(scope="module")
def server(patches, world):
    """A server with all three patches, whose clients may name the world's files."""
    from pave.serving.server import Access

    engine = Engine.from_pretrained("playground", device="cpu")
    with running(engine, patches, Access(roots=(world,)), media_seconds=10.0, file_megabytes=1, new_tokens=64) as found:
        yield found
