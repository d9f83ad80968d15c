"""The hybrid is CPGGAN word for word first, then moves against heads on frozen features."""

import pytest
import torch
from test_gan_contract import FEATURES, GROWING, serve, short

from synthoma.engine.train import Game, generator_for
from synthoma.errors import SettingsError
from synthoma.gans import pggan
from synthoma.gans.hybrid import DEMO, PRESETS, Hybrid, HybridConfig, look_error
from synthoma.nn.conditions import draw_looks, lesion_looks

SMALL = HybridConfig(**GROWING | FEATURES | {"projected_from": 101})


def fresh(config: HybridConfig = SMALL) -> Hybrid:
    torch.manual_seed(0)
    return Hybrid(config).train()


def turn_at(step: int, player: str) -> pggan.Turn:
    return pggan.Turn(step, 0, generator_for(0, step, player, 0), {})


def test_the_first_part_is_the_game_of_cpggan_with_looks_behind_the_boxes():
    gan, step = fresh(), 90
    batch = serve(gan.request(step), step, 0)
    looks = lesion_looks(batch["image"], batch["boxes"], batch["box_case"])
    side = batch["image"].shape[-1]
    condition = draw_looks(batch["boxes"], looks, batch["box_case"], images=8, side_px=side)
    ours = gan.losses("critic", batch, turn_at(step, "critic"))
    nets = gan.generator, gan.critic
    plain = pggan.play(SMALL, nets, "critic", turn_at(step, "critic"), batch["image"], condition)
    assert ours.keys() == plain.keys()
    for name, loss in ours.items():
        assert torch.equal(loss, plain[name])


def test_the_players_change_where_the_second_part_begins_and_nowhere_else():
    gan = fresh()
    assert [p.name for p in gan.players(100)] == ["critic", "generator"]
    assert [p.name for p in gan.players(101)] == ["heads", "generator"]
    assert gan.stage(100) != gan.stage(101) == gan.stage(500)


def test_fresh_heads_play_alone_before_the_generator_moves():
    gan = fresh()
    game = Game(gan, short(200), 0, torch.device("cpu"))
    game.step = 100
    game.deal(100)

    def moved() -> bool:
        before = [p.detach().clone() for p in gan.generator.parameters()]
        terms, _ = game.make_step(serve)
        assert "heads/adversarial" in terms
        return any(
            not torch.equal(p, b) for p, b in zip(gan.generator.parameters(), before, strict=True)
        )

    assert [moved() for _ in range(4)] == [False, False, True, True]  # head_start is 2


def test_rates_of_the_second_part_fall_to_a_tenth():
    heads, generator = fresh().players(101)
    assert heads.rate(101, 201) == 1
    assert heads.rate(201, 201) == pytest.approx(0.1)
    assert generator.rate(102, 201) == 0
    assert generator.rate(201, 201) == pytest.approx(0.1)


def test_heads_learn_that_a_real_image_beside_wrong_boxes_is_a_fake():
    gan = fresh()
    terms = gan.losses("heads", serve(gan.request(150), 150, 0), turn_at(150, "heads"))
    assert terms.keys() == {"adversarial", "mismatched"}


def test_a_generator_that_repeats_itself_pays_more():
    gan = fresh()
    with torch.no_grad():  # deaf to its noise
        gan.generator.first.weight.zero_()
    batch = serve(gan.request(150), 150, 0)
    deaf = gan.losses("generator", batch, turn_at(150, "generator"))["diversity"]
    listening = fresh().losses("generator", batch, turn_at(150, "generator"))["diversity"]
    assert deaf > 10 * listening


def test_the_look_error_is_zero_where_looks_are_as_ordered():
    image = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    boxes, case = torch.tensor([[4.0, 4, 12, 12]]).repeat(4, 1), torch.arange(4)
    looks = lesion_looks(image, boxes, case)
    twice = image[:2].repeat(2, 1, 1, 1)
    assert look_error(twice, (boxes, looks, case), 2) == pytest.approx(0, abs=1e-6)
    assert look_error(twice, (boxes, looks + 0.5, case), 2) == pytest.approx(0.5, abs=1e-5)


def test_frozen_features_are_no_part_of_the_model():
    names = {name.split(".")[0] for name in fresh().state_dict()}
    assert names == {"generator", "critic", "heads", "step"}


def test_samples_need_boxes_and_looks():
    gan = fresh()
    noise = torch.zeros(1, 16)
    with pytest.raises(SettingsError, match="it needs boxes"):
        gan.sample(noise)
    given = {"boxes": torch.tensor([[1.0, 1, 4, 4]]), "box_case": torch.tensor([1])}
    with pytest.raises(SettingsError, match="images 1 to 1"):
        gan.sample(noise, given | {"looks": torch.zeros(1, 2)})


def test_an_odd_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size 7 is odd"):
        HybridConfig(batch_size=7)


@pytest.mark.parametrize("preset", [*PRESETS.values(), DEMO])
def test_every_preset_is_grown_before_its_second_part(preset):
    config = preset.system
    assert pggan.phase(config, config.projected_from) == (config.side_px, 1.0)
    assert config.projected_from < preset.train.steps
