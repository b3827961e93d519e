"""What is stored of an execution that was cancelled."""

from __future__ import annotations

from typing import Final

import msgspec

from zart_core.records import ErrorInfo, ExecutionFailure

CANCELLED: Final = msgspec.json.encode(
    ExecutionFailure(kind="cancelled", error=ErrorInfo(type="ExecutionCancelled", message=""))
).decode()
"""The failure of a cancelled run but for its reason and message. Which runs a cancellation reaches is known in the database
only, so ``cancelled_v1`` fills these in."""
