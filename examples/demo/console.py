"""What the demo prints: text line by line, and how far the work is."""

import sys

from examples.demo.survey import Progress

WIDTH = 40


def say(text: str = "") -> None:
    """Print a line at once: a worker's warnings go to the same place, and the story has to stay in order."""
    print(text, flush=True)


class ProgressLine:
    """One line that is rewritten on a terminal; elsewhere a line at every tenth."""

    def __init__(self) -> None:
        self._on_terminal = sys.stdout.isatty()
        self._shown = Progress(0, 0)

    def show(self, progress: Progress) -> None:
        if progress.total == 0 or progress.done == self._shown.done:
            return
        if self._on_terminal:
            filled = WIDTH * progress.done // progress.total
            bar = "#" * filled + "." * (WIDTH - filled)
            print(f"\r  [{bar}] {progress.done} of {progress.total} files", end="", flush=True)
        elif progress.done * 10 // progress.total > self._shown.done * 10 // progress.total:
            say(f"  {progress.done} of {progress.total} files")
        self._shown = progress

    def close(self) -> None:
        """End the line, so that other text can follow."""
        if self._on_terminal and self._shown.done:
            say()
