"""What a run shows of its generator: the spread of what it draws beside that of real images."""

import json

import numpy as np

from synthoma.metrics.diversity import collapsed, spread
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.synthesis.fit import fit
from synthoma.synthesis.mixture import TrainingData

SMALL = {
    "side_px": 16,
    "widest": 8,
    "base": 64,
    "noise_dim": 8,
    "batch_size": 4,
    "stable_images": 8,
    "fade_images": 8,
}


def test_spread_is_that_of_images_not_of_pixels_within_one():
    striped = np.tile(np.array([[0.0, 1.0], [0.0, 1.0]]), (5, 1, 1))
    assert spread(striped) == 0
    assert spread(np.random.default_rng(0).normal(size=(2000, 3, 3))) > 0.95


def test_a_repeated_image_is_called_collapsed_and_a_real_set_is_not():
    real = {"real pixels": 0.34, "real features": 0.5}
    assert collapsed({"pixels": 0.08, "features": 0.2} | real) == ["pixels", "features"]
    assert collapsed({"pixels": 0.33, "features": 0.45} | real) == []


def test_the_log_of_a_gan_has_its_spread_beside_the_real_one(tmp_path):
    brains = write_brains(tmp_path / "b", BrainConfig(side_px=32, patients=6), seed=0)
    data = TrainingData(data=brains.folder, boxed=True)
    overrides = {"system": SMALL, "train": {"steps": 4, "sample_every": 2}}
    fit("cpggan", tmp_path / "run", data, preset="smoke", overrides=overrides)
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    found = [row for row in rows if "diversity" in row]
    assert [row["step"] for row in found] == [2, 4]
    for row in found:
        assert {"pixels", "features", "real pixels", "real features"} == row["diversity"].keys()
    first, second = (row["diversity"] for row in found)
    assert min(first["real pixels"], second["real pixels"]) > 0.05  # at the side reached
