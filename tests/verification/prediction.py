"""What a program must do, told from the program alone: it knows nothing of the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct, field

from tests.verification.program import (
    Act,
    Beat,
    Child,
    Each,
    Fan,
    Hear,
    Idle,
    Note,
    Once,
    Patch,
    Program,
    Race,
    Saga,
    Sleep,
    Step,
    Together,
    Transaction,
)


class Prediction(Struct):
    """Of one execution: its end, its rows of the ledger, how many attempts each step has, and which are undone; all by the name of the
    step, which no other run of the execution uses.

    ``earlier`` are runs of the same execution that were told of by themselves. ``maybe`` are steps that are cut off, whether they have begun or
    not. ``anew`` are those that run once more when the handler is run again. ``once`` may run at most once, ``beats`` tells how far an attempt
    was that failed, and of ``either`` only one is done. Of one that is ``struck`` every fact may be missing, and so of one that is ``overdue``,
    but for its end; children of that one are ``hurried`` by its deadline; one that is ``optional`` may never
    have been started. ``key``: of a queue with limits.
    """

    status: str = "completed"
    output: list[str] | None = None
    message: str | None = None
    struck: bool = False
    overdue: bool = False
    hurried: bool = False
    optional: bool = False
    task: str = "verified"
    key: str | None = None
    runs: int = 1
    earlier: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    transactions: set[str] = field(default_factory=set)
    undone: set[str] = field(default_factory=set)
    once: set[str] = field(default_factory=set)
    beats: dict[str, int] = field(default_factory=dict)
    either: list[tuple[str, str]] = field(default_factory=list)
    sleeps: dict[str, int] = field(default_factory=dict)
    maybe: set[str] = field(default_factory=set)
    anew: set[str] = field(default_factory=set)
    children: dict[str, Prediction] = field(default_factory=dict)

    def family(self, name: str) -> Iterator[tuple[str, Prediction]]:
        """This one, called ``name``, and all below it."""
        yield name, self
        for child, prediction in self.children.items():
            yield from prediction.family(child)


def id_of(execution_id: str, program: Program) -> str:
    """What an execution is called in ledgers: its id, and the number of its round when it was restarted."""
    return f"{execution_id}~{program.round}" if program.round else execution_id


def child_id(parent: str, name: str) -> str:
    """What the child is called that an execution starts."""
    return f"{parent}/{name}"


def predict(name: str, program: Program, *, struck: bool = False, optional: bool = False) -> Prediction:
    """What the execution ``name`` of this program does. ``struck``: it may be cancelled at any moment, by itself or with its parent."""
    told = Prediction(runs=len(program.blocks), struck=struck or program.struck, optional=optional)
    told.transactions |= {"rescue", "cleanup", "expired"}
    told.task = {"again": "verified-again", "expires": "verified-timed"}.get(program.ending, "verified")
    if program.ending == "expires":
        told.struck = told.overdue = True
        told.maybe.add("hour")
    oracle = _Oracle(name, told)
    output: list[str] = []
    for number, block in enumerate(program.blocks):
        oracle.run = number + 1
        oracle.again = program.ending == "again" and oracle.run == told.runs
        output = oracle.block(block)
    match program.ending:
        case "fails":
            told.status, told.message = "failed", "the program fails"
        case "rescued":
            output = ["rescued"]
            told.rows["rescue"] = 1
        case "expires":
            output = ["expired"]
            told.rows["expired"] = 1
        case "hangs":
            told.status = "cancelled"
            told.rows["cleanup"] = 1
    told.output = output if told.status == "completed" else None
    return told


def lost_to(act: Race) -> dict[str, str]:
    """The names of a race's losers, and what they are."""
    return {f"{act.name}l{number}": kind for number, kind in enumerate(act.losers)}


class _Oracle:
    def __init__(self, name: str, told: Prediction) -> None:
        self.name = name
        self.told = told
        self.run = 1
        self.again = False

    def block(self, acts: Iterable[Act], *, breaks: bool = False) -> list[str]:
        """The words of a block. ``breaks``: in a saga whose steps are undone."""
        return [word for act in acts for word in self.act(act, breaks)]

    def act(self, act: Act, breaks: bool) -> list[str]:  # noqa: PLR0912 - a case for each kind
        told = self.told
        match act:
            case Step():
                return [self.step(act, breaks)]
            case Transaction():
                told.transactions.add(act.name)
                told.attempts[act.name] = act.failures + 1
                if act.ending == "returns":
                    told.rows[act.name] = act.amount
                    return [act.name]
                self.ran_again(act.name)
                return [f"{act.name}!{failed(act.failures)}"]
            case Sleep():
                told.sleeps[act.name] = act.ms
                return [act.name]
            case Hear():
                heard = [] if act.when == "never" else [f"{act.name}={act.value}"]
                return [*([f"{act.name}!late"] if act.when in ("late", "never") else []), *heard]
            case Fan():
                return [self.step(step, breaks=False) for step in act.steps]
            case Race():
                for step in act.winners:
                    self.step(step, breaks=False)
                told.maybe |= set(lost_to(act))
                return [f"{act.name}>{','.join(map(str, range(len(act.winners))))}"]
            case Each():
                for number in range(act.count):
                    told.attempts[f"{act.name}-{number}"] = 1
                return [f"{act.name}+{sum(range(act.count))}"]
            case Together():
                return [word for block in act.blocks for word in self.block(block, breaks=breaks)]
            case Saga():
                words = self.block(act.block, breaks=breaks or act.breaks)
                if act.breaks:
                    # The words of a block that breaks are lost with it.
                    words = [f"{act.name}!broken"]
                told.attempts[act.name] = 1
                told.transactions.add(act.name)
                told.rows[act.name] = act.amount if act.breaks else -act.amount
                return words
            case Child():
                name = child_id(self.name, act.name)
                struck = told.struck and not act.detached
                optional = told.struck or told.optional
                child = told.children[name] = predict(name, act.program, struck=struck, optional=optional)
                if told.overdue:
                    for _, member in child.family(name):
                        member.hurried = True
                return [act.name if act.detached else f"{act.name}:{child.status}"]
            case Once():
                told.once.add(act.name)
                told.maybe.add(act.name)
                return [act.name]
            case Beat():
                told.attempts[act.name] = 2
                told.beats[act.name] = act.fails
                return [act.name]
            case Patch():
                told.either.append((f"{act.name}old", f"{act.name}new"))
                told.maybe |= set(told.either[-1])
                return [act.name]
            case Idle():
                told.attempts[act.name] = 1
                return [act.name]
            case Note():
                return [act.name]

    def step(self, act: Step, breaks: bool) -> str:
        if act.ending == "overruns":
            # Its time counts from the first attempt: who comes after it has passed does not begin.
            self.told.maybe.add(act.name)
            self.ran_again(act.name)
            return f"{act.name}!timeout"
        self.told.attempts[act.name] = act.failures + 1
        if act.ending == "raises":
            self.ran_again(act.name)
            return f"{act.name}!{failed(act.failures)}"
        if breaks:
            self.told.undone.add(act.name)
            self.ran_again(act.name)
        return f"{act.name}#{act.size}"

    def ran_again(self, step: str) -> None:
        """What is not kept for the handler's next attempt."""
        if self.again:
            self.told.anew.add(step)


def failed(retries: int) -> str:
    """What becomes of a step that fails to the end."""
    return "exhausted" if retries else "failed"
