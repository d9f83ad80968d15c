"""Named tasks of a folder, each done once, whichever of several processes gets to it first.

    stages of tasks -> Stages.run -> whether all are done; False where the minutes were up

    FOLDER/.locks/TASK      held by the process that is at it; the system lets go when it dies
    FOLDER/seconds.json     what each task took, over all calls

A task must itself know that it is done, and then be quick: a folder goes on where it stopped.
"""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from synthoma.data.store import read_json, write_json

#: A name for people, and what does it; False where the minutes were up.
Task = tuple[str, Callable[[], bool]]


class Stages:
    """The tasks of a folder.

    Args:
        minutes: Stop after this long, where a task can; None: no limit.
    """

    def __init__(self, folder: Path, minutes: float | None) -> None:
        self.folder = folder
        self.ends = None if minutes is None else time.monotonic() + 60 * minutes

    def run(self, stages: Iterable[Sequence[Task]]) -> bool:
        """Every stage in turn; False where the minutes were up."""
        return all(self.stage(tasks) for tasks in stages)

    def stage(self, tasks: Sequence[Task]) -> bool:
        """Do every task of a stage, or wait until another process has."""
        pending = list(tasks)
        while pending:
            took = False
            for name, do in list(pending):
                with self.claimed(name) as mine:
                    if not mine:
                        continue
                    took = True
                    if not self.timed(name, do):
                        return False
                    pending.remove((name, do))
            if not took and self.minutes_left == 0:
                return False
            if not took:
                time.sleep(1)
        return True

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Whether a task is this process's for the block; the system lets go when it dies."""
        locks = self.folder / ".locks"
        locks.mkdir(exist_ok=True)
        with (locks / slug(name)).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def timed(self, name: str, do: Callable[[], bool]) -> bool:
        """Do a task and remember how long it took, over all calls."""
        began = time.monotonic()
        try:
            return do()
        finally:
            spent = time.monotonic() - began
            with (self.folder / ".locks" / ".seconds").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                seconds = self.seconds
                if spent > 1 or name not in seconds:
                    seconds[name] = round(seconds.get(name, 0.0) + spent, 1)
                    write_json(self.folder / "seconds.json", seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """What each task took."""
        path = self.folder / "seconds.json"
        return read_json(path) if path.is_file() else {}

    @property
    def minutes_left(self) -> float | None:
        """None: no limit."""
        return None if self.ends is None else max(0.0, (self.ends - time.monotonic()) / 60)


def slug(name: str) -> str:
    """A file's name.

    Example:
        >>> slug("real + classic, seed 0")
        'real-classic-seed-0'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())
