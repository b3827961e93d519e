"""The work itself, without any engine: what is in the source files of a directory tree."""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})


class SourceFile(Struct, frozen=True):
    path: str
    size: int


class FileReport(Struct, frozen=True):
    path: str
    lines: int
    functions: int
    classes: int
    sha256: str


class Totals(Struct, frozen=True):
    files: int
    bytes: int
    lines: int
    functions: int
    classes: int
    sha256: str


def list_files(root: str, limit: int) -> list[SourceFile]:
    """The first ``limit`` Python files below ``root``, by path, with their sizes."""
    base = Path(root)
    paths = (path.relative_to(base) for path in base.rglob("*.py"))
    kept = sorted(path.as_posix() for path in paths if NOT_THE_LIBRARY.isdisjoint(path.parts))
    return [SourceFile(path, (base / path).stat().st_size) for path in kept[:limit]]


def survey_file(root: str, path: str) -> FileReport:
    """Parse one file and count what is in it."""
    source = Path(root, path).read_bytes()
    functions = classes = 0
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions += 1
        elif isinstance(node, ast.ClassDef):
            classes += 1
    return FileReport(path, len(source.splitlines()), functions, classes, hashlib.sha256(source).hexdigest())


def digest_list(files: Iterable[SourceFile]) -> str:
    """One hash for a list of files."""
    return hashlib.sha256("\n".join(f"{file.path} {file.size}" for file in files).encode()).hexdigest()


def add_up(files: list[SourceFile], reports: list[FileReport]) -> Totals:
    """The reports of all files as one result. The hash covers each file's path and hash, in order."""
    listing = "\n".join(f"{report.path} {report.sha256}" for report in reports)
    return Totals(
        files=len(reports),
        bytes=sum(file.size for file in files),
        lines=sum(report.lines for report in reports),
        functions=sum(report.functions for report in reports),
        classes=sum(report.classes for report in reports),
        sha256=hashlib.sha256(listing.encode()).hexdigest(),
    )
