"""Copies of training nodules are found in disguise, and strangers are let through."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from synthoma.data.case import Case, Image
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.synthesis.nodule_copies import (
    FARTHEST,
    SHARE,
    UNTOLD,
    NoduleGallery,
    components,
    cubes_in,
    look,
    nodules_in,
)

SIDE = 32


def cube_of(seed):
    """A bright ball with lumps of its own, in HU."""
    chance = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.arange(SIDE) - (SIDE - 1) / 2] * 3, indexing="ij")
    lumps = gaussian_filter(chance.normal(size=[SIDE] * 3), 2.5)
    lumps /= lumps.std()
    ball = np.sqrt(z**2 + y**2 + x**2) + 2 * lumps < chance.uniform(5, 7)
    return -850 + 800.0 * ball + 60 * lumps + chance.normal(0, 15, [SIDE] * 3)


def save(folder, cubes, patients):
    with DatasetWriter(folder, patients_from="made", value_range=(-1000, 400)) as writer:
        for i, (cube, patient) in enumerate(zip(cubes, patients, strict=True)):
            image = Image(np.rint(cube).astype(np.int16)[None], unit="hu")
            writer.add(Case(f"cube-{i:03}", patient, image))
    return Dataset.open(folder)


def patients(n):
    return [f"p{i:03}" for i in range(n)]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    cubes = [cube_of(i) for i in range(60)]
    return save(tmp_path_factory.mktemp("copies") / "training", cubes, patients(60))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    cubes = [cube_of(1000 + i) for i in range(20)]
    return save(tmp_path_factory.mktemp("copies") / "held", cubes, patients(20))


@pytest.fixture(scope="module")
def gallery(training, held_out):
    return NoduleGallery.of(training, held_out)


def middle(cube, low=(8, 8, 8), side=16):
    return cube[tuple(slice(a, a + side) for a in low)]


DISGUISES = {
    "none": middle,
    "flipped": lambda cube: middle(cube)[::-1, :, ::-1],
    "darker, with less contrast": lambda cube: middle(cube) * 0.6 - 0.2,
    "an eighth of its box aside": lambda cube: middle(cube, (6, 10, 8)),
    "farther": lambda cube: zoom(middle(cube, (7, 7, 7), 18), 16 / 18, order=1),
    "noise": lambda cube: middle(cube) + np.random.default_rng(5).normal(0, 0.1, [16] * 3),
    "smooth": lambda cube: gaussian_filter(middle(cube), 1),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_planted_copy_is_found_and_whose_it_is(gallery, training, disguise):
    for i, cube in list(enumerate(cubes_in(training)))[:12]:
        distance, name = gallery.nearest(DISGUISES[disguise](cube).astype(np.float32))
        assert distance < gallery.threshold
        assert name == training[i].case_id


def test_strangers_are_no_copies(gallery, tmp_path):
    strangers = save(tmp_path / "s", [cube_of(2000 + i) for i in range(60)], patients(60))
    called = [gallery.is_copy(str(i), own) for i, own in enumerate(nodules_in(strangers))]
    assert sum(called) <= 3
    noise = np.random.default_rng(0).normal(size=[16] * 3).astype(np.float32)
    assert not gallery.is_copy("noise", noise)


def test_what_all_nodules_share_makes_no_copy_of_a_plain_ball(gallery, training):
    z, y, x = np.meshgrid(*[np.arange(16) - 7.5] * 3, indexing="ij")
    ball = np.where(np.sqrt(z**2 + y**2 + x**2) < 6, 0.1, -0.8).astype(np.float32)
    alike = [np.corrcoef(look(ball), look(own))[0, 1] for own in nodules_in(training)]
    assert 1 - max(alike) ** 2 < gallery.threshold  # by itself it would be
    assert gallery.nearest(ball)[0] > gallery.threshold


def test_copies_begin_where_honest_nodules_end(gallery, training, tmp_path):
    assert len(gallery.honest) == 60 + 20
    assert gallery.threshold == pytest.approx(min(FARTHEST, np.quantile(gallery.honest, SHARE)))
    chance = np.random.default_rng(7)  # held-out nodules that are nearly those of training
    twins = [cube_of(i) + chance.normal(0, 60, [SIDE] * 3) for i in range(20)]
    strict = NoduleGallery.of(training, save(tmp_path / "twins", twins, patients(20)))
    assert strict.threshold < 0.5 * gallery.threshold


def test_nodules_of_one_patient_may_be_alike(tmp_path):
    cubes = [cube_of(i // 2) + i for i in range(40)]  # each twice
    alone = NoduleGallery.of(save(tmp_path / "alone", cubes, patients(40)), None)
    assert alone.threshold < 0.01
    pairs = [name for name in patients(20) for _ in range(2)]
    together = NoduleGallery.of(save(tmp_path / "pairs", cubes, pairs), None)
    assert together.threshold > 0.1
    one = NoduleGallery.of(save(tmp_path / "one", cubes[:5], ["p"] * 5), None)
    assert (one.threshold, len(one.honest), one.shared.shape[1]) == (UNTOLD, 0, 0)


def test_nothing_but_unrelated_nodules_is_a_copy_up_to_half_at_most(tmp_path):
    noise = [np.random.default_rng(i).uniform(-1000, 400, [SIDE] * 3) for i in range(30)]
    gallery = NoduleGallery.of(save(tmp_path / "noise", noise, patients(30)), None)
    assert gallery.honest.min() > FARTHEST == gallery.threshold


def test_what_is_shared_are_the_directions_of_most_variance(training):
    seen = np.stack([look(own) for own in nodules_in(training)])
    shared = components(seen)
    assert shared.shape == (512, 60 // 8)
    assert np.allclose(shared.T @ shared, np.eye(7), atol=1e-4)
    other = np.linalg.qr(np.random.default_rng(0).normal(size=(512, 7)))[0]
    kept, by_chance = (((seen @ own) ** 2).sum() / (seen**2).sum() for own in (shared, other))
    assert kept > 0.5
    assert by_chance < 0.1


def test_what_was_compared_is_told(training, held_out):
    gallery = NoduleGallery.of(training, held_out)
    first, *_ = nodules_in(training)
    stranger, *_ = nodules_in(held_out)
    gallery.is_copy("planted", first)
    gallery.is_copy("stranger", stranger)
    facts = gallery.facts()
    assert (facts["compared_with"], facts["n_copies"], facts["synthetic"]["n"]) == (60, 1, 2)
    assert facts["copies"] == [("planted", "cube-000", 0.0)]
    assert facts["honest"]["n"] == 80
