"""connect: which backend a URL gets, and what is said when there is none."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from zart_core import connect
from zart_sqlite import SqliteScheduler

# The module: in its package, the function has its name.
CONNECT = sys.modules[connect.__module__]


class Installed:
    """What is installed, and how often somebody has looked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **backends: str) -> None:
        self.backends = backends
        self.looks = 0
        monkeypatch.setattr(CONNECT, "entry_points", self)

    def __call__(self, *, group: str) -> list[EntryPoint]:
        self.looks += 1
        return [EntryPoint(scheme, function, group) for scheme, function in self.backends.items()]


@pytest.mark.parametrize("url", ["sqlite://", "SQLite:///zart.db"])
def test_the_scheme_chooses_the_backend(url: str) -> None:
    assert isinstance(connect(url), SqliteScheduler)


@pytest.mark.parametrize("url", ["zart.db", "user:secret@host/db", "", None])
def test_what_has_no_scheme_is_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="^a database URL looks like sqlite:///zart.db; this one has no scheme$"):
        connect(url)


def test_what_is_installed_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Installed(monkeypatch, once="zart_sqlite:from_url")
    for _ in range(3):
        with pytest.raises(ValueError, match="not a sqlite: URL"):  # the backend's own word: it is asked each time
            connect("once://")
    assert installed.looks == 1


def test_what_is_not_installed_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Installed(monkeypatch, other="zart_sqlite:from_url")
    with pytest.raises(ValueError, match=r"^no installed backend serves later:// URLs \(there are: other\)$"):
        connect("later://user:secret@host/db")
    installed.backends["later"] = "zart_sqlite:from_url"
    with pytest.raises(ValueError, match="not a sqlite: URL"):
        connect("later://")
    assert installed.looks == 2


def test_what_a_backend_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Installed(monkeypatch, lacking="zart_nowhere:from_url")
    for looks in (1, 2):
        with pytest.raises(
            ValueError, match="^the backend for lacking:// URLs needs zart_nowhere, which is not installed$"
        ):
            connect("lacking://user:secret@host/db")
        assert installed.looks == looks
