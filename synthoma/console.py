"""What a person sees in a terminal: lines, and progress with a rate and the time left.

On a terminal rich draws a bar; elsewhere (a log file, CI) a plain line comes every ten seconds.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: (done, of how many, what else to show)
Tell = Callable[[int, int, str], None]


def say(text: str) -> None:
    """Print a line to standard output."""
    print(text, flush=True)


def duration(seconds: float) -> str:
    """Seconds for a person.

    Example:
        >>> duration(42), duration(754), duration(8100)
        ('42 s', '12 min 34 s', '2 h 15 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


@contextmanager
def progress(title: str) -> Iterator[Tell]:
    """A bar, or lines, for the block; call what it gives with (done, of how many, more)."""
    if sys.stderr.isatty():
        with rich_bar(title) as tell:
            yield tell
        return
    began = said = time.monotonic()
    first: int | None = None

    def line(done: int, n: int, more: str = "") -> None:
        nonlocal said, first
        now = time.monotonic()
        first = done - 1 if first is None else first  # what was resumed took no time today
        if now - said >= 10 or done == n:
            said = now
            left = (now - began) * (n - done) / max(done - first, 1)
            rest = f", {duration(left)} left" if done < n else f" in {duration(now - began)}"
            print(f"{title}: {done}/{n}{rest} {more}".rstrip(), file=sys.stderr, flush=True)

    yield line


@contextmanager
def rich_bar(title: str) -> Iterator[Tell]:
    """A bar with the time left."""
    from rich.progress import (  # noqa: PLC0415 (only where there is a terminal)
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[more]}"),
    )
    with Progress(*columns) as bar:
        tasks: list[TaskID] = []

        def tell(done: int, n: int, more: str = "") -> None:
            if not tasks:  # from where a resumed run stands, so that the time left is right
                tasks.append(bar.add_task(title, total=n, completed=done - 1, more=more))
            bar.update(tasks[0], completed=done, total=n, more=more)

        yield tell


@contextmanager
def training(title: str) -> Iterator[Callable[[int, int, float, dict[str, float]], None]]:
    """Progress of a training run: steps, images per second, losses."""
    with progress(title) as tell:

        def show(step: int, steps: int, rate: float, terms: dict[str, float]) -> None:
            losses = " ".join(f"{name}={value:.3g}" for name, value in list(terms.items())[:4])
            tell(step, steps, f"{rate:.0f} images/s {losses}")

        yield show
