"""Progress on stderr: bars with tokens/s and time left in a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 5.0
"""Seconds between plain lines."""


class _Rate:
    """Tokens per second since the first batch ended: before that, models are being loaded."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._counted = 0

    def after(self, tokens: int) -> float:
        """The rate once these tokens more are done; 0 until there is one."""
        if self._began is None:
            self._began = time.monotonic()
            return 0.0
        self._counted += tokens
        return self._counted / max(time.monotonic() - self._began, 1e-9)


class Bars:
    """One bar a stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def stage(self, name: str, tokens: int) -> Callable[[int], None]:
        """A bar that moves on by the tokens it is called with."""
        for earlier in self._bars.tasks:  # a stage whose tokens are not known ends when the next begins
            if earlier.total is None:
                self._bars.update(earlier.id, total=1, completed=1)
        task = self._bars.add_task(name, total=tokens or None, count="", rate="")
        rate, total = _Rate(), 0

        def advance(done: int) -> None:
            nonlocal total
            total += done
            speed = rate.after(done)
            said = f"{speed:,.0f} tokens/s" if speed else ""
            self._bars.update(task, advance=done, count=f"{total:,} of {tokens:,} tokens", rate=said)

        return advance


class Lines:
    """A line at the end of a stage, and one every few seconds before it; none of a stage whose tokens are not known."""

    def stage(self, name: str, tokens: int) -> Callable[[int], None]:
        """Writes what is done, the rate and the time left."""
        rate = _Rate()
        last = time.monotonic()
        done = 0

        def advance(more: int) -> None:
            nonlocal done, last
            done += more
            speed = rate.after(more)
            now = time.monotonic()
            if now - last >= EVERY or done >= tokens:
                last = now
                pace = f", {speed:,.0f} tokens/s, {(tokens - done) / speed:,.0f} s left" if speed else ""
                _say(f"{name}: {done:,} of {tokens:,} tokens{pace}")

        return advance


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def for_terminal() -> Iterator[Bars | Lines]:
    """What suits stderr."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]} {task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield Bars(bars)
