"""What every refiner must do. A refiner joins these tests by being listed in `REFINERS`."""

import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthoma.data.batches import Batch, Pool, Request
from synthoma.engine.run import Run
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Refiner, Turn
from synthoma.engine.train import Game, generator_for, train
from synthoma.errors import DataError
from synthoma.gans import REFINERS

#: The smallest honest size of each refiner: seconds on a CPU.
SMALL = {
    "simgan": {
        "side_px": 16,
        "width": 12,
        "blocks": 2,
        "kernel_px": 3,
        "judge_width": 8,
        "judge_kernels": (3, 3, 3, 3),
        "judge_strides": (2, 1, 1, 1),
        "batch_size": 8,
        "learning_rate": 2e-4,
        "distance_weight": 0.3,
        "refiner_steps": 2,
        "judge_steps": 2,
        "history": 32,
    },
    "unit": {
        "side_px": 16,
        "width": 4,
        "blocks": 1,
        "judge_halvings": 2,
        "judge_width": 16,
        "batch_size": 8,
        "learning_rate": 2e-3,
    },
    "munit": {
        "side_px": 16,
        "width": 8,
        "blocks": 1,
        "style_width": 16,
        "judge_width": 16,
        "judge_halvings": 3,
        "scales": 1,
        "batch_size": 8,
        "learning_rate": 1e-3,
    },
}
#: Steps after which the toy is learnt, and what is set otherwise for it.
TOY = {
    "simgan": (160, {"refiner_steps": 80, "judge_steps": 20}),
    "unit": (100, {"adversarial_weight": 2}),
    "munit": (150, {}),
}


def fresh(name: str, **changes: object) -> Refiner:
    torch.manual_seed(0)
    module = importlib.import_module(REFINERS[name])
    config = type(module.PRESETS["paper"].system)
    return module.SYSTEM(config(**SMALL[name] | changes))


