"""A synthetic set before anybody trains on it: is what was ordered there, is it diverse.

run of the draw's own detector, drawn set, real slices -> judge_set -> Judged
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from synthoma.data.batches import resize, signed_unit
from synthoma.data.case import Synthetic
from synthoma.data.dataset import Dataset
from synthoma.engine.evaluate import Findings
from synthoma.engine.run import Run
from synthoma.synthesis.curate import IOU, Decisions, decide, find_in, gate, pass_rate
from synthoma.synthesis.watch import spreads

#: Images whose spread is measured.
MEASURED = 256
#: Side of a lesion's box as `lesions` gives it.
LESION_PX = 32


@dataclass(frozen=True, eq=False)
class Judged:
    """What a detector that was trained on real slices makes of a set."""

    decisions: Decisions
    findings: Findings
    facts: dict[str, Any]
    """For verdict.json."""


def judge_set(run: Path, drawn: Dataset, real: Dataset, *, least: float, device: str) -> Judged:
    """Let the draw's own detector look for the ordered lesions.

    Args:
        run: The detector's.
        real: The draw's slices; their dataset's validation split gives the rate in real slices.
        least: Of that rate, the share that admits a set.
    """
    facts = Run.open(run).facts
    found = find_in(run, drawn, device=device)
    rule = f"detector {facts['id']} at IoU {IOU:g}"
    decisions = decide(found, drawn, rule=rule, saw=tuple(facts["trained_on"]))
    held_out = boxed(Dataset.open(real.folder).split("validation"))
    verdict = gate(decisions, decide(find_in(run, held_out, device=device), held_out), least=least)
    inside = bool(painted_box(drawn, 0))
    return Judged(
        decisions,
        found,
        {
            "drawn": len(drawn),
            "passed": sum(decisions.keep.values()),
            "rate": pass_rate(decisions),
            "real_rate": verdict.real_rate,
            "admitted": verdict.admitted,
            "reason": verdict.reason,
            "diversity_of": "lesions" if inside else "slices",
            "diversity": diversity(drawn, inside=inside),
            "real_diversity": diversity(boxed(real), inside=inside),
            "copies": drawn.about.get("copy_check"),
        },
    )


def boxed(dataset: Dataset) -> Dataset:
    """The cases with a box."""
    return dataset.take(np.flatnonzero([len(dataset.boxes(i)) > 0 for i in range(len(dataset))]))


def diversity(dataset: Dataset, *, inside: bool) -> dict[str, float]:
    """Spread of pixels and features of some cases, at random but fixed.

    Args:
        inside: Of lesions alone, where the rest of a slice is real anyway.
    """
    order = np.random.default_rng(0).permutation(len(dataset))[:MEASURED]
    value_range = dataset.about["value_range"]
    images = (
        lesions(dataset, order)
        if inside
        else np.stack([signed_unit(dataset.values(int(i)), value_range) for i in order])
    )
    return {kind: round(found, 4) for kind, found in spreads(torch.from_numpy(images)).items()}


def lesions(dataset: Dataset, places: np.ndarray) -> Float32[np.ndarray, "n c side side"]:
    """The first box of each case; of a painted slice, the first one painted."""
    value_range, found = dataset.about["value_range"], []
    for place in places:
        i = int(place)
        space = np.array(dataset.values(i).shape[1:])
        box = np.asarray(painted_box(dataset, i) or dataset.boxes(i)[0])
        y0, x0 = np.clip(np.floor(box[:2]), 0, space - 2).astype(int)
        y1, x1 = np.minimum(np.maximum(np.ceil(box[2:]), (y0 + 2, x0 + 2)), space).astype(int)
        cut = signed_unit(dataset.values(i)[:, y0:y1, x0:x1], value_range)
        found.append(resize(cut, LESION_PX))
    return np.stack(found)


def painted_box(dataset: Dataset, i: int) -> list[float] | None:
    """The first lesion that was painted or pasted into a case."""
    origin = dataset[i].origin
    painted = origin.conditions.get("painted") if isinstance(origin, Synthetic) else None
    return list(painted[0]) if painted else None
