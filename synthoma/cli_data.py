"""The verbs of `synthoma data`: files to dataset folders and back."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from synthoma.console import progress, say
from synthoma.errors import SettingsError
from synthoma.options import Config, Out, Seed, Set, read_pairs, read_settings

data_app = typer.Typer(help="Files to dataset folders and back.", no_args_is_help=True)


@data_app.command("import")
def data_import(
    source: Annotated[Path, typer.Argument(help="A file or folder, as the format wants it.")],
    out: Out,
    format: Annotated[
        str,
        typer.Option(
            help="csv, folder, coco, yolo, voc, nifti, dicom, lidc, luna, brats or medmnist."
        ),
    ],
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
            mapping=read_pairs(mapping, "--map", "NAME=COLUMN"),
            patient_block=patient_block,
            patient_pattern=patient_pattern,
            drop_duplicates=drop_duplicates,
            progress=lambda i, n: tell(i, n, ""),
        )
    for message in done.errors:
        print(f"left out: {message}", file=sys.stderr)
    boxes = f"{done.n_boxes} boxes" if done.n_boxed else "boxes not annotated"
    say(f"{done.n_cases} cases, {boxes}, {done.n_patients} patients in {out}")
    if without := done.n_cases - done.n_labelled:
        say(f"{without} of {done.n_cases} cases {'has' if without == 1 else 'have'} no label")
    for hint in done.hints:
        say(f"noted: {hint}")
    say(f"patients: {done.patients_from}; splits: {done.splits_from}")
    for what, counts in (("left out", done.dropped), ("noted", done.noted)):
        for reason, n in counts.items():
            say(f"{what}: {n} ({reason})")


@data_app.command("export")
def data_export(
    folder: Annotated[Path, typer.Argument(help="A dataset folder.")],
    out: Out,
    format: Annotated[
        str, typer.Option(help="csv, folder, coco, yolo, voc, nifti, dicom or medmnist.")
    ],
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
    ctx: typer.Context,
    out: Out,
    anatomy: Annotated[
        Literal["brain", "chest"],
        typer.Option(help="brain: slices with metastases; chest: CT volumes with nodules."),
    ] = "brain",
    patients: Annotated[int, typer.Option(min=1)] = 40,
    slices: Annotated[int, typer.Option(min=1, help="brain: of each patient.")] = 8,
    side_px: Annotated[int, typer.Option(min=32, max=1024, help="brain.")] = 128,
    lesions_max: Annotated[int, typer.Option(min=0, help="brain; 0: tumour-free.")] = 5,
    seed: Seed = 0,
    config: Config = None,
    replaced: Set = None,
) -> None:
    """Make a dataset from nothing, whose boxes are known: brain slices or chest CTs.

    Settings of a chest: `synthoma config chest`, and --set chest.FIELD=VALUE.
    """
    if anatomy == "chest":
        _make_chests(ctx, out, patients, seed, read_settings(config, replaced))
        return
    if config is not None or replaced:
        raise SettingsError("--config and --set are of --anatomy chest; brains have the options")
    from synthoma.phantoms.brain import BrainConfig
    from synthoma.phantoms.folder import write_brains

    brain = BrainConfig(
        side_px=side_px, patients=patients, slices_per_patient=slices, lesions_max=lesions_max
    )
    with progress("draw phantom brains") as tell:
        made = write_brains(out, brain, seed=seed, progress=lambda i, n: tell(i, n, ""))
    say(f"{len(made)} slices of {patients} phantoms in {out}")


def _make_chests(
    ctx: typer.Context, out: Path, patients: int, seed: int, settings: dict[str, dict[str, Any]]
) -> None:
    from synthoma.phantoms.chest import ChestConfig
    from synthoma.phantoms.folder import write_chests
    from synthoma.settings import replaced as replaced_settings

    for name in ("slices", "side_px", "lesions_max"):
        given = ctx.get_parameter_source(name)
        if given is not None and given.name == "COMMANDLINE":
            raise SettingsError(
                f"--{name.replace('_', '-')} is of brains; allowed: --set chest.FIELD=VALUE, "
                f"with {', '.join(ChestConfig.model_fields)}"
            )
    if wrong := set(settings) - {"chest"}:
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: chest.FIELD")
    fields = {"patients": patients} | settings.get("chest", {})
    chest = replaced_settings(ChestConfig(), fields, "chest")
    with progress("draw phantom chests") as tell:
        made = write_chests(out, chest, seed=seed, progress=lambda i, n: tell(i, n, ""))
    boxes = sum(len(made.boxes(i)) for i in range(len(made)))
    say(f"{len(made)} chests with {boxes} nodules in {out}")


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

    from synthoma.data.contents import describe
    from synthoma.data.dataset import Dataset
    from synthoma.data.sheet import contact_sheet, draw_boxes, to_bytes, write_png

    dataset = Dataset.open(folder)
    about = dataset.about
    for line in describe(dataset):
        say(line)
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
        values, boxes, classes = chosen.values(i), chosen.boxes(i), chosen.box_classes(i)
        if values.ndim == 4:  # a volume: the boxes that its middle slice cuts
            middle = values.shape[1] // 2
            cut = (boxes[:, 0] <= middle) & (boxes[:, 3] > middle)
            boxes, classes = boxes[cut][:, [1, 2, 4, 5]], classes[cut]
        grey = to_bytes(values, about["value_range"])
        tiles.append(draw_boxes(grey, boxes, side_px=side_px, classes=list(classes)))
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


@data_app.command("cubes")
def data_cubes(
    folder: Annotated[Path, typer.Argument(help="A dataset folder of volumes with nodules.")],
    out: Out,
    side_px: Annotated[int, typer.Option(min=8, help="Side of the cubes, in voxels.")] = 64,
    window_hu: Annotated[
        tuple[float, float], typer.Option(help="HU that become black and white.")
    ] = (-1000, 400),
) -> None:
    """Cut a cube around every nodule of known size and attenuation, for mcgan.

    A nodule's box fills the middle half of its cube, whatever its sides were.
    """
    from synthoma.data.dataset import Dataset
    from synthoma.data.vois import cut_all

    with progress("cut") as tell:
        made = cut_all(
            Dataset.open(folder),
            out,
            side_px=side_px,
            window_hu=window_hu,
            progress=lambda i, n: tell(i, n, ""),
        )
    say(f"{len(made)} cubes of {side_px} voxels in {out}")
    for reason, dropped in made.about["dropped"].items():
        say(f"left out: {dropped['n']} ({reason}), such as {dropped['for_example'][0]}")


@data_app.command("prepare")
def data_prepare(
    folder: Annotated[Path, typer.Argument(help="A dataset folder.")],
    out: Out,
    side_px: Annotated[int, typer.Option(min=8, help="Side of the square images.")] = 256,
    labelled: Annotated[
        bool, typer.Option("--labelled", help="Leave out cases without a label.")
    ] = False,
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
        source = Dataset.open(folder)
        done = prepare(source, out, chosen, lambda i, n: tell(i, n, ""), labelled=labelled)
    say(f"{len(done)} cases of {chosen.side_px} px in {out}")
    for reason, dropped in done.about["dropped"].items():
        say(f"left out: {dropped['n']} ({reason}), such as {dropped['for_example'][0]}")