@pytest.fixture(params=REFINERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def discs(n: int, chance: torch.Generator) -> Tensor:
    """Where discs are, somewhere on black: 0 or 1."""
    centre = 6 + 4 * torch.rand(n, 2, 1, 1, generator=chance)
    radius = 4 + 1.5 * torch.rand(n, 1, 1, generator=chance)
    along = torch.arange(16) + 0.5
    y, x = along[:, None] - centre[:, 0], along[None, :] - centre[:, 1]
    return ((y**2 + x**2).sqrt() < radius).float()[:, None]


def flat(n: int, chance: torch.Generator) -> Tensor:
    """Grey discs on black."""
    return discs(n, chance) - 1


def striped(n: int, chance: torch.Generator) -> Tensor:
    """The same with dark and bright stripes, two rows each, that begin anywhere."""
    there = discs(n, chance)
    begin = torch.randint(4, (n, 1, 1, 1), generator=chance)
    stripes = ((torch.arange(16)[:, None] + begin) % 4 < 2).float() * 1.2 - 0.6
    return there * (1 + stripes) - 1


def serve(request: Request, step: int, move: int, part: int = 0) -> Batch:
    assert request.domains == ("real", "source")
    assert request.side_px == 16
    chance = torch.Generator().manual_seed(1000 * step + move)
    return {
        "real/image": striped(request.size, chance),
        "source/image": flat(request.size, chance),
    }


def short(steps: int) -> TrainSettings:
    return TrainSettings(steps=steps, checkpoint_every=steps)


def given(seed: int, n: int = 4) -> Tensor:
    return flat(n, torch.Generator().manual_seed(seed))


def style_of(refiner: Refiner, n: int, seed: int = 0) -> Tensor | None:
    if not refiner.style_shape:
        return None
    return torch.randn(n, *refiner.style_shape, generator=torch.Generator().manual_seed(seed))


def refined(refiner: Refiner, image: Tensor) -> Tensor:
    return refiner.eval().refine(image, style_of(refiner, len(image)))


def test_refined_images_are_images_in_range_and_the_image_decides_them(name):
    refiner, image = fresh(name), given(1)
    made = refined(refiner, image)
    assert made.shape == image.shape
    assert made.dtype == torch.float32
    assert made.abs().max() <= 1
    assert torch.equal(made, refined(refiner, image))
    assert not torch.equal(made, refined(refiner, given(2)))
    assert refiner.side_px == 16


def test_refining_leaves_its_input_alone(name):
    refiner, image = fresh(name), given(1)
    refined(refiner, image)
    assert torch.equal(image, given(1))


def test_an_image_is_refined_alike_whatever_is_beside_it(name):
    refiner, image = fresh(name).eval(), given(3)
    style = style_of(refiner, 4)
    together = refiner.refine(image, style)
    for k in range(4):
        own = None if style is None else style[k : k + 1]
        alone = refiner.refine(image[k : k + 1], own)
        torch.testing.assert_close(alone, together[k : k + 1], atol=1e-4, rtol=0)


def test_each_player_moves_only_its_own_weights(name):
    refiner = fresh(name).train()
    names = {id(p): key for key, p in refiner.named_parameters()}
    for step in (1, 3, 5):  # SimGAN's opening, and its game
        game = Game(refiner, short(5), 0, torch.device("cpu"))
        game.deal(step)
        own = {
            player.name: {names[id(p)] for module in player.modules for p in module.parameters()}
            for player in game.players
        }
        assert sum(map(len, own.values())) == len(set().union(*own.values()))  # nobody's twice
        request, shared = refiner.request(step), {}
        for player in game.players:
            before = {key: p.detach().clone() for key, p in refiner.named_parameters()}
            game.make_move(player, serve, request, step, 0, shared)
            now = dict(refiner.named_parameters())
            moved = {key for key, old in before.items() if not torch.equal(now[key], old)}
            assert moved, f"{player.name} moved nothing"
            assert moved <= own[player.name], f"{player.name} moved what is not its own"
    assert set().union(*own.values()) == set(names.values())  # nobody's are left out


def test_a_player_can_move_without_the_others_having_moved(name):
    refiner = fresh(name)
    for player in refiner.players(5):
        turn = Turn(5, 0, generator_for(0, 5, player.name, 0), {})
        terms = refiner.losses(player.name, serve(refiner.request(5), 5, 0), turn)
        assert all(term.isfinite() for term in terms.values())


def test_training_is_repeatable_and_the_seed_decides_it(name):
    first, second, third = fresh(name), fresh(name), fresh(name)
    for refiner, seed in ((first, 0), (second, 0), (third, 1)):
        train(refiner, serve, short(12), seed=seed)
    made = refined(first, given(0))
    assert torch.equal(made, refined(second, given(0)))
    if name != "simgan":  # whose only chance is its history: no noise is drawn
        assert not torch.equal(made, refined(third, given(0)))


def test_its_state_is_all_that_refining_depends_on(name):
    refiner, other = fresh(name), fresh(name)
    train(refiner, serve, short(12), seed=0)
    shared = {k: v for k, v in refiner.state_dict().items() if k not in refiner.training_only}
    other.load_state_dict(other.state_dict() | shared)
    assert torch.equal(refined(refiner, given(0)), refined(other, given(0)))


def test_a_run_that_stopped_ends_in_the_same_bytes(name, tmp_path):
    """Weights, optimisers, and what SimGAN remembers of images that it refined."""

    def steps(folder: Path, *ends: int) -> bytes:
        for end in ends:
            refiner = fresh(name)
            run = Run(folder) if folder.exists() else Run.create(folder, {})
            train(refiner, serve, TrainSettings(steps=end, checkpoint_every=4), seed=0, run=run)
        return (folder / "checkpoints" / f"step-{ends[-1]:08}.safetensors").read_bytes()

    whole = steps(tmp_path / "whole", 16)
    # in the opening's middle, at its end, in the game
    assert steps(tmp_path / "pieces", 1, 4, 9, 16) == whole


def test_says_how_far_it_takes_images(name):
    refiner = fresh(name)
    terms, _ = Game(refiner, short(1), 0, torch.device("cpu")).make_step(serve)
    assert 0 < terms["refined/distance"] < 2


def measured(image: Tensor, source: Tensor) -> tuple[float, float]:
    """How strongly rows within discs alternate, and whether discs are where they were: how what is
    left of an image once stripes are averaged out, and the mean image taken off, correlates with
    the same of its source."""
    inside = -F.max_pool2d(-(source > -0.5).float(), 3, 1, 1) > 0
    inside = inside[:, :, 2:] & inside[:, :, :-2]
    stripes = (image[:, :, 2:] - image[:, :, :-2]).abs()[inside].mean().item()
    own, wanted = (F.avg_pool2d(x, 4, stride=2).flatten(1) for x in (image, source))
    own, wanted = own - own.mean(0), wanted - wanted.mean(0)
    return stripes, F.cosine_similarity(own, wanted).mean().item()


def test_the_measures_tell_stripes_and_discs():
    source = given(0, n=32)
    assert measured(source, source) == pytest.approx((0, 1))
    stripes, shape = measured(striped(32, torch.Generator().manual_seed(0)), source)
    assert stripes > 1
    assert shape > 0.9
    assert abs(measured(given(1, n=32), source)[1]) < 0.2  # discs elsewhere


def test_learns_to_put_stripes_on_discs_that_stay_where_they_are(name):
    """The cheapest proof that the game is wired the right way round: texture new, shape kept."""
    steps, changes = TOY[name]
    refiner, source = fresh(name, **changes), given(9, n=32)
    train(refiner, serve, short(steps), seed=0)
    stripes, shape = measured(refined(refiner, source), source)
    assert stripes > 0.5
    assert shape > 0.5  # discs elsewhere: below 0.2, see above


def test_every_scale_is_a_preset_whose_data_decide_the_channels(name):
    module = importlib.import_module(REFINERS[name])
    assert {"paper", "small", "smoke"} <= module.PRESETS.keys()
    assert all(preset.system.channels == 1 for preset in module.PRESETS.values())
    smoke = module.PRESETS["smoke"].system
    colour = {"real": pool("here", 3), "source": pool("there", 3)}
    assert module.fitted(smoke, colour).channels == 3


def test_domains_of_other_channels_are_refused_with_both_folders(name):
    module = importlib.import_module(REFINERS[name])
    smoke = module.PRESETS["smoke"].system
    with pytest.raises(DataError, match="here has images of 1 channels, but there of 3"):
        module.fitted(smoke, {"real": pool("here", 1), "source": pool("there", 3)})
    with pytest.raises(DataError, match=r"here: .*--source"):
        module.fitted(smoke, {"real": pool("here", 1)})


def pool(folder: str, channels: int) -> Pool:
    """A pool of one folder of images of so many channels."""

    class Cases:
        def __init__(self) -> None:
            self.folder = Path(folder)

        def values(self, i: int) -> Tensor:
            return torch.zeros(channels, 16, 16)

    made = object.__new__(Pool)
    made.datasets = (Cases(),)
    return made
