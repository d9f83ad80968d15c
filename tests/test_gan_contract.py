"""What every GAN must do. A GAN joins these tests by being listed in `GANS`."""

import copy
import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from synthoma.data.batches import Batch, Pool, Request
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import GAN, Turn
from synthoma.engine.train import Game, generator_for, train
from synthoma.gans import GANS

#: The smallest honest size of each GAN: seconds on a CPU.
GROWING = {
    "side_px": 16,
    "widest": 16,
    "base": 128,
    "noise_dim": 16,
    "batch_size": 8,
    "stable_images": 160,
    "fade_images": 160,
    "learning_rate": 3e-3,
    "average_decay": 0.9,
}
FEATURES = {"feature_side_px": 32, "strides": (4, 8), "head_width": 16, "head_start": 2}
PAINT = {
    "side_px": 16,
    "patch_px": 16,
    "width": 8,
    "widest": 32,
    "batch_size": 8,
    "feature_side_px": 32,
    "strides": (4, 8),
}
TINY = {"side_px": 16, "noise_dim": 16, "batch_size": 8}
SMALL = {
    "gan": TINY
    | {
        "width": 64,
        "units": 32,
        "batch_size": 16,
        "optimizer": "adam",
        "learning_rate": 5e-3,
        "decay": 1,
    },
    "cgan": TINY
    | {
        "classes": ("small", "large"),
        "noise_units": 16,
        "label_units": 16,
        "joint_units": 64,
        "judged_units": 32,
        "judged_label_units": 8,
        "optimizer": "adam",
        "learning_rate": 2e-3,
        "decay": 1,
    },
    "dcgan": TINY | {"widest": 32, "learning_rate": 5e-3},
    "wgan": TINY
    | {"widest": 16, "filter_px": 4, "learning_rate": 2e-3, "clip": 0.1, "critic_moves": 2},
    "pggan": GROWING,
    "cpggan": GROWING,
    "pix2pix": {"side_px": 16, "width": 8, "batch_size": 8, "learning_rate": 2e-3},
    "hybrid": GROWING | FEATURES | {"projected_from": 101},
    "paint": PAINT,
    "mcgan": {"side_px": 16, "width": 8, "batch_size": 8, "learning_rate": 2e-3},
}


def fresh(name: str) -> GAN:
    torch.manual_seed(0)
    module = importlib.import_module(GANS[name])
    config = type(module.PRESETS["paper"].system)
    return module.SYSTEM(config(**SMALL[name]))


