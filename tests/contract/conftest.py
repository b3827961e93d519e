"""The suite ships with zart_core, outside of what pytest rewrites by itself."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("zart_core.testing.contract")
