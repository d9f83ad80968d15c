"""Synthetic images whose lesion is unclear are dropped, by a recorded rule that can be replayed."""

from pathlib import Path

from synthoma.data.dataset import Dataset
from synthoma.data.store import read_json
from synthoma.engine.evaluate import Findings, find_all
from synthoma.engine.system import Detector
from synthoma.errors import SettingsError
from synthoma.synthesis.fit import load_trained, pick_device


def find_in(run: Path, dataset: Dataset, *, device: str = "cpu") -> Findings:
    """What the trained detector of a run finds in a dataset, at its test resolution."""
    detector, facts = load_trained(run, str(pick_device(device)))
    if not isinstance(detector, Detector):
        raise SettingsError(f"{run}: {facts['name']} is not a detector")
    precision = read_json(run / "run.json")["train"]["precision"]
    return find_all(detector, dataset, side_px=facts["system"]["test_side_px"], precision=precision)
