"""Synthetic images in clusters, so that a person judges thousands by looking at some sheets.

    synthetic set, real set -> vectors -> k-means++ -> FOLDER -> Decisions, image by image

    FOLDER/clusters.csv      one row a cluster, the farthest from real images first; a person may
                             change its column keep
    FOLDER/images.csv        one row an image: its cluster, and its own distance
    FOLDER/clusters.json     settings, and whom the choice depends on
    FOLDER/index.png         the images nearest to each centre, a row a cluster
    FOLDER/cluster-000.png   more of them

After Han et al. 2019 (file 002): features of DenseNet-169, k-means++ into 200 clusters, and those
of weird images discarded by eye. Ours: what is proposed before anybody looks. A cluster is proposed
to be dropped where its images are, on average, more than `most` times as far from the real images
as real images are from those of other patients (`vectors.py`).
"""

import csv
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, UInt8
from pydantic import BaseModel, ConfigDict, Field

from synthoma.data.dataset import Dataset
from synthoma.data.sheet import contact_sheet, draw_boxes, titled, to_bytes, write_png
from synthoma.data.store import new_folder, read_json, refuse_existing, write_json
from synthoma.errors import DataError
from synthoma.synthesis.curate import Decision, Decisions, read_answer, read_table, yes
from synthoma.synthesis.fit import pick_device
from synthoma.synthesis.vectors import (
    REFERENCE,
    Extract,
    Look,
    Manifold,
    common_side,
    extractor,
    write_vectors,
)

#: Clusters at most, unless a person wants more (Han et al. 2019), and images a cluster at least.
CLUSTERS, IMAGES = 200, 10
#: Images that one step of k-means sees.
SEEN = 1024
#: Images of a cluster in a row of the index, and sides of its tiles and of those of sheets.
IN_A_ROW, ROW_PX, SHEET_PX = 10, 64, 96
#: Vectors that are in memory at once.
CHUNK = 4096


