"""Train a system by name on dataset folders, into a run folder, or go on with one.

dataset folders -> pools (checked for leaks) -> system, fitted to the data -> train -> run folder
"""

import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from synthoma.data.batches import Server
from synthoma.data.dataset import Dataset
from synthoma.engine.evaluate import classifier_figures, classify_all, figures, find_all
from synthoma.engine.run import Run
from synthoma.engine.scans import find_in_scans, scan_figures
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import Classifier, Detector, System
from synthoma.engine.train import Outcome, Watch, train
from synthoma.errors import DataError, ResourceError, SettingsError
from synthoma.settings import replaced
from synthoma.synthesis.mixture import Pools, TrainingData, absolute, has_boxes, open_pools
from synthoma.synthesis.watch import pictures
from synthoma.zoo import load_entry

#: (step, steps, images per second, losses by name)
Progress = Callable[[int, int, float, dict[str, float]], None]


def resolve(
    name: str, preset: str, overrides: Mapping[str, Mapping[str, Any]]
) -> tuple[BaseModel, TrainSettings]:
    """The settings of a preset with some replaced.

    Args:
        overrides: By part, "system" or "train", then by field.

    Raises:
        SettingsError: A preset, part, field or value that is not allowed; it says what is.
    """
    presets: dict[str, Preset] = load_entry(name).presets
    if preset not in presets:
        raise SettingsError(f"{name} has no preset {preset!r}; allowed: {', '.join(presets)}")
    chosen = presets[preset]
    wrong = set(overrides) - {"system", "train"}
    if wrong:
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: system.FIELD, train.FIELD")
    return (
        replaced(chosen.system, overrides.get("system", {}), f"{name} system"),
        replaced(chosen.train, overrides.get("train", {}), "train"),
    )


def fit(
    name: str,
    out: Path,
    data: TrainingData,
    *,
    preset: str = "paper",
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    settings: tuple[BaseModel, TrainSettings] | None = None,
    seed: int = 0,
    minutes: float | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Outcome:
    """Train a system on a dataset into the new run folder `out`.

    Args:
        name: As in `synthoma zoo`.
        preset: "paper", "small" or "smoke".
        overrides: Settings that replace the preset's.
        settings: The system's and the loop's settings, in place of a preset.
        minutes: Stop at a checkpoint after this long; `resume` goes on.
    """
    config, loop = settings or resolve(name, preset, overrides or {})
    pick_device(device)
    pools = open_pools(data)
    config = load_entry(name).fitted(config, pools.domains)
    loop = in_steps(loop, config)
    facts: dict[str, Any] = {
        "name": name,
        "preset": preset if settings is None else "custom",
        "system": config.model_dump(mode="json"),
        "train": loop.model_dump(mode="json"),
        "seed": seed,
        "digest": pools.digest,
        "n_real": pools.n_real,
        "n_synthetic": pools.n_synthetic,
    }
    text = json.dumps(facts, sort_keys=True)
    facts |= {
        "id": f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}",
        "data": absolute(data).model_dump(mode="json"),
        "trained_on": pools.seen,
        "command": shlex.join(["synthoma", *sys.argv[1:]]),
    }
    system = build(facts)
    system.begin()
    run = Run.create(out, facts)
    try:
        return play_run(run, system, pools, minutes=minutes, device=device, progress=progress)
    except (DataError, SettingsError):
        if not run.steps_saved():  # nothing is lost, and the name is free for the right command
            shutil.rmtree(out)
        raise


def in_steps(loop: TrainSettings, config: BaseModel) -> TrainSettings:
    """The loop's settings with those that are in epochs turned into steps.

    Raises:
        SettingsError: The system counts no epochs: its settings have no `steps_per_epoch`.
    """
    if not loop.epochs:
        return loop
    steps = getattr(config, "steps_per_epoch", None)
    if steps is None:
        raise SettingsError(
            f"train.epochs={loop.epochs}: this system counts no epochs; give train.steps"
        )
    every = loop.validate_every or steps
    return loop.model_copy(
        update={"steps": min(loop.steps, loop.epochs * steps), "validate_every": every}
    )