@pytest.fixture(params=GANS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def serve(request: Request, step: int, move: int, part: int = 0) -> Batch:
    """Black images, or volumes where traits are asked for, with a bright disc or ball in the
    middle, and a box around it."""
    chance = torch.Generator().manual_seed(1000 * step + move)
    n, side = request.size, request.side_px
    along = (torch.arange(16) + 0.5) / 16 - 0.5
    radius = 0.2 + 0.1 * torch.rand(n, 1, 1, generator=chance)
    if request.traits:
        ball = sum(x**2 for x in torch.meshgrid(along, along, along, indexing="ij")).sqrt()
        image = ((ball < radius[..., None]).float() * 2 - 1)[:, None]
        big = (radius.flatten() > 0.25).long()
        return {"image": image} | {name: big for name, _ in request.traits}
    disc = (along[:, None] ** 2 + along[None, :] ** 2).sqrt() < radius
    image = (disc.float() * 2 - 1)[:, None]
    batch = {"image": torch.nn.functional.adaptive_avg_pool2d(image, side)}
    if "boxes" in request.fields:
        low, high = (0.5 - radius.flatten()) * side, (0.5 + radius.flatten()) * side
        batch["boxes"] = torch.stack([low, low, high, high], dim=1)
        batch["box_case"] = torch.arange(n)
    if "label" in request.fields:
        batch["label"] = (radius.flatten() > 0.25).long()
    return batch


def short(steps: int) -> TrainSettings:
    return TrainSettings(steps=steps, checkpoint_every=steps)


def draw(gan: GAN, seed: int, n: int = 4) -> torch.Tensor:
    noise = torch.randn(n, *gan.noise_shape, generator=torch.Generator().manual_seed(seed))
    boxes = torch.tensor([[4.0, 4, 12, 12]]).repeat(n, 1)
    told = {
        "boxes": {"boxes": boxes, "box_case": torch.arange(n)},
        "looks": {"looks": torch.tensor([[2.0, 0.0]]).repeat(n, 1)},
        "background": {"image": -torch.ones(n, 1, *[gan.side_px] * gan.dimensions)},
        "label": {"label": torch.arange(n) % 2},
        "traits": {name: torch.arange(n) % 2 for name, _ in gan.request(1).traits},
    }
    given = {key: value for name in gan.conditions for key, value in told[name].items()}
    return gan.eval().sample(noise, given or None)


def test_samples_are_images_in_range_and_noise_decides_them(name):
    gan = fresh(name)
    images = draw(gan, seed=1)
    assert images.min() >= -1
    assert images.max() <= 1
    assert torch.equal(images, draw(gan, seed=1))
    assert not torch.equal(images, draw(gan, seed=2))


def test_each_player_moves_only_its_own_weights(name):
    gan = fresh(name).train()
    game = Game(gan, short(1), 0, torch.device("cpu"))
    names = {id(p): key for key, p in gan.named_parameters()}
    own = {
        player.name: {names[id(p)] for module in player.modules for p in module.parameters()}
        for player in game.players
    }
    assert sum(map(len, own.values())) == len(set().union(*own.values()))  # nobody's twice
    request, shared = gan.request(1), {}
    for player in game.players:
        before = {key: p.detach().clone() for key, p in gan.named_parameters()}
        game.make_move(player, serve, request, 1, 0, shared)
        moved = {key for key, p in gan.named_parameters() if not torch.equal(p, before[key])}
        assert moved, f"{player.name} moved nothing"
        assert moved <= own[player.name], f"{player.name} moved what is not its own"


def test_a_player_can_move_without_the_others_having_moved(name):
    gan = fresh(name)
    for player in gan.players(1):
        turn = Turn(1, 0, generator_for(0, 1, player.name, 0), {})
        terms = gan.losses(player.name, serve(gan.request(1), 1, 0), turn)
        assert all(term.isfinite() for term in terms.values())


def test_training_is_repeatable(name):
    first, second = fresh(name), fresh(name)
    for gan in (first, second):
        train(gan, serve, short(3), seed=0)
    assert torch.equal(draw(first, seed=0), draw(second, seed=0))


def test_the_seed_decides_the_training(name):
    first, second = fresh(name), fresh(name)
    train(first, serve, short(3), seed=0)
    train(second, serve, short(3), seed=1)
    assert not torch.equal(draw(first, seed=0), draw(second, seed=0))


def test_its_state_is_all_that_samples_depend_on(name):
    gan, other = fresh(name), fresh(name)
    train(gan, serve, short(30), seed=0)
    other.load_state_dict(gan.state_dict())
    assert torch.equal(draw(gan, seed=0), draw(other, seed=0))


def test_what_goes_on_from_a_checkpoint_ends_in_the_same_bytes(name):
    ends = []
    for stopped in (False, True):
        game = Game(fresh(name).train(), short(4), 0, torch.device("cpu"))
        for step in range(4):
            if stopped and step == 2:
                kept = copy.deepcopy(game.state())
                game = Game(fresh(name).train(), short(4), 0, torch.device("cpu"))
                game.load(kept)
            game.make_step(serve)
        game.to_use(None)
        ends.append(game.system.state_dict())
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][key]) for key, tensor in ends[0].items())


def test_a_step_in_half_precision_reads_no_memory_that_nobody_wrote(name):
    """What was freed is full of NaN; convolutions in bf16 have read it."""
    gan = fresh(name).train()
    half = TrainSettings(steps=2, checkpoint_every=2, precision="bf16")
    game = Game(gan, half, 0, torch.device("cpu"))
    for step in (1, 2):
        shared = {}
        for player in game.players:
            trash = [torch.full((2**k,), float("nan")) for k in range(4, 20) for _ in range(4)]
            del trash
            game.make_move(player, serve, gan.request(step), step, 0, shared)
            assert all(p.isfinite().all() for p in gan.parameters()), player.name


def test_learns_that_the_corner_is_black_and_the_centre_bright(name):
    """The cheapest proof that the game is wired the right way round."""
    gan = fresh(name)

    def contrast(images: torch.Tensor) -> float:
        middle = slice(images.shape[-1] // 2 - 1, images.shape[-1] // 2 + 1)
        centre = images[(..., *[middle] * gan.dimensions)]
        edge = gan.side_px // 4 if gan.dimensions == 3 else 0  # of what is drawn
        corner = images[(..., *[edge] * gan.dimensions)]
        return (centre.mean() - corner.mean()).item()

    assert contrast(draw(gan, seed=0, n=64)) < 0.3
    train(gan, serve, short(200), seed=0)
    assert contrast(draw(gan, seed=0, n=64)) > 1.0


def test_every_scale_is_a_preset_whose_data_decides_the_channels(name):
    module = importlib.import_module(GANS[name])
    assert {"paper", "small", "smoke"} <= module.PRESETS.keys()
    for preset in module.PRESETS.values():
        assert preset.system.channels == 1

    class Cases:
        def values(self, i: int) -> torch.Tensor:
            return torch.zeros(3, *[16] * module.SYSTEM.dimensions)

    pool = object.__new__(Pool)
    pool.datasets, pool.labels, pool.ends = (Cases(),), ["small", "large"], np.array([600])
    assert module.fitted(module.PRESETS["smoke"].system, {"real": pool}).channels == 3


def test_the_list_of_gans_loads_without_torch():
    code = "import sys, synthoma.gans; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
