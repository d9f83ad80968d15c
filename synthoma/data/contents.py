"""What a dataset folder holds, in lines for a person: counted from its index, no image is read."""

from collections.abc import Mapping

import numpy as np

from synthoma.data.dataset import Dataset
from synthoma.errors import DataError

UNLABELLED = "no label"


def describe(dataset: Dataset) -> list[str]:
    """Cases, patients, image sizes, splits, boxes and the classes of images by split.

    Example:
        One line is ``  tumour     70 (7)     10 (1)     20 (2)    100 (10)``: cases (patients) of
        this class in training, validation, test and all of them.
    """
    about = dataset.about
    synthetic = int(dataset.index.synthetic[dataset.rows].sum())
    splits = {name: dataset.of_patients(members) for name, members in dataset.splits.items()}
    boxed = bool(dataset.index.annotated[dataset.rows].any())
    return [
        f"{len(dataset)} cases ({synthetic} synthetic), {about['dimensions']}D",
        f"{len(dataset.patients)} patients ({about['patients_from']})",
        f"images: {size_words(dataset)}",
        *(
            f"  {name}: {len(cases.patients)} patients, {len(cases)} cases"
            + (f", boxes: {box_words(cases)}" if boxed else "")
            for name, cases in splits.items()
        ),
        f"boxes: {box_words(dataset)}",
        *([f"box labels: {', '.join(about['box_labels']) or 'none'}"] if boxed else []),
        *label_lines(splits | {"all": dataset}),
    ]


def size_words(dataset: Dataset) -> str:
    """The size of the images, or the range of sizes along each axis, and their channels.

    Raises:
        DataError: A file of images is missing or damaged.
    """
    shapes = sorted({shape(dataset, int(n)) for n in np.unique(dataset.index.shards[dataset.rows])})
    if not shapes:
        return "none"
    ranges = [sorted({min(sides), max(sides)}) for sides in zip(*shapes, strict=True)]
    sides = " x ".join(" to ".join(map(str, ends)) for ends in ranges[1:])
    axes = "y, x" if len(ranges) == 3 else "z, y, x"
    unit = "px" if len(ranges) == 3 else "voxels"
    n_sizes = len({found[1:] for found in shapes})
    several = f", {n_sizes} sizes" if n_sizes > 1 else ""
    channels = sorted({channels for channels, *_ in shapes})
    plural = "" if channels == [1] else "s"
    return f"{sides} {unit} ({axes}){several}, {' or '.join(map(str, channels))} channel{plural}"


def shape(dataset: Dataset, shard: int) -> tuple[int, ...]:
    """(c, (z,) y, x) of the images in a shard, of which the header alone is read."""
    path = dataset.index.shard_path(shard)
    try:
        return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape[1:])
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: {error}") from None


def box_words(cases: Dataset) -> str:
    """How many boxes there are; no box in an annotated case is not the same as not annotated."""
    index, rows = cases.index, cases.rows
    annotated = int(index.annotated[rows].sum())
    if not annotated:
        return "not annotated"
    own = index.box_starts[rows + 1] - index.box_starts[rows]
    text = f"{int(own.sum())} in {np.count_nonzero(own)} cases"
    without = len(cases) - annotated
    return text + (f" ({without} cases not annotated)" if without else "")


def label_lines(parts: Mapping[str, Dataset]) -> list[str]:
    """A table of the cases and patients of each class in each part, the last of which is all."""
    counts = {name: label_counts(cases) for name, cases in parts.items()}
    *_, whole = counts.values()
    labels = sorted(label for label in whole if label is not None)
    if not labels:
        return ["labels: none"]
    rows = [["labels, cases (patients)", *parts]]
    for label in [*labels, None]:
        cells = [counted.get(label, (0, 0)) for counted in counts.values()]
        name = UNLABELLED if label is None else label
        rows.append([f"  {name}", *(f"{n} ({patients})" if n else "0" for n, patients in cells)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        row[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def label_counts(cases: Dataset) -> dict[str | None, tuple[int, int]]:
    """(cases, patients) of each class; None is the class of those without a label."""
    labels, patients = cases.index.labels[cases.rows], cases.index.patients[cases.rows]
    codes, n_cases = np.unique(labels, return_counts=True)
    pairs = np.unique(np.stack([labels, patients]), axis=1)
    n_patients = np.unique(pairs[0], return_counts=True)[1]
    return {
        cases.index.label_names[code]: (int(n), int(m))
        for code, n, m in zip(codes, n_cases, n_patients, strict=True)
    }
