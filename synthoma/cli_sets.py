"""The verbs on synthetic sets: cut and paste, refine, curate, look for copies of patients."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthoma.console import progress, say, training
from synthoma.errors import DataError, SettingsError
from synthoma.options import Config, Device, Out, Seed, Set, read_pairs, read_settings

if TYPE_CHECKING:
    from synthoma.data.dataset import Dataset
    from synthoma.synthesis.curate import Decisions

#: Copies that are named before the rest is counted.
NAMED = 5


def paste(
    dataset: Annotated[Path, typer.Argument(help="A prepared dataset folder with boxes.")],
    out: Out,
    n: Annotated[int, typer.Option(min=1, help="Images to make.")] = 64,
    onto: Annotated[
        Path | None,
        typer.Option(help="Paste into the training split of this folder, such as normal slices."),
    ] = None,
    seed: Seed = 0,
    config: Config = None,
    replaced: Set = None,
) -> None:
    """Cut lesions out of training slices and paste them into others: the rival of every GAN.

    Example: synthoma paste brains --n 2000 --out pasted
    """
    from synthoma.data.dataset import Dataset
    from synthoma.settings import replaced as replaced_settings
    from synthoma.synthesis.paste import PASTE
    from synthoma.synthesis.paste import paste as paste_lesions

    settings = read_settings(config, replaced)
    if wrong := set(settings) - {"paste"}:
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: paste.FIELD")
    own = replaced_settings(PASTE, settings.get("paste", {}), "paste")
    with progress("paste") as tell:
        made = paste_lesions(
            Dataset.open(dataset).split("train"),
            out,
            n=n,
            seed=seed,
            onto=Dataset.open(onto).split("train") if onto is not None else None,
            settings=own,
            progress=lambda done, of: tell(done, of, ""),
        )
    say(f"{len(made)} images with pasted lesions in {out}")


def refine(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained refiner.")],
    data: Annotated[
        Path, typer.Option(help="Images to refine: the training split of this folder.")
    ],
    out: Out,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Only cases with this label or trait."),
    ] = None,
    step: Annotated[
        list[int] | None,
        typer.Option(help="Refine with the checkpoint of this step; several with --pick."),
    ] = None,
    pick: Annotated[
        str,
        typer.Option(
            metavar="PRESET",
            help="Refine with each checkpoint that was kept, train the classifier of this preset "
            "on real and refined images, and keep the best in validation. Goes on with OUT-tries.",
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Same run and seed: same images.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    config: Config = None,
    replaced: Set = None,
) -> None:
    """Make synthetic images look real with a trained refiner; labels and boxes stay.

    Example: synthoma refine runs/simgan --data synthetic --out refined

    --config and --set are the classifier's, with --pick.
    """
    from synthoma.data.dataset import Dataset
    from synthoma.synthesis.pick import refine_best
    from synthoma.synthesis.refine import refine as refine_images

    if not pick and (config is not None or replaced or len(step or []) > 1):
        raise SettingsError("--config, --set and several --step go with --pick")
    chosen = Dataset.open(data).split("train")
    chosen = chosen.where(**read_pairs(where, "--where")) if where else chosen
    threads = workers or os.cpu_count() or 1
    if pick:
        with training("refine and classify") as show:
            made = refine_best(
                run,
                chosen,
                out,
                out.with_name(f"{out.name}-tries"),
                preset=pick,
                overrides=read_settings(config, replaced),
                steps=step or (),
                seed=seed,
                workers=threads,
                device=device,
                progress=show,
            )
        assert made is not None, "without minutes it finishes"
        picked = made.about["refined"]["picked"]
        for tried, accuracy in picked["accuracy"].items():
            say(f"step {tried}: validation accuracy {accuracy:.4g}")
    else:
        with progress("refine") as tell:
            made = refine_images(
                run,
                chosen,
                out,
                step=step[0] if step else None,
                seed=seed,
                workers=threads,
                device=device,
                progress=lambda done, of: tell(done, of, ""),
            )
    done = made.about["refined"]
    say(
        f"{len(made)} refined images in {out}: mean distance {done['distance']:g}, shape kept "
        f"{done['shape']:g}, new texture {done['texture']:g}"
    )


def label(
    dataset: Annotated[Path, typer.Argument(help="A prepared dataset folder, such as of slices.")],
    by: Annotated[Path, typer.Option(help="Run folder of a trained classifier.")],
    out: Out,
    sure: Annotated[
        float, typer.Option(help="Least probability of a label; other cases are left out.")
    ] = 0.9,
    keep: Annotated[
        str, typer.Option(metavar="LABEL", help="Keep cases of this label alone, guessed or known.")
    ] = "",
    device: Device = "auto",
) -> None:
    """Let a classifier label the cases without a label, or leave out where it is not sure.

    Example: synthoma label slices --by runs/classifier --keep tumour --out with-tumour
    """
    from synthoma.data.dataset import Dataset
    from synthoma.synthesis.label import label as give_labels

    with progress("label") as tell:
        made = give_labels(
            Dataset.open(dataset),
            by,
            out,
            sure=sure,
            keep=keep,
            device=device,
            progress=lambda done, of: tell(done, of, ""),
        )
    told = made.about["labelled"]
    counts = ", ".join(f"{n} {name}" for name, n in told["given"].items()) or "none"
    say(f"{told['asked']} cases had no label; the classifier was sure of {counts}")
    say(f"{len(made)} cases in {out}")


def curate(
    dataset: Annotated[Path, typer.Argument(help="A synthetic dataset folder.")],
    out: Out,
    clusters: Annotated[
        Path | None,
        typer.Option(
            help="Folder of clusters: sheets to look at, and a table to change. With --real it is "
            "made, and what it proposes is kept; without, what its table says now."
        ),
    ] = None,
    detector: Annotated[
        Path | None, typer.Option(help="Run folder of a detector, trained on real images.")
    ] = None,
    decisions: Annotated[
        Path | None, typer.Option(help="CSV with columns case_id and keep (yes or no).")
    ] = None,
    write_decisions: Annotated[
        Path | None,
        typer.Option(help="Write what was decided on each image here, for --decisions."),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(
            help="With --clusters: propose to drop clusters far from the training images of this "
            "folder. With --detector: refuse the set unless it finds half as many lesions in it as "
            "in this folder's validation split."
        ),
    ] = None,
    device: Device = "auto",
    config: Config = None,
    replaced: Set = None,
) -> None:
    """Keep the synthetic images that look real in clusters, whose lesion a detector finds, or that
    a person chose.

    Example: synthoma curate synthetic --clusters look --real brains --out curated

    Settings of clusters: `synthoma config clusters`, and --set clusters.FIELD=VALUE.
    """
    from synthoma.data.dataset import Dataset
    from synthoma.data.store import refuse_existing
    from synthoma.synthesis import curate as curation
    from synthoma.synthesis.clusters import nothing_dropped

    if sum(rule is not None for rule in (clusters, detector, decisions)) != 1:
        raise SettingsError(
            "give one of --clusters FOLDER, --detector RUN and --decisions FILE.csv"
        )
    if decisions is not None and (write_decisions is not None or real is not None):
        raise SettingsError("--write-decisions and --real go with --clusters or --detector")
    if (config is not None or replaced) and (clusters is None or real is None):
        raise SettingsError("--config and --set go with --clusters and --real")
    for path in (out, write_decisions):
        if path is not None:  # before anything slow
            refuse_existing(path)
    drawn = Dataset.open(dataset)
    if decisions is not None:
        made = curation.read_decisions(decisions)
    elif clusters is not None:
        made = by_clusters(drawn, clusters, real, device, read_settings(config, replaced))
    elif detector is not None:
        with progress("curate") as tell:
            made = curation.judge(
                detector, drawn, device=device, progress=lambda done, of: tell(done, of, "")
            )
    if write_decisions is not None:
        curation.write_decisions(made, write_decisions)
    if detector is not None and real is not None:
        known = curation.judge(detector, Dataset.open(real).split("validation"), device=device)
        verdict = curation.gate(made, known)
        if not verdict.admitted:
            raise DataError(f"{dataset}: {verdict.reason}")
        say(verdict.reason)
    kept = curation.curate(drawn, made, out)
    say(f"{len(kept)} of {len(drawn)} images kept in {out}")
    if clusters is not None and nothing_dropped(made):
        say(
            "the rule (clusters.most) dropped nothing, which approves nothing: a person should "
            f"look at {clusters / 'index.png'}"
        )


def by_clusters(
    drawn: "Dataset",
    folder: Path,
    real: Path | None,
    device: str,
    settings: dict[str, dict[str, Any]],
) -> "Decisions":
    """What a folder of clusters says of each image; it is made where a real folder is given.

    Raises:
        DataError: It keeps no image, or cannot be read or made.
    """
    from synthoma.data.dataset import Dataset
    from synthoma.settings import replaced as replaced_settings
    from synthoma.synthesis.clusters import (
        ClusterSettings,
        check_some_kept,
        cluster,
        read_clusters,
    )

    if real is None:
        made = read_clusters(folder, drawn)
        check_some_kept(made, folder)
        return made
    if wrong := set(settings) - {"clusters"}:
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: clusters.FIELD")
    own = replaced_settings(ClusterSettings(), settings.get("clusters", {}), "clusters")
    with progress("clusters") as tell:
        made = cluster(
            drawn,
            Dataset.open(real).split("train"),
            folder,
            own,
            device=device,
            progress=lambda done, of: tell(done, of, ""),
        )
    say(f"look at {folder / 'index.png'}; change keep in {folder / 'clusters.csv'}, then")
    say(f"synthoma curate {drawn.folder} --clusters {folder} --out ANOTHER")
    check_some_kept(made, folder)
    return made


def privacy(
    real: Annotated[Path, typer.Argument(help="The real dataset folder.")],
    synthetic: Annotated[Path, typer.Argument(help="A synthetic dataset folder.")],
    region: Annotated[
        str,
        typer.Option(
            help="image or boxes; by default boxes where lesions were painted into real images."
        ),
    ] = "",
) -> None:
    """Look for synthetic images that are training images in disguise; exit code 3 where there are.

    Compared with the images of those patients whom the generators saw; the other patients of the
    real folder tell how alike honest images are.
    """
    from synthoma.data.case import Synthetic
    from synthoma.data.dataset import Dataset
    from synthoma.synthesis.privacy import Region, check_folder

    patients, drawn = Dataset.open(real), Dataset.open(synthetic)
    if drawn.real_patients:
        n = int((~drawn.index.synthetic).sum())
        raise DataError(
            f"{synthetic}: not a synthetic folder, {n} of its {len(drawn)} cases are of patients; "
            "the order is REAL SYNTH"
        )
    if region not in ("", "image", "boxes"):
        raise SettingsError(f"--region {region}; allowed: image, boxes")
    origin = drawn[0].origin
    painted = isinstance(origin, Synthetic) and "painted" in origin.conditions
    where: Region = "boxes" if region == "boxes" or (painted and not region) else "image"
    saw = {name for names in drawn.generators_saw.values() for name in names}
    seen = patients.of_patients(saw)
    if not len(seen):
        raise DataError(f"{real}: no generator of {synthetic} saw any of its patients")
    others = patients.of_patients(set(patients.patients) - saw)
    with progress("privacy") as tell:
        found = check_folder(
            drawn,
            seen,
            others if len(others) else None,
            where,
            progress=lambda done, of: tell(done, of, ""),
        )
    say(
        f"{len(drawn)} images ({where}) compared with {found['compared_with']} of "
        f"{found['of_patients']} patients"
    )
    if quantiles := found["synthetic"].get("quantiles"):
        said = ", ".join(f"{distance:g} ({float(q):.0%})" for q, distance in quantiles.items())
        say(f"quantiles of the distance: {said}; a copy is below {found['threshold']:g}")
    if found["copies"]:
        named = "; ".join(
            f"{case} of {of} ({distance:g})" for case, of, distance in found["copies"][:NAMED]
        )
        raise DataError(
            f"{synthetic}: {len(found['copies'])} of {len(drawn)} images are copies of training "
            f"images, for example {named}"
        )
    say("no copies found")
