"""The command line: one verb a stage. What a verb needs is imported inside it.

Exit codes: 0 done, 1 failed (a training that diverged), 2 usage or settings, 3 data, 4 resources,
130 interrupted.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from synthoma import __version__
from synthoma.console import progress, say, training
from synthoma.errors import SettingsError, SynthomaError

app = typer.Typer(
    name="synthoma",
    help="From few annotated medical images to synthetic pathology, and a proof of its worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Files to dataset folders and back.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Out = Annotated[Path, typer.Option(help="Folder to create; nothing is ever overwritten.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PART.FIELD=VALUE", help="Replace a setting; repeatable."),
]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings, before --set.")]
Minutes = Annotated[
    float | None, typer.Option(min=0.01, help="Stop at a checkpoint after this long.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]


def main() -> None:
    """Run the command line; errors made for people are printed without a traceback."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except SynthomaError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except (MemoryError, OSError) as error:
        if debug:
            raise
        print(f"error: {error or 'out of memory'}", file=sys.stderr)
        sys.exit(4)


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """From few annotated medical images to synthetic pathology, and a proof of its worth."""
    if version:
        say(__version__)
        raise typer.Exit


def read_settings(config: Path | None, replaced: list[str] | None) -> dict[str, dict[str, Any]]:
    """Settings by part and field, from a YAML file and ``part.field=value`` arguments."""
    import yaml

    settings: dict[str, dict[str, Any]] = {}
    if config is not None:
        try:
            read = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"{config}: {error}") from None
        if not isinstance(read, dict) or not all(isinstance(v, dict) for v in read.values()):
            raise SettingsError(f"{config}: allowed: parts (system:, train:) with fields below")
        settings = read
    for item in replaced or []:
        path, equals, value = item.partition("=")
        part, dot, field = path.partition(".")
        if not equals or not dot:
            raise SettingsError(f"--set {item}: allowed: PART.FIELD=VALUE, as train.steps=100")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:  # such as a pattern that begins with a star
            parsed = value
        inner = settings.setdefault(part, {})
        *outer, last = field.split(".")
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = parsed
    return settings


def read_pairs(items: list[str] | None, option: str) -> dict[str, str]:
    """A dict from ``name=value`` arguments."""
    pairs = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise SettingsError(f"{option} {item}: allowed: {option} NAME=VALUE")
        pairs[name] = value
    return pairs


@data_app.command("import")
def data_import(
    source: Annotated[Path, typer.Argument(help="A file or folder, as the format wants it.")],
    out: Out,
    format: Annotated[str, typer.Option(help="csv, folder, coco, yolo, voc or nifti.")],
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="NAME=COLUMN", help="csv: where a column has another name."),
    ] = None,
    patient_block: Annotated[
        int | None, typer.Option(min=1, help="N consecutive ids are one patient.")
    ] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression that finds the patient in a path.")
    ] = None,
    drop_duplicates: Annotated[
        bool, typer.Option(help="Leave out images that an earlier patient has too.")
    ] = False,
    config: Config = None,
    replaced: Set = None,
) -> None:
    """Read annotated files into a dataset folder.

    A file that cannot be read is named and left out; the rest is imported. Settings of a format:
    `synthoma config FORMAT`, and --set FORMAT.FIELD=VALUE.
    """
    from synthoma.formats import load_format
    from synthoma.formats.convert import import_dataset
    from synthoma.settings import replaced as replaced_settings

    settings = read_settings(config, replaced)
    if wrong := set(settings) - {format}:
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: {format}.FIELD")
    own = replaced_settings(load_format(format).Settings(), settings.get(format, {}), format)
    with progress("import") as tell:
        done = import_dataset(
            source,
            out,
            format=format,
            settings=own,
            mapping=read_pairs(mapping, "--map"),
            patient_block=patient_block,
            patient_pattern=patient_pattern,
            drop_duplicates=drop_duplicates,
            progress=lambda i, n: tell(i, n, ""),
        )
    for message in done.errors:
        print(f"left out: {message}", file=sys.stderr)
    say(f"{done.n_cases} cases, {done.n_boxes} boxes, {done.n_patients} patients in {out}")
    say(f"patients: {done.patients_from}; splits: {done.splits_from}")
    for what, counts in (("left out", done.dropped), ("noted", done.noted)):
        for reason, n in counts.items():
            say(f"{what}: {n} ({reason})")


