"""Peers are measured beside us, and one that fails is left out with the reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import peer
from benchmarks.peer import PEERS, Peer, PeerFailed, Rival, environment
from benchmarks.plot import svg
from benchmarks.readings import Line, Reading, lines
from benchmarks.table import table

_FILES = Path(peer.__file__).parent / "peers"
_ANY = Peer("dbos", "sqlite", frozenset(("W1",)))


def _interpreter(folder: Path, *script: str) -> Path:
    """An environment whose interpreter does something else."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("\n".join(("#!/bin/sh", *script)), "utf-8")
    python.chmod(0o755)
    return folder


async def test_a_peer_speaks_through_its_last_line(tmp_path: Path) -> None:
    folder = _interpreter(tmp_path / "it", "echo it is chatty", """echo '{"values": {"rate": 12.5}}'""")

    assert await Rival(_ANY, folder, tmp_path, {}).measure("W1", None) == {"rate": 12.5}
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


async def test_a_peer_that_ends_with_an_error_is_left_out_with_its_last_words(tmp_path: Path) -> None:
    folder = _interpreter(tmp_path / "it", "echo results: 1 instead of 2 >&2", "exit 1")

    with pytest.raises(PeerFailed, match="W1: results: 1 instead of 2"):
        await Rival(_ANY, folder, tmp_path, {}).measure("W1", None)


async def test_a_peer_that_does_not_end_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "_MEASURE_SECONDS", 0.5)
    folder = _interpreter(tmp_path / "it", "sleep 1000 &", "wait")

    with pytest.raises(PeerFailed, match=r"W1: it took more than 0\.5 seconds"):
        await Rival(_ANY, folder, tmp_path, {}).measure("W1", None)


def test_an_environment_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []
    monkeypatch.setattr(peer, "_run", lambda *command: made.append(command) or (tmp_path / "dbos").mkdir(exist_ok=True))

    assert environment("dbos", tmp_path) == environment("dbos", tmp_path) == tmp_path / "dbos"
    assert len(made) == 2  # one to make it, one to install


def test_an_installation_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*command: str) -> None:
        raise PeerFailed("no network")

    monkeypatch.setattr(peer, "_run", refuse)

    with pytest.raises(PeerFailed, match="no network"):
        environment("absurd", tmp_path)


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(PeerFailed, match="it could not be installed: no such thing"):
        peer._run(sys.executable, "-c", "import sys; sys.exit('no such thing')")


@pytest.mark.parametrize("one", PEERS, ids=lambda one: one.label)
def test_each_peer_is_pinned_and_tells_its_settings(one: Peer) -> None:
    source = (_FILES / f"{one.name}.py").read_text("utf-8")

    assert one.version != "?"
    assert one.settings
    assert all(f'"{workload}":' in source for workload in one.workloads)


def test_pins_are_names_and_versions_alone() -> None:
    pins = [line for file in _FILES.glob("*.txt") for line in file.read_text("utf-8").split()]

    assert pins
    assert all(pin.count("==") == 1 and "://" not in pin for pin in pins)


def _line(*, unit: str, ours: float, theirs: float) -> Line:
    read = [Reading(label="something", unit=unit, ours=ours, limit=ours / 2, key="k")]
    [line] = lines("W1", [read], {"other": [{"k": theirs}], "silent": [{}]})
    return line


def test_the_table_tells_how_many_times_as_good_we_are() -> None:
    printed = table([_line(unit="per s", ours=300.0, theirs=100.0), _line(unit="ms", ours=2.0, theirs=8.0)])

    rows = [row.split() for row in printed.splitlines() if "other" in row]
    assert [row[-2:] for row in rows] == [["3.00", "×"], ["4.00", "×"]]
    assert "silent" not in printed


def test_a_plot_is_logarithmic_where_bars_differ_very_much() -> None:
    assert "logarithmic" in svg("W1", [_line(unit="per s", ours=51_000.0, theirs=100.0)])
    plain = svg("W1", [_line(unit="per s", ours=300.0, theirs=100.0)])
    assert "logarithmic" not in plain
    assert "limit 150" in plain
