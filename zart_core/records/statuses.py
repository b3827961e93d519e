"""What an execution, a run or one of its steps can be, in a word."""

from __future__ import annotations

from typing import Literal

RunStatus = Literal["scheduled", "running", "waiting", "paused", "completed", "failed", "cancelled"]
RunTrigger = Literal["start", "continue", "restart", "rerun", "fork"]
FinalStatus = Literal["completed", "failed", "cancelled"]
StepKind = Literal["step", "parallel", "capture", "sleep", "event", "child", "choice", "patch", "failure", "undo"]
StepStatus = Literal["pending", "completed", "failed"]

STATUSES: tuple[RunStatus, ...] = ("scheduled", "running", "waiting", "paused", "completed", "failed", "cancelled")
FINISHED: tuple[FinalStatus, ...] = ("completed", "failed", "cancelled")
FINAL: frozenset[str] = frozenset(("completed", "failed", "cancelled"))
