"""Replay seeds: ``python -m tests.simulation SEED [SEED …]``, with ``-v`` for every call, or ``FROM-TO`` for many."""

from __future__ import annotations

import sys

from tests.simulation.simulation import Result, Simulation


def main(arguments: list[str]) -> int:
    verbose = "-v" in arguments
    failed = 0
    for argument in arguments:
        if argument == "-v":
            continue
        first, _, last = argument.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            result = Simulation(seed, trace=print if verbose else None).run()
            failed += bool(result.findings)
            if result.findings or not last:
                show(result)
    return 1 if failed else 0


def show(result: Result) -> None:
    print(
        f"seed {result.seed}: {result.calls} calls, {result.deaths} deaths, {result.seconds:.2f} s, {result.digest[:16]}"
    )
    print(f"  {result.weather}")
    for finding in result.findings:
        print(f"  {finding}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
