from collections.abc import Iterator

import pytest

from tests.data.server import Server, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A local file server with nothing in it yet."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as state:
        yield state
