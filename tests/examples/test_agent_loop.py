from __future__ import annotations

from pathlib import Path

from examples.agent_loop import Agent, Answer, Message, Model, Question, ToolCall, Tools
from tests.examples.database import calls, histories
from tests.examples.programs import lines_on, lines_on_a_file, run_module
from zart_core import TaskRegistry
from zart_core.testing import TestEngine

STORY = [
    "The model reads 1 messages",
    "Tool: disk_usage web-1",
    "The model reads 3 messages",
    "Waiting for approval-1",
    "Tool: delete /var/log/old",
    "The worker is dead",
    "Tool: delete /var/log/old",
    "The model reads 5 messages",
    "Result: deleted /var/log/old.",
]


def told(lines: list[str]) -> list[str]:
    """Without the worker's own log, which comes when it comes."""
    return [line for line in lines if not line.startswith("Log: ")]


def check_what_is_stored(url: str) -> None:
    [history] = histories(url, "agent")

    assert history.execution.status == "completed"
    assert calls(history) == [
        "step model-0",
        "step tool-0",
        "step model-1",
        "event approval-1",
        "step tool-1",
        "step model-2",
    ]
    # What the dead worker had recorded is still its own: nobody has done it again.
    before, after = {step.worker for step in history.steps[:4]}, {step.worker for step in history.steps[4:]}
    assert len(before) == len(after) == 1
    assert before.isdisjoint(after)
    assert [event.read_by for event in history.events] == ["approval-1"]


def test_after_the_crash_the_model_is_not_asked_again(tmp_path: Path) -> None:
    assert told(lines_on_a_file("agent_loop", tmp_path)) == STORY
    check_what_is_stored(f"sqlite:///{tmp_path}/examples.db")


def test_it_tells_and_stores_the_same_on_postgres(empty_postgres: str) -> None:
    assert told(lines_on("agent_loop", empty_postgres)) == STORY
    check_what_is_stored(empty_postgres)


def test_it_tells_the_same_story_without_a_database_of_the_user() -> None:
    finished = run_module("examples.agent_loop")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert told(finished.stdout.splitlines()) == STORY


# --- the ways that the story does not take ------------------------------------------------------------------------------


class Insistent(Model):
    """Wants the same again and again, and remembers what it has read last."""

    def __init__(self, call: ToolCall) -> None:
        self.call = call
        self.read: list[str] = []

    async def reply(self, conversation: list[Message]) -> Message:
        self.read = [message.text for message in conversation]
        return Message("assistant", "Once more.", self.call)


def agents(model: Model, tools: Tools | None = None) -> TaskRegistry:
    registry = TaskRegistry()
    registry.register(Agent(model, tools or Tools()))
    return registry


async def test_a_model_that_never_comes_to_an_end_is_stopped() -> None:
    model = Insistent(ToolCall("disk_usage", "web-1"))
    async with TestEngine(agents(model), replay="always") as engine:
        handle = await engine.start(Agent, Question("Why?", max_turns=3))
        await engine.settle()
        assert (await handle.result()).status == "out of turns"
        assert [engine.ran(handle, f"model-{turn}") for turn in range(4)] == [1, 1, 1, 0]


async def test_the_model_is_told_of_a_tool_that_does_not_exist() -> None:
    model = Insistent(ToolCall("reboot", "web-1"))
    async with TestEngine(agents(model), replay="always") as engine:
        handle = await engine.start(Agent, Question("Why?", max_turns=2))
        await engine.settle()
        await handle.result()
    assert model.read == ["Why?", "Once more.", "failed: there is no tool 'reboot'"]


async def test_a_dangerous_tool_is_not_used_without_an_approval_of_this_very_call() -> None:
    used: list[str] = []

    class Watched(Tools):
        async def use(self, call: ToolCall) -> str:
            used.append(call.tool)
            return await super().use(call)

    async with TestEngine(agents(Insistent(ToolCall("delete", "/home")), Watched()), replay="always") as engine:
        handle = await engine.start(Agent, Question("Tidy up", max_turns=3))
        await handle.offer_event("approval-0", {"approved": False, "by": "Grace"})
        for _ in range(2):  # somebody presses the button twice
            await handle.offer_event("approval-1", {"approved": True, "by": "Grace"})
        await engine.run_until_waiting(handle)
        assert used == ["delete"]
        await engine.advance("1d")
        assert await handle.result() == Answer("out of turns", "not done: nobody answered")
    assert used == ["delete"]
