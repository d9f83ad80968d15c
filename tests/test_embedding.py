"""t-SNE: neighbours stay neighbours, the same every time, and few points are no obstacle."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from synthoma.errors import DataError, SettingsError
from synthoma.metrics.embedding import embed, perplexity_for


def clumps(n=40, d=8, apart=20.0, seed=0):
    """Three clumps of points, and which clump each is of."""
    rng = np.random.default_rng(seed)
    centres = apart * rng.normal(size=(3, d))
    kind = np.arange(3 * n) % 3
    return centres[kind] + rng.normal(size=(3 * n, d)), kind


@pytest.mark.parametrize("d", [8, 400])
def test_points_of_a_clump_stay_together(d):
    points, kind = clumps(d=d)
    plane = embed(points, seed=0, perplexity=10, iterations=200)
    assert plane.shape == (120, 2)
    nearest = cKDTree(plane).query(plane, k=2)[1][:, 1]
    assert (kind[nearest] == kind).all()


def test_points_without_clumps_show_none():
    points, kind = clumps(apart=0.0)
    plane = embed(points, seed=0, perplexity=10, iterations=200)
    nearest = cKDTree(plane).query(plane, k=2)[1][:, 1]
    assert (kind[nearest] == kind).mean() < 0.6  # a third by chance


def test_the_same_seed_gives_the_same_plane():
    points, _ = clumps(d=100)
    first, again = (embed(points, seed=3, iterations=60) for _ in range(2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize(("few", "more"), [(20, 60), (1000, 1040)])  # exaggerated, and after it
def test_every_iteration_counts(few, more):
    points, _ = clumps(n=5)
    first, second = (embed(points, seed=0, iterations=count) for count in (few, more))
    assert not np.allclose(first, second)


@pytest.mark.parametrize("n", [4, 5, 20])
def test_few_points_lower_the_perplexity_and_are_laid_out(n):
    assert perplexity_for(n) == (n - 1) / 3
    points = np.random.default_rng(0).normal(size=(n, 60)).astype(np.float32)
    plane = embed(points, seed=0, iterations=40)
    assert plane.shape == (n, 2)
    assert np.isfinite(plane).all()


def test_many_points_have_the_papers_perplexity():
    assert perplexity_for(301) == 100
    assert perplexity_for(300) < 100


def test_what_cannot_be_laid_out_is_refused_by_number():
    with pytest.raises(DataError, match="3 points; t-SNE needs at least 4"):
        embed(np.zeros((3, 2)), seed=0)
    with pytest.raises(DataError, match="2 features are not finite"):
        embed(np.array([[np.nan, np.inf]] + [[0.0, 1.0]] * 5), seed=0)
    with pytest.raises(DataError, match="all 5 points are the same"):
        embed(np.zeros((5, 2)), seed=0)
    with pytest.raises(SettingsError, match="perplexity"):
        embed(np.eye(5), seed=0, perplexity=0.0)