@data_app.command("export")
def data_export(
    folder: Annotated[Path, typer.Argument(help="A dataset folder.")],
    out: Out,
    format: Annotated[str, typer.Option(help="csv, folder, coco, yolo, voc or nifti.")],
) -> None:
    """Write a dataset folder as files that other programs read; synthetic ones say so."""
    from synthoma.data.dataset import Dataset
    from synthoma.formats.convert import export_dataset

    done = export_dataset(Dataset.open(folder), out, format=format)
    say(f"{done.n_cases} cases ({done.n_synthetic} synthetic) in {out}")
    for reason, n in done.noted.items():
        say(f"noted: {n} ({reason})")


@data_app.command("phantoms")
def data_phantoms(
    out: Out,
    patients: Annotated[int, typer.Option(min=1)] = 40,
    slices: Annotated[int, typer.Option(min=1, help="Of each patient.")] = 8,
    side_px: Annotated[int, typer.Option(min=32, max=1024)] = 128,
    lesions_max: Annotated[int, typer.Option(min=0, help="0: tumour-free brains.")] = 5,
    seed: int = 0,
) -> None:
    """Make a dataset from nothing: brain slices with metastases whose boxes are known."""
    from synthoma.phantoms.brain import BrainConfig
    from synthoma.phantoms.folder import write_brains

    config = BrainConfig(
        side_px=side_px, patients=patients, slices_per_patient=slices, lesions_max=lesions_max
    )
    with progress("draw phantom brains") as tell:
        made = write_brains(out, config, seed=seed, progress=lambda i, n: tell(i, n, ""))
    say(f"{len(made)} slices of {patients} phantoms in {out}")


@data_app.command("show")
def data_show(
    folder: Annotated[Path, typer.Argument(help="A dataset folder.")],
    out: Annotated[Path | None, typer.Option(help="PNG to write a contact sheet to.")] = None,
    split: Annotated[str, typer.Option(help="Only this split.")] = "",
    n: Annotated[int, typer.Option(min=1, max=1024)] = 48,
    side_px: Annotated[int, typer.Option(min=16, max=1024, help="Of one tile.")] = 128,
    seed: Annotated[int, typer.Option(help="Which cases are picked.")] = 0,
) -> None:
    """Say what a dataset folder holds; with --out, draw some of its cases with their boxes."""
    import numpy as np

    from synthoma.data.dataset import Dataset
    from synthoma.data.sheet import contact_sheet, draw_boxes, to_bytes, write_png

    dataset = Dataset.open(folder)
    about = dataset.about
    say(f"{about['n_cases']} cases ({about['n_synthetic']} synthetic), {about['dimensions']}D")
    say(f"{about['n_patients']} patients ({about['patients_from']})")
    for name, patients in dataset.splits.items():
        cases = dataset.of_patients(set(patients))
        n_boxes = sum(len(cases.boxes(i)) for i in range(len(cases)))
        say(f"  {name}: {len(patients)} patients, {len(cases)} cases, {n_boxes} boxes")
    say(f"labels: {', '.join(about['labels']) or 'none'}")
    say(f"box labels: {', '.join(about['box_labels']) or 'none'}")
    for reason, dropped in about["dropped"].items():
        say(f"left out: {dropped['n']} ({reason}), such as {dropped['for_example'][0]}")
    if out is None:
        return
    if out.exists():
        raise SettingsError(f"{out} exists already; nothing is overwritten: give another --out")
    chosen = dataset.split(split) if split else dataset
    picked = np.random.default_rng(seed).permutation(len(chosen))[:n]
    tiles = []
    for i in sorted(int(k) for k in picked):
        values, boxes = chosen.values(i), chosen.boxes(i)
        if values.ndim == 4:  # a volume: the boxes that its middle slice cuts
            middle = values.shape[1] // 2
            boxes = boxes[(boxes[:, 0] <= middle) & (boxes[:, 3] > middle)][:, [1, 2, 4, 5]]
        grey = to_bytes(values, about["value_range"])
        tiles.append(draw_boxes(grey, boxes, side_px=side_px, classes=list(chosen.box_classes(i))))
    synthetic = {"Synthetic": "yes"} if about["n_synthetic"] else {}
    write_png(out, contact_sheet(tiles), synthetic)
    say(f"{len(tiles)} of them in {out}")


