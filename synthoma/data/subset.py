"""Some cases of a dataset as a folder of their own, which shares the image files."""

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from pydantic_core import from_json

from synthoma.data.dataset import Dataset, share
from synthoma.data.store import new_folder, write_json
from synthoma.errors import DataError


def subset(
    dataset: Dataset,
    out: Path,
    kept: Int[np.ndarray, " k"],
    *,
    dropped: Mapping[str, list[str]],
    about: Mapping[str, Any],
    also_saw: Collection[str] = (),
) -> Dataset:
    """Write the folder `out` of some cases; rows and order are those of the dataset.

    The image files are shared whole, so those of dropped cases stay in them, unlisted.

    Args:
        kept: Places of cases in `dataset`.
        dropped: Case ids that were left out, by reason; counted in dataset.json.
        about: Further facts for dataset.json.
        also_saw: Patients on whom the choice depends; from now on the generators of these cases
            count as having seen them, so that a leak through the choice is refused too.

    Raises:
        DataError: No case is kept.
    """
    if not len(kept):
        counts = {reason: len(names) for reason, names in dropped.items()}
        raise DataError(f"{out}: no case was left to write; dropped: {counts}")
    chosen, index = dataset.take(kept), dataset.index
    digest = hashlib.sha256()
    labels: set[str] = set()
    box_labels: set[str] = set()
    runs: dict[str, None] = {}
    with new_folder(out) as folder:
        share(dataset.folder, folder, "shards/*.npy")
        with (folder / "cases.jsonl").open("wb") as file:
            for row in chosen.rows.tolist():
                start, stop = int(index.starts[row]), int(index.starts[row + 1])
                line = os.pread(index.file.fileno(), stop - start, start)
                file.write(line)
                digest.update(line)
                content = from_json(line)
                labels.update([content["label"]] if "label" in content else [])
                box_labels.update(content.get("box_labels", ()))
                if "synthetic" in content["origin"]:
                    runs[content["origin"]["synthetic"]] = None
            file.flush()
            os.fsync(file.fileno())
        patients = set(chosen.patients)
        splits = {name: [p for p in own if p in patients] for name, own in dataset.splits.items()}
        write_json(folder / "splits.json", splits)
        before = {name: dataset.about[name] for name in ("digest", "dropped")}
        seen = {run: sorted({*dataset.generators_saw[run], *also_saw}) for run in runs}
        own = {
            "from": before | {k: v for k, v in dataset.about.items() if k == "from"},
            "n_cases": len(chosen),
            "n_synthetic": int(index.synthetic[chosen.rows].sum()),
            "n_patients": len(patients),
            "labels": sorted(labels),
            "box_labels": sorted(box_labels),
            "generators": {run: {"trained_on": names} for run, names in seen.items()},
            "dropped": {
                reason: {"n": len(names), "for_example": names[:5]}
                for reason, names in dropped.items()
            },
            "digest": digest.hexdigest(),
        }
        write_json(folder / "dataset.json", dict(dataset.about) | own | dict(about))
    return Dataset.open(out)
