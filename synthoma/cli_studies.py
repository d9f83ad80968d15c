"""The verbs that ask whether synthetic images help: on own data, as a paper did, on phantoms."""

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from synthoma.console import say
from synthoma.errors import SettingsError
from synthoma.options import (
    Config,
    Device,
    Minutes,
    Out,
    Seed,
    Set,
    only_beside_resume,
    read_settings,
)


def augment(
    ctx: typer.Context,
    dataset: Annotated[Path | None, typer.Argument(help="A dataset folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to create.")] = None,
    task: Annotated[str, typer.Option(help="detect, classify or detect3d.")] = "detect",
    scale: Annotated[str, typer.Option(help="paper, small or smoke.")] = "paper",
    also: Annotated[
        list[Path] | None, typer.Option(help="Tumour-free slices for generators alone.")
    ] = None,
    slices: Annotated[
        int,
        typer.Option(
            min=0, help="Low data: train on so many images (or scans) of whole patients; 0: all."
        ),
    ] = 0,
    draws: Annotated[
        int, typer.Option(min=1, help="How many such draws of patients, no patient in two.")
    ] = 1,
    seed: Seed = 0,
    minutes: Minutes = None,
    device: Device = "auto",
    config: Config = None,
    replaced: Set = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this study folder.")] = None,
) -> None:
    """Does synthetic data help here? Train generators, then detectors or classifiers, and write
    one table.

    Example: synthoma augment brains --task detect --scale smoke --out runs/does-it-help
    """
    from synthoma.data.dataset import Dataset
    from synthoma.studies import augment as study
    from synthoma.studies import classify, detect3d
    from synthoma.studies.run import go_on, start

    if task not in ("detect", "classify", "detect3d"):
        raise SettingsError(f"--task {task}; allowed: detect, classify, detect3d")
    if resume is not None:
        only_beside_resume(ctx, "minutes", "device")
        folder = resume
        finished = go_on(folder, minutes=minutes, device=device)
    else:
        if dataset is None or out is None:
            raise SettingsError("give DATASET and --out, or --resume STUDY")
        folder = out
        Dataset.open(dataset)
        wanted: dict[str, Any] = {
            "scale": scale,
            "seed": seed,
            "slices": slices,
            "draws": draws,
            "overrides": read_settings(config, replaced),
        }
        chosen: study.Study | classify.ClassifyStudy | detect3d.ScanStudy
        if task == "detect":
            chosen = study.settings_for(dataset, also=also or [], **wanted)
        elif also:
            raise SettingsError("--also is of --task detect: tumour-free slices have no boxes")
        else:
            of_task = classify if task == "classify" else detect3d
            chosen = of_task.settings_for(dataset, **wanted)
        finished = start(out, chosen, minutes=minutes, device=device)
    if not finished:
        say(f"time is up; synthoma augment --resume {folder}")


def demo(
    out: Out = Path("demo"),
    seed: Seed = 0,
) -> None:
    """The whole chain on embedded phantoms, in minutes on a CPU.

    Phantom brains -> a box-conditioned GAN -> labelled synthetic slices -> detectors with and
    without them -> OUT/report.html.
    """
    from synthoma.studies import augment as study

    study.demo(out, seed=seed)


def study(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The paper; none: list them.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to create.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="A dataset folder with what is studied; none: phantoms.")
    ] = None,
    also: Annotated[
        list[Path] | None, typer.Option(help="Tumour-free slices of other patients.")
    ] = None,
    scale: Annotated[str, typer.Option(help="paper, small or smoke.")] = "paper",
    seed: Seed = 0,
    minutes: Minutes = None,
    device: Device = "auto",
    config: Config = None,
    replaced: Set = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this study folder.")] = None,
) -> None:
    """A paper's whole table, ours beside the published numbers; on phantoms without --data.

    Example: synthoma study cpggan_metastases --scale smoke --out runs/metastases
    """
    from synthoma.studies import PAPERS
    from synthoma.studies.run import go_on, start

    if resume is not None:
        only_beside_resume(ctx, "minutes", "device")
        folder = resume
        finished = go_on(folder, minutes=minutes, device=device)
    elif not name:
        for listed, asked in PAPERS.items():
            say(f"{listed:20} {asked}")
        return
    elif name not in PAPERS:
        raise SettingsError(f"no study {name!r}; allowed: {', '.join(PAPERS)}")
    elif out is None:
        raise SettingsError("give NAME and --out, or --resume STUDY")
    else:
        folder = out
        paper = importlib.import_module(f"synthoma.studies.{name}")
        wanted = paper.settings_for(
            out,
            dataset=data,
            also=also or [],
            scale=scale,
            seed=seed,
            overrides=read_settings(config, replaced),
        )
        finished = start(out, wanted, minutes=minutes, device=device)
    if not finished:
        say(f"time is up; synthoma study --resume {folder}")