@data_app.command("split")
def data_split(
    folder: Annotated[Path, typer.Argument(help="A dataset folder.")],
    out: Out,
    seed: Annotated[int, typer.Option(help="Another seed, another split.")] = 0,
    shares: Annotated[
        tuple[float, float, float], typer.Option(help="Of training, validation and test.")
    ] = (0.7, 0.1, 0.2),
) -> None:
    """Split a dataset anew, by patient; the image files are shared, not copied."""
    from synthoma.data.dataset import Dataset, resplit
    from synthoma.data.split import split_patients

    dataset = Dataset.open(folder)
    splits = split_patients(dataset.patients, seed=seed, shares=shares)
    resplit(dataset, out, splits)
    say(", ".join(f"{name}: {len(ids)} patients" for name, ids in splits.items()))


@data_app.command("prepare")
def data_prepare(
    folder: Annotated[Path, typer.Argument(help="A dataset folder.")],
    out: Out,
    side_px: Annotated[int, typer.Option(min=8, help="Side of the square images.")] = 256,
    config: Config = None,
    replaced: Set = None,
) -> None:
    """Make images square, 8 bits and of one intensity scale, ready to train on.

    Further settings: `synthoma config prepare`, and --set prepare.FIELD=VALUE.
    """
    from synthoma.data.dataset import Dataset
    from synthoma.data.prepare import Prepare, prepare
    from synthoma.settings import replaced as replaced_settings

    settings = read_settings(config, replaced)
    if set(settings) - {"prepare"}:
        raise SettingsError(f"no settings {sorted(settings)}; allowed: prepare.FIELD")
    fields = {"side_px": side_px} | settings.get("prepare", {})
    chosen = replaced_settings(Prepare(), fields, "prepare")
    with progress("prepare") as tell:
        done = prepare(Dataset.open(folder), out, chosen, lambda i, n: tell(i, n, ""))
    say(f"{len(done)} cases of {chosen.side_px} px in {out}")
    for reason, dropped in done.about["dropped"].items():
        say(f"left out: {dropped['n']} ({reason}), such as {dropped['for_example'][0]}")


