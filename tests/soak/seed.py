"""Where the seeds of long tests begin."""

from __future__ import annotations

import os

BASE = int(os.environ.get("ZART_SOAK_BASE", "0"))
"""The first seed of the long tests: another in every soak."""
