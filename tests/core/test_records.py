"""What crosses the contract between the engine and a backend."""

from __future__ import annotations

from inspect import isclass
from typing import Any

import msgspec
import pytest

from zart_core import records

RECORDS = [
    found for name in records.__all__ if isclass(found := getattr(records, name)) and issubclass(found, msgspec.Struct)
]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_type_that_a_record_names_is_known_when_it_runs(kind: type[Any]) -> None:
    msgspec.json.Decoder(kind)