@app.command()
def train(
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
        Path | None, typer.Option("--with", help="Mix in images of this synthetic folder.")
    ] = None,
    ratio: Annotated[float, typer.Option(help="Synthetic images for each real one.")] = 1.0,
    source: Annotated[Path | None, typer.Option(help="The other domain, for refiners.")] = None,
    seed: int = 0,
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

    if resume is not None:
        if system or data or out:
            raise SettingsError("--resume goes alone: the run folder knows the rest")
        with training(f"train {resume}") as show:
            outcome = fit.resume(resume, minutes=minutes, device=device, progress=show)
        folder = resume
    else:
        if not system or data is None or out is None:
            raise SettingsError("give SYSTEM, --data and --out, or --resume RUN")
        wanted = fit.TrainingData(
            data=data,
            where=read_pairs(where, "--where"),
            boxed=boxed,
            also=tuple(also or ()),
            synthetic=synthetic,
            ratio=ratio,
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
        Path | None, typer.Option(help="Dataset folder whose boxes are ordered as they are.")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="Y0,X0,Y1,X1", help="Order this box, in shares of the side."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Draw labelled images from trained GANs into a dataset folder.

    Example: synthoma sample runs/cpggan --n 2000 --out synthetic
    """
    from synthoma.data.dataset import Dataset
    from synthoma.synthesis.draw import draw

    with progress("sample") as tell:
        drawn = draw(
            runs,
            out,
            n=n,
            seed=seed,
            given=Dataset.open(given) if given is not None else None,
            boxes=[read_box(text) for text in box or []],
            workers=workers or os.cpu_count() or 1,
            device=device,
            progress=lambda done, of: tell(done, of, ""),
        )
    say(f"{len(drawn)} synthetic images in {out}")


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
    run: Annotated[Path, typer.Argument(help="Run folder of a trained detector.")],
    data: Annotated[Path, typer.Option(help="A prepared dataset folder.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Judge a trained detector on a split, with intervals over patients."""
    from synthoma.studies.detection import judge_run

    for line in judge_run(run, data, split=split, seed=seed):
        say(line)


@app.command()
def augment(
    dataset: Annotated[Path | None, typer.Argument(help="A dataset folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to create.")] = None,
    task: Annotated[str, typer.Option(help="detect.")] = "detect",
    scale: Annotated[str, typer.Option(help="paper, small or smoke.")] = "paper",
    also: Annotated[
        list[Path] | None, typer.Option(help="Tumour-free slices for the generator alone.")
    ] = None,
    seed: int = 0,
    minutes: Minutes = None,
    device: Device = "auto",
    config: Config = None,
    replaced: Set = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this study folder.")] = None,
) -> None:
    """Does synthetic data help here? Train the generator and detectors, and print one table.

    Example: synthoma augment brains --task detect --scale smoke --out runs/does-it-help
    """
    from synthoma.studies import augment as study

    if task != "detect":
        raise SettingsError(f"--task {task}; allowed: detect")
    if resume is not None:
        if dataset or out:
            raise SettingsError("--resume goes alone: the study folder knows the rest")
        folder = resume
    else:
        if dataset is None or out is None:
            raise SettingsError("give DATASET and --out, or --resume STUDY")
        folder = out
        if out.exists():
            raise SettingsError(
                f"{out} exists already; nothing is overwritten: give another --out, or continue it "
                f"with --resume {out}"
            )
        settings = read_settings(config, replaced)
        wanted = study.settings_for(
            dataset, scale=scale, also=also or [], seed=seed, overrides=settings
        )
        out.mkdir(parents=True)
        study.begin(out, wanted)
    if not study.go_on(folder, minutes=minutes, device=device):
        say(f"time is up; synthoma augment --resume {folder}")


@app.command()
def demo(
    out: Out = Path("demo"),
    seed: int = 0,
) -> None:
    """The whole chain on embedded phantoms, in minutes on a CPU.

    Phantom brains -> a box-conditioned GAN -> labelled synthetic slices -> detectors with and
    without them -> OUT/report.html.
    """
    from synthoma.studies import augment as study

    study.demo(out, seed=seed)


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
    name: Annotated[str, typer.Argument(help="A system, a format, or prepare.")],
    preset: Annotated[str, typer.Option(help="paper, small or smoke.")] = "paper",
) -> None:
    """Print the full settings of a system as YAML, each with what it means."""
    from synthoma.data.prepare import Prepare
    from synthoma.formats import FORMATS, load_format
    from synthoma.settings import describe
    from synthoma.zoo import load_entry

    if name == "prepare" or name in FORMATS:
        own = Prepare() if name == "prepare" else load_format(name).Settings()
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


if __name__ == "__main__":
    main()
