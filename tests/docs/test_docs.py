"""The documentation is true: its code runs, prints what it says, imports what exists, and its links lead somewhere.

A Python block is a complete program when it calls ``asyncio.run`` at its top level, or begins with ``# name.py``. Programs of one
page that are named are files of one directory; the others are each run in an empty one. When a ``text`` block follows a program at
once, it is exactly what the program prints. Every other Python block is compiled.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.orphans import end_with_parent

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUICKSTART = ROOT / "docs" / "quickstart.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAME = re.compile(r"# (\w+\.py)\n")
TIME_LIMIT = 60


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    code: str
    printed: str | None

    @property
    def title(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_program(self) -> bool:
        return re.search(r"^asyncio\.run\(", self.code, re.MULTILINE) is not None and NAME.match(self.code) is None


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = list(FENCE.finditer(text))
    result = []
    for match, following in itertools.zip_longest(found, found[1:]):
        near = following is not None and following[1] == "text" and not text[match.end() : following.start()].strip()
        printed = following[2] if near and following is not None else None
        result.append(Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2], printed))
    return result


PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]
# The first example has a test of its own, and so have programs that need a server.
PROGRAMS = [
    block for block in PYTHON if block.is_program and block.page != PAGES[0] and "ZART_DATABASE_URL" not in block.code
]


def titles(found: list[Block]) -> list[str]:
    return [block.title for block in found]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error", **more}


def python(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )


@pytest.mark.parametrize("block", PYTHON, ids=titles(PYTHON))
def test_python_compiles_and_imports_what_exists(block: Block) -> None:
    tree = compile(block.code, block.title, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("zart"):
            module = importlib.import_module(node.module)
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert not missing, f"{node.module} has no {', '.join(missing)}"


@pytest.mark.parametrize("block", PROGRAMS, ids=titles(PROGRAMS))
def test_a_program_prints_what_the_page_says(block: Block, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(block.code, "utf-8")
    done = python(tmp_path, "app.py")
    assert done.returncode == 0, done.stderr
    if block.printed is not None:
        assert done.stdout == block.printed


def test_the_first_example_charges_once_however_often_it_is_run(tmp_path: Path) -> None:
    [block] = [block for block in blocks(PAGES[0]) if block.is_program]
    (tmp_path / "app.py").write_text(block.code, "utf-8")
    assert python(tmp_path, "app.py").stdout == block.printed
    assert python(tmp_path, "app.py").stdout == "paid 42, shipped\n"


def test_the_quickstart_survives_a_killed_worker(tmp_path: Path) -> None:
    for block in blocks(QUICKSTART):
        name = NAME.match(block.code)
        if block.language == "python" and name is not None:
            (tmp_path / name[1]).write_text(block.code, "utf-8")
    ledger = tmp_path / "ledger.txt"
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "preexec_fn": end_with_parent}
    first = subprocess.Popen([sys.executable, "worker.py"], stderr=subprocess.PIPE, **options)
    client = subprocess.Popen([sys.executable, "start.py"], stdout=subprocess.PIPE, text=True, **options)
    second = None
    try:
        wait_for_pages(ledger, 3)
        first.kill()
        first.communicate()
        second = subprocess.Popen([sys.executable, "worker.py"], stderr=subprocess.PIPE, **options)
        printed, _ = client.communicate(timeout=TIME_LIMIT)
        assert printed == "started\n6 pages bound\n"
        second.send_signal(signal.SIGTERM)
        _, said = second.communicate(timeout=TIME_LIMIT)
        assert second.returncode == 0
        assert b"WARNING:zart:a worker has died: its executions are freed (1)" in said
    finally:
        for process in (first, client, second):
            if process is not None and process.poll() is None:
                process.kill()
                process.communicate()
    pages = ledger.read_text("utf-8").splitlines()
    again = [page for page in set(pages) if pages.count(page) > 1]
    assert sorted(set(pages)) == [f"page {number}" for number in range(1, 7)]
    assert len(again) <= 1, "only the step under way at the kill may have run twice"
    looked = python(tmp_path, "look.py").stdout.splitlines()
    assert looked[0] == "completed 6 pages bound"
    assert [line.split()[0] for line in looked[1:]] == [*(f"page-{n}" for n in range(1, 7)), "ink-dries", "bind"]


def wait_for_pages(ledger: Path, count: int) -> None:
    """Return when the ledger has ``count`` lines: a condition in another process, so there is nothing to wait on but the file."""
    limit = time.monotonic() + TIME_LIMIT
    while not ledger.exists() or len(ledger.read_text("utf-8").splitlines()) < count:
        assert time.monotonic() < limit, "the worker wrote no pages"
        time.sleep(0.02)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def test_every_proof_of_a_promise_exists() -> None:
    page = ROOT / "docs" / "promises.md"
    proofs = re.findall(r"`(test_\w+)`\s+in\s+\[[^\]]*\]\(([^)]+)\)", page.read_text("utf-8"))
    assert len(proofs) > 40
    for name, path in proofs:
        assert re.search(rf"def {name}\(", (page.parent / path).read_text("utf-8")), f"{path} has no {name}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as GitHub makes them."""
    text = FENCE.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
