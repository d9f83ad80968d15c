"""The benchmark of PGGAN's step compares gradients of one function, and runs."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from synthoma.gans.pggan import PGGANConfig, phase

TINY = PGGANConfig(
    side_px=16,
    widest=8,
    base=64,
    noise_dim=8,
    batch_size=4,
    stable_images=1,
    fade_images=1,
    frozen_spread=True,
)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "pggan_step.py"
    spec = importlib.util.spec_from_file_location("pggan_step", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images(dtype: torch.dtype) -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    return torch.rand(4, 1, 16, 16, generator=chance, dtype=torch.float64).to(dtype) * 2 - 1


@pytest.mark.parametrize("frozen_spread", [True, False])
def test_the_fast_steps_gradients_are_those_of_the_plain_statement(bench, frozen_spread):
    config = TINY.model_copy(update={"frozen_spread": frozen_spread})
    gaps = bench.gaps(bench.fresh(config).double(), images(torch.float64), "float32")
    assert gaps.keys() == {"critic", "generator"}
    for gap in gaps.values():
        assert gap.relative_error < 1e-8


def test_in_bfloat16_they_point_the_same_way(bench):
    for gap in bench.gaps(bench.fresh(TINY), images(torch.float32), "bf16").values():
        assert 1e-6 < gap.relative_error < 0.5  # it was bfloat16 indeed
        assert gap.cosine > 0.9


def test_averaging_after_the_activation_is_another_function(bench, monkeypatch):
    """The comparison can fail: with the plain step's critic it does."""
    monkeypatch.setattr(bench, "average_then_activate", bench.activate_then_average)
    gaps = bench.gaps(bench.fresh(TINY).double(), images(torch.float64), "float32")
    assert gaps["critic"].relative_error > bench.TOLERANCE
    assert gaps["generator"].relative_error > bench.TOLERANCE


def test_the_plain_step_trains_both_players_and_averages_the_generator(bench):
    plain = bench.Plain(bench.fresh(TINY))
    before = [p.detach().clone() for p in plain.gan.parameters()]
    average = [p.clone() for p in plain.average]
    plain.make_step(images(torch.float32))
    grown = {
        name
        for (name, p), old in zip(plain.gan.named_parameters(), before, strict=True)
        if not torch.equal(p, old)
    }
    unused = {name for name, _ in plain.gan.named_parameters()} - grown
    lower = ("to_image.0", "to_image.1", "from_image.0", "from_image.1")  # grown out of
    assert all(name.split(".", 1)[1].startswith(lower) for name in unused)
    assert any(not torch.equal(a, b) for a, b in zip(average, plain.average, strict=True))
    assert all(p.requires_grad for p in plain.gan.parameters())


def test_every_variant_is_measured_at_full_size_in_every_round(bench, monkeypatch):
    sides, play = [], bench.PGGAN.request
    monkeypatch.setattr(
        bench.PGGAN, "request", lambda gan, step: sides.append(play(gan, step)) or sides[-1]
    )
    took = bench.measure(TINY, pairs=2)
    assert {"kernel", "plain", "float32", "bf16", "float32, loop", "bf16, loop"} <= took.keys()
    assert {len(each) for each in took.values()} == {2}
    assert sides.count(sides[-1]) >= 2 * 2 * 2 + 4 * 3
    assert sides[-1].side_px == 16


def test_a_step_is_grown_when_growth_is_over_and_not_before(bench):
    for config in (TINY, bench.QUARTER):
        step = bench.grown_step(config)
        assert phase(config, step) == (config.side_px, 1.0)
