"""MCGAN: the thesis' sizes, what the generator sees, and who is told what."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from synthoma.data.batches import Pool
from synthoma.data.case import Case, Image
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Turn
from synthoma.engine.train import Game, generator_for
from synthoma.errors import DataError
from synthoma.gans.mcgan import (
    MCGAN,
    PRESETS,
    TOLD,
    MCGANConfig,
    begin,
    fitted,
    flipped,
    middle,
    placed,
    told_of,
    with_noise,
)

TINY = MCGANConfig(side_px=16, width=4, batch_size=4)


def built(**changes):
    torch.manual_seed(0)
    return MCGAN(TINY.model_copy(update=changes))


def batch(n=4, side_px=16, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(n, 1, side_px, side_px, side_px, generator=chance) * 2 - 1,
        "size": torch.arange(n) % 3,
        "attenuation": (torch.arange(n) + 1) % 3,
    }


def moves(gan, step=1):
    """The losses of each player in turn, and what they shared."""
    shared, found = {}, {}
    for player in gan.players(step):
        turn = Turn(step, 0, generator_for(0, step, player.name, 0), shared)
        found[player.name] = gan.losses(player.name, batch(), turn)
    return found, shared


def test_the_papers_preset_is_the_thesis():
    preset = PRESETS["paper"]
    assert (preset.system.side_px, preset.system.batch_size) == (64, 16)
    assert preset.system.learning_rate == 2e-4
    assert preset.train.steps == 6_000_000
    told = preset.system
    assert (told.noise, told.swap_every, told.critic_moves, told.dropout_layers) == (0.5, 3, 1, 3)
    assert told.critic_learning_rate == 2e-4
    assert TOLD == 6  # so the generator's input is 64 x 64 x 64 x 7
    gan = MCGAN(preset.system)
    first = gan.generator.down[0][0]
    assert (first.in_channels, first.out_channels, first.kernel_size) == (7, 64, (4, 4, 4))
    assert len(gan.generator.down) == 4
    assert len(gan.generator.up) + 1 == 4
    # 64 * 64 (7 + 2 64 + 8 64 + 32 64) down, the same up with what is passed across, norms, a bias
    down = 64 * 64 * (7 + 128 + 512 + 2048)
    up = 64 * 64 * (2048 + 2 * 512 + 2 * 128 + 2)
    norms = 2 * 64 * (1 + 2 + 4 + 8) + 2 * 64 * (4 + 2 + 1)
    assert sum(p.numel() for p in gan.generator.parameters()) == down + up + norms + 1


def test_the_last_deconvolution_is_the_middle_of_the_whole_one():
    gan = built()
    seen = torch.randn(2, 1 + TOLD, 16, 16, 16)
    kept = gan.generator.kept(16, [torch.Generator().manual_seed(k) for k in range(2)])
    taken = []
    hook = gan.generator.up[-1].register_forward_hook(lambda *args: taken.append(args[2]))
    first = gan.generator.down[0].register_forward_hook(lambda *args: taken.append(args[2]))
    found = gan.generator(seen, kept)
    hook.remove(), first.remove()
    across, up = taken
    whole = torch.cat([F.relu(up) * (2 * kept[-1]), F.leaky_relu(across, 0.2)], dim=1)
    wanted = torch.tanh(middle(gan.generator.to_image(whole)))
    assert found.shape == (2, 1, 8, 8, 8)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_a_deconvolution_begins_smooth_so_that_nodules_are_not_chequered():
    layer = nn.ConvTranspose3d(256, 8, 4, stride=2, padding=1, bias=False)
    begin(layer)
    made = layer(torch.randn(1, 256, 1, 1, 1).expand(1, 256, 6, 6, 6))[..., 2:-2, 2:-2, 2:-2]
    assert torch.allclose(made, made[..., :1, :1, :1].expand_as(made), atol=1e-5)
    made = layer(torch.randn(4, 256, 6, 6, 6))
    plain = nn.ConvTranspose3d(256, 8, 4, stride=2, padding=1, bias=False)
    nn.init.normal_(plain.weight, 0, 0.02)
    assert 0.3 < made.std() / plain(torch.randn(4, 256, 6, 6, 6)).std() < 1.1


def test_layers_without_dropout_keep_every_feature():
    gan = MCGAN(MCGANConfig(side_px=16, width=4, dropout_layers=1))
    kept = gan.generator.kept(16, [torch.Generator().manual_seed(k) for k in range(2)])
    assert [own.shape for own in kept] == [(2, 16, 2, 2, 2)]
    seen = torch.randn(2, 1 + TOLD, 16, 16, 16)
    whole = [torch.ones_like(own) for own in kept]
    half = gan.generator(seen, [w.float() / 2 for w in whole])
    assert torch.equal(gan.generator(seen, []), half)


def test_a_faster_critic_moves_more_often():
    gan = MCGAN(MCGANConfig(side_px=16, width=4, critic_moves=3, critic_learning_rate=1e-3))
    found = {p.name: (p.moves, p.optimizer.param_groups[0]["lr"]) for p in gan.players(1)}
    assert found == {"context": (1, 2e-4), "critic": (3, 1e-3), "generator": (1, 2e-4)}


def test_the_generator_does_not_see_the_nodule_that_it_replaces():
    gan, given = built().eval(), batch()
    noise = torch.randn(4, 8)
    other = given | {"image": placed(given["image"], torch.zeros(4, 1, 8, 8, 8))}
    assert torch.equal(gan.sample(noise, given), gan.sample(noise, other))


def test_around_the_nodule_nothing_changes():
    gan, given = built().eval(), batch()
    made = gan.sample(torch.randn(4, 8), given)
    assert torch.equal(placed(made, middle(given["image"])), given["image"])
    assert not torch.equal(middle(made), middle(given["image"]))


def test_noise_lies_in_the_middle_alone_and_within_a_half():
    cube = torch.full((3, 1, 16, 16, 16), 0.9)
    noisy = with_noise(cube, [torch.Generator().manual_seed(k) for k in range(3)], 0.5)
    assert torch.equal(placed(noisy, middle(cube)), cube)
    inner = middle(noisy)
    less = with_noise(cube, [torch.Generator().manual_seed(k) for k in range(3)], 0.1)
    assert torch.allclose(middle(less), inner / 5)
    assert -0.5 <= inner.min() < -0.49
    assert 0.49 < inner.max() <= 0.5
    assert not torch.equal(inner[0], inner[1])


def test_size_and_attenuation_are_told_as_six_numbers():
    told = told_of({"size": torch.tensor([0, 2]), "attenuation": torch.tensor([1, 0])})
    assert told.tolist() == [[1, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0]]


def test_what_is_told_reaches_the_generator_and_the_critic_but_not_the_context():
    gan, given = built().eval(), batch()
    noise = torch.randn(4, 8)
    others = given | {"size": (given["size"] + 1) % 3}
    assert not torch.equal(gan.sample(noise, given), gan.sample(noise, others))
    nodule = middle(given["image"])
    told, changed = (told_of(b).float() for b in (given, others))
    assert not torch.equal(gan.value(nodule, told), gan.value(nodule, changed))
    assert gan.context.layers[0].in_channels == 2


def test_labels_are_swapped_in_every_third_step_of_the_context_alone():
    gan = built()
    straight, _ = moves(gan, step=3)
    gan_never = built(swap_every=0)
    never, _ = moves(gan_never, step=3)
    assert straight["context"]["adversarial"] != never["context"]["adversarial"]
    assert straight["critic"]["adversarial"] == never["critic"]["adversarial"]
    assert moves(built(), step=2)[0]["context"] == moves(built(swap_every=0), step=2)[0]["context"]


def test_the_distance_is_paid_for_in_the_variant_with_l1_alone():
    terms, shared = moves(built())
    assert set(terms["generator"]) == {"context", "nodule"}
    terms, shared = moves(built(distance_weight=100))
    found = terms["generator"]["distance"].item()
    assert found == pytest.approx(100 * shared["log/distance"].item(), rel=1e-5)


def test_a_step_in_half_precision_reads_no_memory_that_nobody_wrote():
    """What was freed is full of NaN, so that whoever reads it finds them."""
    config = MCGANConfig(side_px=32, width=8, batch_size=4)
    for _ in range(4):
        torch.manual_seed(0)
        gan = MCGAN(config).train()
        half = TrainSettings(steps=1, checkpoint_every=1, precision="bf16")
        game = Game(gan, half, 0, torch.device("cpu"))
        shared = {}
        for player in game.players:
            trash = [torch.full((2**k,), float("nan")) for k in range(4, 21) for _ in range(4)]
            del trash
            game.make_move(player, lambda *args: batch(side_px=32), gan.request(1), 1, 0, shared)
            assert all(p.isfinite().all() for p in gan.parameters()), player.name


def test_cubes_are_flipped_along_y_and_x_but_not_from_head_to_feet():
    cube = torch.arange(27.0).reshape(1, 1, 3, 3, 3).repeat(64, 1, 1, 1, 1)
    seen = flipped(cube, torch.Generator().manual_seed(0))
    kinds = {tuple(one.flatten().tolist()) for one in seen}
    plain = cube[0, 0]
    wanted = [plain, plain.flip(1), plain.flip(2), plain.flip(1, 2)]
    assert kinds == {tuple(one.flatten().tolist()) for one in wanted}


def test_cubes_of_another_side_say_how_to_cut_them(tmp_path):
    cubes = DatasetWriter(tmp_path / "cubes", patients_from="made", value_range=(0, 1))
    with cubes as writer:
        writer.add(Case("a", "a", Image(np.zeros((1, 24, 24, 24), np.int16))))
    pools = {"real": Pool([Dataset.open(tmp_path / "cubes")])}
    with pytest.raises(DataError, match=r"not cubes of 16 voxels; cut them with .* --side-px 16"):
        fitted(TINY, pools)
