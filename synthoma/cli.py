"""The command line: one verb a stage. What a verb needs is imported inside it.

Exit codes: 0 done, 1 failed (a training that diverged), 2 usage or settings, 3 data, 4 resources,
130 interrupted.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from synthoma import __version__
from synthoma.cli_data import data_app
from synthoma.cli_sets import curate, label, paste, privacy, refine
from synthoma.cli_studies import augment, demo, study
from synthoma.console import progress, say, training
from synthoma.errors import SettingsError, SynthomaError
from synthoma.options import (
    Config,
    Device,
    Minutes,
    Out,
    Seed,
    Set,
    only_beside_resume,
    read_pairs,
    read_settings,
)

if TYPE_CHECKING:
    from synthoma.data.dataset import Dataset
    from synthoma.synthesis.mixture import Mixed

app = typer.Typer(
    name="synthoma",
    help="From few annotated medical images to synthetic pathology, and a proof of its worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")


#: The exit status after Ctrl-C.
INTERRUPTED = 130


def main() -> None:
    """Run the command line; errors made for people are printed without a traceback."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    signal.signal(signal.SIGTERM, interrupt)  # a training loop has its own, gentler way
    try:
        app()
    except SynthomaError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:  # as Typer tells of Ctrl-C
            raise
        print("interrupted; what was begun goes on with --resume", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (MemoryError, OSError, RuntimeError) as error:
        memory = "out of memory" in str(error) or "allocate memory" in str(error)
        if debug or (isinstance(error, RuntimeError) and not memory):
            raise
        print(f"error: {error or 'out of memory'}", file=sys.stderr)
        sys.exit(4)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Let SIGTERM end a verb as Ctrl-C does, so that drafts are removed."""
    raise KeyboardInterrupt


def tell_version(asked: bool) -> bool:
    """Print the version, and no more, where that was asked."""
    if asked:
        say(__version__)
        raise typer.Exit
    return asked


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=tell_version),
    ] = False,
) -> None:
    """From few annotated medical images to synthetic pathology, and a proof of its worth."""


@app.command()
def train(
    ctx: typer.Context,
    system: Annotated[str, typer.Argument(help="As in `synthoma zoo`; not with --resume.")] = "",
    data: Annotated[Path | None, typer.Option(help="A prepared dataset folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to create.")] = None,
    preset: Annotated[str, typer.Option(help="paper, small or smoke.")] = "paper",
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Only cases with this label or trait."),
    ] = None,
    boxed: Annotated[bool, typer.Option("--boxed", help="Only cases with a box.")] = False,
    also: Annotated[
        list[Path] | None, typer.Option(help="Mix in the training split of this folder too.")
    ] = None,
    synthetic: Annotated[
        list[Path] | None, typer.Option("--with", help="Mix in images of this synthetic folder.")
    ] = None,
    ratio: Annotated[
        list[float] | None,
        typer.Option(min=0.001, help="Synthetic images for each real one, for each --with; 1."),
    ] = None,
    source: Annotated[Path | None, typer.Option(help="The other domain, for refiners.")] = None,
    seed: Seed = 0,
    minutes: Minutes = None,
    device: Device = "auto",
    config: Config = None,
    replaced: Set = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.")] = None,
) -> None:
    """Train a GAN, classifier or detector on the training split of a dataset.

    Example: synthoma train cpggan --preset smoke --data brains --out runs/cpggan
    """
    from synthoma.synthesis import fit
    from synthoma.synthesis.mixture import TrainingData

    if resume is not None:
        only_beside_resume(ctx, "minutes", "device")
        with training(f"train {resume}") as show:
            outcome = fit.resume(resume, minutes=minutes, device=device, progress=show)
        folder = resume
    else:
        if not system or data is None or out is None:
            raise SettingsError("give SYSTEM, --data and --out, or --resume RUN")
        wanted = TrainingData(
            data=data,
            where=read_pairs(where, "--where"),
            boxed=boxed,
            also=tuple(also or ()),
            synthetic=read_mixed(synthetic or [], ratio or []),
            source=source,
        )
        with training(f"train {system}") as show:
            outcome = fit.fit(
                system,
                out,
                wanted,
                preset=preset,
                overrides=read_settings(config, replaced),
                seed=seed,
                minutes=minutes,
                device=device,
                progress=show,
            )
        folder = out
    if outcome.stopped == "signal":
        print(f"stopped at step {outcome.step}; synthoma train --resume {folder}", file=sys.stderr)
        raise typer.Exit(130)
    if outcome.stopped == "minutes":
        say(f"time is up at step {outcome.step}; synthoma train --resume {folder}")
    else:
        say(f"{folder}: {outcome.step} steps")


@app.command()
def sample(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of trained GANs, one a class.")],
    out: Out,
    n: Annotated[int, typer.Option(min=1, help="Images to draw from each run.")] = 64,
    seed: Annotated[int, typer.Option(help="Same run and seed: same images.")] = 0,
    given: Annotated[
        Path | None,
        typer.Option(help="Order the boxes of this folder's training split (or all) as they are."),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="Y0,X0,Y1,X1", help="Order this box, in shares of the side."),
    ] = None,
    onto: Annotated[
        Path | None,
        typer.Option(help="Paint into the training split of this folder, or all of it."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Order this class of GANs that are told one; else all, as in training."),
    ] = None,
    nodules: Annotated[
        Path | None,
        typer.Option(
            help="CSV of nodules to add to the scans of --onto: columns scan, z, y, x, "
            "diameter_mm, attenuation. Without it mcgan draws their own nodules anew."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Draw labelled images from trained GANs into a dataset folder.

    Example: synthoma sample runs/cpggan --n 2000 --out synthetic

    mcgan draws nodules into volumes: --onto SCANS, and --nodules TABLE to add some.
    """
    from synthoma.data.dataset import Dataset
    from synthoma.synthesis.draw import draw

    def training_cases(folder: Path | None) -> Dataset | None:
        whole = Dataset.open(folder) if folder is not None else None
        return whole.split("train") if whole is not None and whole.splits.get("train") else whole

    if len(runs) == 1 and draws_nodules(runs[0]):
        if onto is None or given is not None or box or label is not None:
            raise SettingsError("nodules are drawn into scans: give --onto, and no other order")
        from synthoma.synthesis.place import place, read_orders

        scans = training_cases(onto)
        assert scans is not None
        with progress("sample") as tell:
            drawn = place(
                runs[0],
                scans,
                out,
                n=n,
                seed=seed,
                orders=read_orders(nodules, scans) if nodules is not None else None,
                device=device,
                progress=lambda done, of: tell(done, of, ""),
            )
        say(f"{len(drawn)} volumes with drawn nodules in {out}")
        say(left_out(drawn))
        return
    if nodules is not None:
        raise SettingsError("--nodules goes with one run of mcgan")
    with progress("sample") as tell:
        drawn = draw(
            runs,
            out,
            n=n,
            seed=seed,
            given=training_cases(given),
            boxes=[read_box(text) for text in box or []],
            onto=training_cases(onto),
            label=label,
            workers=workers or os.cpu_count() or 1,
            device=device,
            progress=lambda done, of: tell(done, of, ""),
        )
    say(f"{len(drawn)} synthetic images in {out}")
    say(left_out(drawn))


def left_out(drawn: "Dataset") -> str:
    """What the copy check of a drawn set left out."""
    found = drawn.about["copy_check"]
    what = "nodules" if found["region"] == "nodules" else "images"
    return (
        f"{found['n_copies']} copies of training {what} left out; compared with "
        f"{found['compared_with']}, a copy is nearer than {found['threshold']:g}"
    )


def draws_nodules(run: Path) -> bool:
    """Whether a run folder is of a generator of nodules in volumes."""
    from synthoma.data.store import read_json
    from synthoma.zoo import load_entry

    facts = run / "run.json"
    name = read_json(facts)["name"] if facts.is_file() else ""
    return "traits" in getattr(load_entry(name).system, "conditions", ()) if name else False


def read_mixed(folders: list[Path], ratios: list[float]) -> "tuple[Mixed, ...]":
    """Each synthetic folder with its ratio."""
    from synthoma.synthesis.mixture import Mixed

    if len(ratios) not in (0, len(folders)):
        raise SettingsError(f"{len(ratios)} --ratio for {len(folders)} --with; give one for each")
    pairs = zip(folders, ratios or [1.0] * len(folders), strict=True)
    return tuple(Mixed(folder=folder, ratio=ratio) for folder, ratio in pairs)


def read_box(text: str) -> list[float]:
    """Four numbers between commas."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise SettingsError(f"--box {text}: allowed: four numbers, as 0.2,0.3,0.4,0.5")
    return numbers


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained detector or classifier.")],
    data: Annotated[Path, typer.Option(help="A prepared dataset folder.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Judge a trained detector or classifier on a split, with intervals over patients."""
    from synthoma.data.dataset import Dataset
    from synthoma.engine.run import Run
    from synthoma.engine.system import Classifier, Detector
    from synthoma.studies.classification import judge_classifier
    from synthoma.studies.detection import judge_run
    from synthoma.studies.detection3d import judge_scans
    from synthoma.zoo import load_entry

    name = Run.open(run).facts["name"]
    system = load_entry(name).system
    if not (isinstance(system, type) and issubclass(system, (Classifier, Detector))):
        raise SettingsError(
            f"{run}: {name} is neither a detector nor a classifier, which evaluate judges"
        )
    classifies = issubclass(system, Classifier)
    volumes = Dataset.open(data).about["dimensions"] == 3
    judge = judge_classifier if classifies else judge_scans if volumes else judge_run
    for line in judge(run, data, split=split, seed=seed):
        say(line)


@app.command()
def zoo() -> None:
    """What there is to train."""
    from synthoma.zoo import SYSTEMS, load_entry

    for name in SYSTEMS:
        entry = load_entry(name)
        say(f"{name:12} {entry.about}")
        say(f"{'':12} presets: {', '.join(entry.presets)}")


@app.command("config")
def show_config(
    name: Annotated[str, typer.Argument(help="A system, a format, prepare, clusters or chest.")],
    preset: Annotated[str, typer.Option(help="paper, small or smoke.")] = "paper",
) -> None:
    """Print the full settings of a system as YAML, each with what it means."""
    from synthoma.data.prepare import Prepare
    from synthoma.formats import FORMATS, load_format
    from synthoma.phantoms.chest import ChestConfig
    from synthoma.settings import describe
    from synthoma.synthesis.clusters import ClusterSettings
    from synthoma.zoo import load_entry

    others = {"prepare": Prepare, "clusters": ClusterSettings, "chest": ChestConfig}
    if name in others or name in FORMATS:
        own = others[name]() if name in others else load_format(name).Settings()
        say("\n".join([f"{name}:", *describe(own, "  ")]))
        return
    presets = load_entry(name).presets
    if preset not in presets:
        raise SettingsError(f"{name} has no preset {preset!r}; allowed: {', '.join(presets)}")
    chosen = presets[preset]
    parts = ["system:", *describe(chosen.system, "  "), "train:", *describe(chosen.train, "  ")]
    say("\n".join(parts))


@app.command()
def doctor() -> None:
    """Versions, devices, and what would not be reproducible here."""
    from synthoma.doctor import examine

    for line in examine():
        say(line)


for verb in (paste, refine, label, curate, privacy, augment, demo, study):
    app.command()(verb)


if __name__ == "__main__":
    main()
