"""A hub on this machine with a cache of its own, and a cache without a hub."""

import pytest

from tests.hub import Hub, serving, use


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; the hub cannot be reached."""
    use(monkeypatch, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def hub(cache, monkeypatch):
    """A hub that answers; it has one model, without revisions."""
    running = Hub()
    with serving(running) as address:
        use(monkeypatch, cache, address)
        yield running
