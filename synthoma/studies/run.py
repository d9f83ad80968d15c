"""A study's folder: begun once, gone on with by any number of processes.

    STUDY/study.json   the settings and the command; which class works on it, by its task

A study that is refused before a network was begun leaves no folder.
"""

import importlib
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from synthoma.data.store import new_folder, read_json, write_json
from synthoma.errors import DataError, SettingsError, SynthomaError

if TYPE_CHECKING:
    from synthoma.studies.augment import Study
    from synthoma.studies.classify import ClassifyStudy
    from synthoma.studies.detect3d import ScanStudy
    from synthoma.studies.isbi2018_brats import BratsStudy


def begin(out: Path, study: "Study | ClassifyStudy | ScanStudy | BratsStudy") -> None:
    """Write down what a study is to do, in a new folder; a SettingsError where it exists."""
    verb = "augment" if study.name == "augment" else "study"
    if out.exists():
        raise SettingsError(
            f"{out} exists already; nothing is overwritten: give another --out, or continue it "
            f"with `synthoma {verb} --resume {out}`"
        )
    command = shlex.join(["synthoma", *sys.argv[1:]])
    with new_folder(out) as folder:
        write_json(folder / "study.json", study.model_dump(mode="json") | {"command": command})


def start(
    out: Path,
    study: "Study | ClassifyStudy | ScanStudy | BratsStudy",
    *,
    minutes: float | None = None,
    device: str = "auto",
) -> bool:
    """`begin` and `go_on`; where a study is refused before a network was begun, its folder goes,
    so that the right command can have its name."""
    begin(out, study)
    try:
        return go_on(out, minutes=minutes, device=device)
    except SynthomaError:
        if not any(out.rglob("run.json")):
            shutil.rmtree(out)
        raise


#: By task: what study.json holds, and what works on it.
TASKS = {
    "detect": ("synthoma.studies.augment.Study", "synthoma.studies.work.Work"),
    "classify": (
        "synthoma.studies.classify.ClassifyStudy",
        "synthoma.studies.classify_work.ClassifyWork",
    ),
    "detect3d": (
        "synthoma.studies.detect3d.ScanStudy",
        "synthoma.studies.detect3d_work.ScanWork",
    ),
    "draw": (
        "synthoma.studies.isbi2018_brats.BratsStudy",
        "synthoma.studies.isbi2018_work.BratsWork",
    ),
}


def go_on(out: Path, *, minutes: float | None = None, device: str = "auto") -> bool:
    """Run the study that `begin` wrote down, from where it stands.

    Several processes may go on with one study: each takes parts that no other is at.

    Returns:
        Whether it is finished; False where the minutes were up.

    Raises:
        LeakError: A generator would see a validation or test patient.
    """
    if not (out / "study.json").is_file():
        raise DataError(f"{out}: not a study folder (no study.json)")
    kept = read_json(out / "study.json")
    command, task = kept.pop("command"), kept.get("task", "detect")
    if task not in TASKS:
        raise DataError(f"{out}/study.json: task {task!r}; allowed: {', '.join(TASKS)}")
    settings, work = (load(path) for path in TASKS[task])
    try:
        study = settings.model_validate(kept)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "study"
        raise DataError(
            f"{out}/study.json: {where}: {first['msg']}; was it made by another version?"
        ) from None
    finished: bool = work(out, study, command, device, minutes).run()
    return finished


def load(path: str) -> Any:
    """The class of a dotted path; their files import this one."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)