class ClusterSettings(BaseModel):
    """How a set is divided, and what is proposed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    look: Look = Look()
    number: int | None = Field(
        None,
        ge=2,
        description=f"Clusters. Unset: one for {IMAGES} images, at least 2 and at most {CLUSTERS} "
        "(Han et al. 2019).",
    )
    neighbours: int = Field(
        5, ge=1, description="An image's distance is that to its so many-th nearest real one."
    )
    most: float = Field(
        2.0,
        gt=0,
        description="Clusters with a larger mean distance are proposed to be dropped; 1 is that "
        "of real images to those of other patients.",
    )
    shown: int = Field(48, ge=1, description="Images on the sheet of a cluster.")
    seed: int = Field(0, ge=0, description="Of the first centres.")


@dataclass(frozen=True)
class Cluster:
    """Images that look alike to the network."""

    number: int
    images: int
    distance: float
    """Of its images to real ones, on average; 1 is honest."""
    proposed: bool
    """Whether it was proposed to be kept."""
    keep: bool
    """The same, or what a person made of it."""


def number_for(n: int) -> int:
    """The number of clusters of n images.

    Example:
        >>> [number_for(n) for n in (8, 300, 200_000)]
        [2, 30, 200]
    """
    return max(2, min(CLUSTERS, n // IMAGES))


def cluster(
    dataset: Dataset,
    real: Dataset,
    out: Path,
    settings: ClusterSettings,
    *,
    device: str = "auto",
    extract: Extract | None = None,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Decisions:
    """Write the folder `out` of a synthetic set's clusters, and decide as it proposes.

    In memory are a batch of images, `REFERENCE` real vectors, and about a hundred bytes an image;
    the vectors are in a file beside the sheets, which is removed at the end.

    Args:
        real: Images of the patients that the choice may depend on: the training split.
        extract: Looks at images in place of the network that the settings name.
        progress: Told (images looked at, images of both sets).

    Raises:
        DataError: Images that cannot be looked at or compared, fewer images than clusters, or real
            images in the synthetic set.
    """
    refuse_existing(out)
    if dataset.real_patients:
        raise DataError(f"{dataset.folder}: holds real images; only synthetic ones are curated")
    if real.index.synthetic[real.rows].any():
        raise DataError(f"{real.folder}: holds synthetic images; the real ones are needed")
    number = settings.number or number_for(len(dataset))
    if len(dataset) < number:
        raise DataError(f"{dataset.folder}: {len(dataset)} images for {number} clusters")
    stored_px = common_side(dataset, real)
    where = pick_device(device)
    look = extract or extractor(settings.look, dataset.values(0).shape[0], where)
    if len(real) > REFERENCE:
        chosen = np.random.default_rng(settings.seed).permutation(len(real))[:REFERENCE]
        real = real.take(np.sort(chosen))

    def looked_at(images: Dataset, path: Path, before: int) -> Float32[np.ndarray, "n d"]:
        return write_vectors(
            images,
            look,
            path,
            stored_px=stored_px,
            look=settings.look,
            device=where,
            progress=lambda done, n: progress(before + done, len(real) + len(dataset)),
        )

    with new_folder(out) as folder:
        files = folder / "real.f32", folder / "synthetic.f32"
        manifold = Manifold.of(looked_at(real, files[0], 0), real.patient_ids, settings.neighbours)
        vectors = looked_at(dataset, files[1], len(real))
        label, centres = divide(vectors, number, settings.seed)
        distance, off_centre = distances(vectors, manifold, label, centres)
        label, found = farthest_first(label, distance, settings.most)
        for path in files:
            path.unlink()
        write_clusters(folder / "clusters.csv", found)
        write_images(folder / "images.csv", dataset, label, distance)
        saw = sorted(real.patients)
        facts = {
            "settings": settings.model_dump(mode="json"),
            "digest": dataset.about["digest"],
            "real_digest": real.about["digest"],
            "real_images": len(real),
            "honest_distance": round(manifold.honest, 6),
            "saw": saw,
        }
        write_json(folder / "clusters.json", facts)
        draw_sheets(folder, dataset, found, label, off_centre, settings.shown)
    return read_clusters(out, dataset)


def divide(
    vectors: Float32[np.ndarray, "n d"], number: int, seed: int
) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, "k d"]]:
    """The cluster of each vector, and the centres; some may have no vector."""
    from sklearn.cluster import MiniBatchKMeans  # noqa: PLC0415 (seconds of imports)
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415

    first = max(3 * SEEN, 3 * number)  # of which the first centres are chosen
    means = MiniBatchKMeans(
        number,
        init="k-means++",
        batch_size=SEEN,
        init_size=min(first, len(vectors)),
        n_init=3,
        compute_labels=False,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters
        means.fit(vectors)
    parts = range(0, len(vectors), CHUNK)
    label = np.concatenate([means.predict(vectors[k : k + CHUNK]) for k in parts])
    return label, means.cluster_centers_.astype(np.float32)


def distances(
    vectors: Float32[np.ndarray, "n d"],
    manifold: Manifold,
    label: Int[np.ndarray, " n"],
    centres: Float32[np.ndarray, "k d"],
) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """How far each image is from real ones, and from the centre of its cluster."""
    real, centre = np.empty(len(vectors), np.float32), np.empty(len(vectors), np.float32)
    for k in range(0, len(vectors), CHUNK):
        own = slice(k, k + CHUNK)
        real[own] = manifold.distance(vectors[own])
        centre[own] = np.linalg.norm(vectors[own] - centres[label[own]], axis=1)
    return real, centre


def farthest_first(
    label: Int[np.ndarray, " n"], distance: Float32[np.ndarray, " n"], most: float
) -> tuple[Int[np.ndarray, " n"], list[Cluster]]:
    """Clusters numbered anew, by falling distance to real images, without the empty ones."""
    there, label, images = np.unique(label, return_inverse=True, return_counts=True)
    mean = np.bincount(label, distance) / images
    order = np.argsort(-mean, kind="stable")
    place = np.empty(len(there), np.int64)
    place[order] = np.arange(len(there))
    found = [
        Cluster(k, int(images[c]), round(float(mean[c]), 4), keep := bool(mean[c] <= most), keep)
        for k, c in enumerate(order)
    ]
    return place[label], found


def write_clusters(path: Path, found: list[Cluster]) -> None:
    """The table that a person may change."""
    with path.open("x", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["cluster", "images", "distance", "proposed", "keep"])
        for own in found:
            table.writerow([own.number, own.images, own.distance, yes(own.proposed), yes(own.keep)])


def write_images(
    path: Path,
    dataset: Dataset,
    label: Int[np.ndarray, " n"],
    distance: Float32[np.ndarray, " n"],
) -> None:
    """Which image is in which cluster."""
    with path.open("x", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["case_id", "cluster", "distance"])
        for row, own, far in zip(dataset.rows.tolist(), label, distance, strict=True):
            table.writerow([dataset.index.read(row)["case_id"], own, f"{far:.4f}"])


def read_clusters(folder: Path, dataset: Dataset) -> Decisions:
    """The decision on each image of a folder of clusters, as its table says now.

    Args:
        dataset: The synthetic set that is to be chosen from.

    Raises:
        DataError: It is no such folder, it is of another set, or a table is damaged; the message
            names the row.
    """
    if not (folder / "clusters.json").is_file():
        raise DataError(
            f"{folder}: not a folder of clusters (no clusters.json); --real DATASET makes one"
        )
    facts: dict[str, Any] = read_json(folder / "clusters.json")
    try:
        saw, most = tuple(map(str, facts["saw"])), float(facts["settings"]["most"])
        digest = str(facts["digest"])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{folder / 'clusters.json'}: saw, digest or settings.most is damaged"
        ) from None
    path = folder / "clusters.csv"
    keep: dict[int, bool] = {}
    rule: dict[int, str] = {}
    places: dict[int, str] = {}
    for where, cells in read_table(path, ("cluster", "proposed", "keep")):
        number = read_number(where, cells["cluster"])
        if number in keep:
            raise DataError(f"{where}: cluster {number} is there twice")
        keep[number] = read_answer(where, cells, "keep")
        changed = keep[number] != read_answer(where, cells, "proposed")
        rule[number] = "person" if changed else f"clusters at distance {most:g}"
        places[number] = where.removeprefix(f"{path}: ")
    of: dict[str, int] = {}
    for where, cells in read_table(folder / "images.csv", ("case_id", "cluster")):
        if cells["case_id"] in of:
            raise DataError(f"{where}: case_id {cells['case_id']!r} is there twice")
        of[cells["case_id"]] = read_number(where, cells["cluster"])
    if digest != dataset.about["digest"]:
        raise DataError(
            f"{folder}: made of another set than {dataset.folder}: of one with the digest "
            f"{digest[:12]} and images such as {next(iter(of), 'none')}, not "
            f"{dataset.about['digest'][:12]} and {dataset[0].case_id}; give the set that it was "
            "made of, or --real DATASET and a new folder"
        )
    images = Counter(of.values())
    lost, empty = sorted(images.keys() - keep), [k for k in keep if k not in images]
    wrong = [f"no row is of cluster {k}, in which images.csv has {images[k]} images" for k in lost]
    wrong += [f"{places[k]} is of cluster {k}, in which images.csv has no image" for k in empty]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(
            f"{path}: {'; '.join(wrong[:3])}{more}; allowed: one row for each cluster of images.csv"
        )
    rows = tuple(Decision(name, keep[number], rule[number]) for name, number in of.items())
    return Decisions(rows, saw)


def read_number(where: str, text: str) -> int:
    """The number of a cluster; spreadsheets write 3.0 for 3."""
    match = re.fullmatch(r"(\d+)(?:\.0*)?", text, re.ASCII)
    if match is None:
        raise DataError(f"{where}: cluster is {text[:20]!r}; allowed: a whole number from 0")
    return int(match[1])


def check_some_kept(decisions: Decisions, folder: Path) -> None:
    """Refuse decisions that keep nothing, as is usual of generators that were trained for little.

    Args:
        folder: The clusters of which they are.

    Raises:
        DataError: It says what to change.
    """
    if not any(row.keep for row in decisions.rows):
        raise DataError(
            f"{folder / 'clusters.csv'}: it keeps none of {len(decisions.rows)} images, so nothing "
            f"was written. Look at {folder / 'index.png'} and say yes in its column keep where "
            "images are good; or make another folder with a larger clusters.most, the distance "
            "beyond which clusters are dropped; or train the generator longer"
        )


def nothing_dropped(decisions: Decisions) -> bool:
    """Whether everything is kept and no person has had a say: the rule alone is no approval."""
    return all(row.keep and row.rule != "person" for row in decisions.rows)


def draw_sheets(
    folder: Path,
    dataset: Dataset,
    found: list[Cluster],
    label: Int[np.ndarray, " n"],
    off_centre: Float32[np.ndarray, " n"],
    shown: int,
) -> None:
    """A sheet a cluster, of the images nearest to its centre, and one that shows all clusters."""
    by_cluster = np.lexsort((off_centre, label))
    starts = np.searchsorted(label[by_cluster], np.arange(len(found)))
    said = {"Synthetic": "yes"}
    rows: list[UInt8[np.ndarray, "y x 3"]] = []
    for own, start in zip(found, starts, strict=True):
        nearest = by_cluster[start : start + min(own.images, shown)]
        title = (
            f"cluster {own.number}: {own.images} images, distance {own.distance:.2f}, "
            f"{'keep' if own.keep else 'drop'}"
        )
        sheet = contact_sheet([tile(dataset, int(i), SHEET_PX) for i in nearest])
        write_png(folder / f"cluster-{own.number:03}.png", titled(sheet, title), said)
        row = [tile(dataset, int(i), ROW_PX) for i in nearest[:IN_A_ROW]]
        rows.append(titled(contact_sheet(row, columns=IN_A_ROW), title))
    width = max(row.shape[1] for row in rows)
    whole = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows]
    write_png(folder / "index.png", np.concatenate(whole), said)


def tile(dataset: Dataset, i: int, side_px: int) -> UInt8[np.ndarray, "side side 3"]:
    """An image with the boxes that were ordered."""
    grey = to_bytes(dataset.values(i), dataset.about["value_range"])
    classes = [int(k) for k in dataset.box_classes(i)]
    return draw_boxes(grey, dataset.boxes(i), side_px=side_px, classes=classes)