def resume(
    folder: Path,
    *,
    minutes: float | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Outcome:
    """Go on with a run; a finished one is left as it is.

    Raises:
        DataError: Not a run folder, or its dataset is not the one that it began with.
    """
    run = Run.open(folder)
    facts = run.facts
    pick_device(device)
    if run.finished:
        return Outcome(facts["train"]["steps"], "finished")
    data = TrainingData.model_validate(facts["data"])
    pools = open_pools(data)
    if pools.digest != facts["digest"]:
        raise DataError(
            f"{data.data}: not the cases that {folder} began with (their digest differs)"
        )
    run.clean()
    system = build(facts)
    if not run.steps_saved():
        system.begin()
    return play_run(run, system, pools, minutes=minutes, device=device, progress=progress)


def train_up(
    name: str,
    folder: Path,
    data: TrainingData,
    settings: tuple[BaseModel, TrainSettings],
    *,
    seed: int,
    minutes: float | None,
    device: str,
    progress: Progress | None,
) -> Outcome | None:
    """Train a system in its run folder, or go on with it where it stands.

    Returns:
        None where the minutes were up before the training ended.

    Raises:
        KeyboardInterrupt: A signal stopped it, at a checkpoint.
    """
    if folder.exists():
        outcome = resume(folder, minutes=minutes, device=device, progress=progress)
    else:
        folder.parent.mkdir(exist_ok=True)
        outcome = fit(
            name,
            folder,
            data,
            settings=settings,
            seed=seed,
            minutes=minutes,
            device=device,
            progress=progress,
        )
    if outcome.stopped == "signal":
        raise KeyboardInterrupt
    return None if outcome.stopped == "minutes" else outcome


def play_run(
    run: Run,
    system: System,
    pools: Pools,
    *,
    minutes: float | None,
    device: str,
    progress: Progress | None,
) -> Outcome:
    """Train, or go on training, what run.json says."""
    facts = run.facts
    loop, where = TrainSettings.model_validate(facts["train"]), pick_device(device)
    judge = validator(system, pools.validation, facts, loop)
    if loop.keep_best and judge is None:  # nothing to choose the best by: the last weights are used
        loop = loop.model_copy(update={"keep_best": "", "patience": 0})
    watch = Watch(
        progress=progress,
        validate=judge,
        picture=pictures(system, run, pools.domains, facts),
    )
    workers = 1 if where.type == "cpu" else min(4, os.cpu_count() or 1)
    share = TrainingData.model_validate(facts["data"]).synthetic_first
    opening = None if pools.opening is None else (round(share * loop.steps), pools.opening)
    server = Server(pools.domains, seed=facts["seed"], workers=workers, opening=opening)
    with run.locked():
        outcome = train(
            system,
            server,
            loop,
            seed=facts["seed"],
            run=run,
            minutes=minutes,
            watch=watch,
            device=where,
        )
    if outcome.stopped in ("finished", "patience"):
        kept = {k: facts[k] for k in ("name", "id", "system", "trained_on", "digest", "seed")}
        steps = {"step": outcome.step, "best_step": outcome.best_step or None}
        weights = system.state_dict()
        run.finish(
            {n: t for n, t in weights.items() if n not in system.training_only}, kept | steps
        )
    return outcome


def pick_device(name: str) -> torch.device:
    """The device of a name: "auto", "cpu", "cuda", "cuda:1".

    Raises:
        ResourceError: It is not there.
        SettingsError: There is no such name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise SettingsError(f"device {name!r}; allowed: auto, cpu, cuda, cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise ResourceError(f"device {name}: torch finds no GPU here; allowed: auto, cpu")
    return torch.device(name)


def build(facts: Mapping[str, Any]) -> System:
    """The system that run.json or model.json describes, with its first weights."""
    entry = load_entry(facts["name"])
    config = entry.config.model_validate(facts["system"])
    torch.manual_seed(facts["seed"])  # the first weights, the same for a run that starts over
    return entry.system(config)


def load_trained(folder: Path, device: str = "cpu") -> tuple[System, dict[str, Any]]:
    """The trained system of a finished run, ready to use, and what model.json says of it."""
    facts, weights = Run.open(folder).read_model()
    system = build(facts)
    unshared = {n: t for n, t in system.state_dict().items() if n in system.training_only}
    system.load_state_dict(unshared | weights)
    return system.to(device).eval(), facts


def validator(
    system: System, validation: Dataset | None, facts: Mapping[str, Any], loop: TrainSettings
) -> Callable[[System], dict[str, float]] | None:
    """Judges a system on the validation split, a detector at the side at which it is tested.

    Returns:
        None where there is nothing to judge by: no such split, no box in it to find, or a system
        that has no answer to be right or wrong.
    """
    if validation is None:
        return None

    def judge(own: System) -> dict[str, float]:
        if isinstance(own, Classifier):
            return classifier_figures(classify_all(own, validation, precision=loop.precision))
        if isinstance(own, Detector):
            if validation.about["dimensions"] == 3:
                return scan_figures(find_in_scans(own, validation, precision=loop.precision))
            side_px = facts["system"]["test_side_px"]
            return figures(find_all(own, validation, side_px=side_px, precision=loop.precision))
        raise AssertionError("a system that has no answer was validated")

    answers = isinstance(system, Classifier)
    return judge if answers or (isinstance(system, Detector) and has_boxes(validation)) else None
