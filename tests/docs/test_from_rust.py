"""Every name that the page for those who come from Rust gives is one that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import zart_core
import zart_postgres
import zart_sqlite
from zart_core import DurableScheduler, ExecutionHandle, TaskContext, TaskRegistry, Worker

PAGE = Path(__file__).parents[2] / "docs" / "from-rust.md"
OWNERS = {
    "ctx": TaskContext,
    "zart_core": zart_core,
    "durable": DurableScheduler,
    "handle": ExecutionHandle,
    "registry": TaskRegistry,
    "worker": Worker,
    "RetryConfig": zart_core.RetryConfig,
}
ROW = re.compile(r"^\| (?P<rust>.+?) \| (?P<here>.+) \|$", re.MULTILINE)
# The names of a reader's own tasks and types, and those of other libraries.
NOT_OURS = {"In", "Out", "Data", "Output", "T", "Struct"}

CELLS = [row["here"] for row in ROW.finditer(PAGE.read_text("utf-8")) if row["rust"] != "Rust"]
CODE = [code for cell in CELLS for code in re.findall(r"`([^`]+)`", cell)]


def test_the_page_has_its_tables() -> None:
    assert len(CELLS) > 40


@pytest.mark.parametrize("code", CODE)
def test_what_a_name_is_called_here_exists(code: str) -> None:
    for owner, name in re.findall(r"\b(\w+)\.(\w+)", code):
        if owner in OWNERS:
            assert hasattr(OWNERS[owner], name), f"{owner} has no {name}"
    for name in re.findall(r"(?<![\w.\"])[A-Z]\w+", code):
        ours = (zart_core, zart_sqlite, zart_postgres)
        assert name in NOT_OURS or any(hasattr(module, name) for module in ours), f"there is no {name}"
