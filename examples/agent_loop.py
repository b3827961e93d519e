"""An agent: a language model that calls tools until it has an answer, in a loop that survives a crash.

Each answer of the model is a step, so it is paid for once: the conversation is rebuilt from what is stored. A tool that can do harm waits for
a person. Here the worker's process dies inside that tool; another worker goes on there, and does not ask the model again.

Run it with ``python -m examples.agent_loop``.
"""

import asyncio
import logging
import os
import sys
import tempfile
from typing import Literal

from msgspec import Struct

from examples._database import database, shared_url
from zart_core import (
    DurableScheduler,
    EventTimeout,
    Scheduler,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    WorkerConfig,
)


class ToolCall(Struct, frozen=True):
    tool: str
    argument: str


class Message(Struct, frozen=True):
    role: Literal["user", "assistant", "tool"]
    text: str
    call: ToolCall | None = None


class Question(Struct, frozen=True):
    text: str
    max_turns: int = 10


class Answer(Struct, frozen=True):
    status: Literal["answered", "out of turns"]
    text: str


class Approval(Struct, frozen=True):
    approved: bool
    by: str


class Model:
    """Stands in for a language model."""

    async def reply(self, conversation: list[Message]) -> Message:
        say(f"The model reads {len(conversation)} messages")
        last = conversation[-1]
        if "logs" in last.text:
            return Message("assistant", "Old logs can go.", ToolCall("delete", "/var/log/old"))
        if last.role == "tool":
            return Message("assistant", f"Result: {last.text}.")
        return Message("assistant", "I have a look at the disk.", ToolCall("disk_usage", "web-1"))


class Tools:
    """What the model may do. ``loses_power`` is for the crash: the first process to delete something is gone at once."""

    dangerous = frozenset({"delete"})

    def __init__(self, *, loses_power: bool = False) -> None:
        self.loses_power = loses_power

    async def use(self, call: ToolCall) -> str:
        say(f"Tool: {call.tool} {call.argument}")
        match call.tool:
            case "disk_usage":
                return f"{call.argument} is 97 % full, most of it logs"
            case "delete":
                if self.loses_power:
                    os._exit(1)
                return f"deleted {call.argument}"
            case _:
                raise LookupError(f"there is no tool {call.tool!r}")


class Agent(TaskHandler[Question, Answer]):
    name = "agent"

    def __init__(self, model: Model, tools: Tools) -> None:
        self.model = model
        self.tools = tools

    async def run(self, ctx: TaskContext, data: Question) -> Answer:
        # An ordinary local variable. A replay fills it again from the steps' results, without a call to anybody.
        conversation = [Message("user", data.text)]
        for turn in range(data.max_turns):
            reply = await ctx.step(
                f"model-{turn}", self.model.reply, conversation, retry="exponential(5, 1s)", timeout="5m"
            )
            conversation.append(reply)
            await ctx.publish("conversation", conversation)  # whoever follows it reads it from here
            if reply.call is None:
                return Answer("answered", reply.text)
            conversation.append(Message("tool", await self.use(ctx, turn, reply.call)))
        return Answer("out of turns", conversation[-1].text)

    async def use(self, ctx: TaskContext, turn: int, call: ToolCall) -> str:
        if call.tool in self.tools.dangerous:
            try:
                # The turn is in the name: an approval that is sent twice does not approve the next call as well.
                decision = await ctx.wait_for_event(f"approval-{turn}", Approval, timeout="1d")
            except EventTimeout:
                return "not done: nobody answered"
            if not decision.approved:
                return f"not done: {decision.by} says no"
        # What a tool fails with is for the model to read: it may find another way.
        return await ctx.step_or_else(f"tool-{turn}", self.tools.use, call, fallback=lambda error: f"failed: {error}")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = shared_url(folder)
        async with database(url) as scheduler:
            agent = await DurableScheduler(scheduler).start(Agent, Question("The disk of web-1 is full. Do something."))
            doomed = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "examples.agent_loop", "doomed", env={**os.environ, "ZART_DATABASE_URL": url}
            )
            while (waiting := (await agent.status()).waiting_on) is None or waiting.kind != "event":
                assert doomed.returncode is None, "it should not die before it uses the tool"
                await asyncio.sleep(0.05)
            say(f"Waiting for {waiting.name}")
            await agent.offer_event(waiting.name, Approval(approved=True, by="Grace"))
            await doomed.wait()
            say("The worker is dead")

            async with worker(scheduler, Tools()):
                say((await agent.result(timeout="60s")).text)


def worker(scheduler: Scheduler, tools: Tools) -> Worker:
    registry = TaskRegistry()
    registry.register(Agent(Model(), tools))
    # How long a worker that has vanished is waited for. Short, for an example; the default is 10 s.
    return Worker(scheduler, registry, WorkerConfig(lease="1s"))


def say(text: str) -> None:
    print(text, flush=True)  # at once: two processes write here


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, format="Log: %(message)s")
    asyncio.run(worker(database(), Tools(loses_power=True)).run() if sys.argv[1:] == ["doomed"] else main())
