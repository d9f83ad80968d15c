"""A game is right when the gradient of its losses points the right way."""

import pytest
import torch

from synthoma.nn.losses import (
    LEAST_SQUARES,
    NON_SATURATING,
    WASSERSTEIN,
    gradient_norms,
    gradient_penalty,
)


@pytest.mark.parametrize("game", [NON_SATURATING, LEAST_SQUARES, WASSERSTEIN])
def test_critic_raises_real_and_lowers_fake_while_the_generator_raises_fake(game):
    real, fake = torch.zeros(3, requires_grad=True), torch.full((3,), 0.5, requires_grad=True)
    d_real, d_fake = torch.autograd.grad(game.critic(real, fake), [real, fake])
    (g_fake,) = torch.autograd.grad(game.generator(fake), fake)
    assert (d_real < 0).all()
    assert (d_fake > 0).all()
    assert (g_fake < 0).all()


@pytest.mark.parametrize("space", [(6, 6), (4, 4, 4)])
def test_gradient_penalty_of_a_linear_critic_is_exact(space):
    """||grad|| of x -> w.x is ||w|| everywhere, whatever point between real and fake is drawn."""
    w = torch.randn(1, *space, dtype=torch.float64)
    real, fake = torch.randn(2, 5, 1, *space, dtype=torch.float64)
    penalty = gradient_penalty(lambda x: (x * w).flatten(1).sum(1), real, fake)
    assert penalty.item() == pytest.approx((w.norm().item() - 1) ** 2)


def test_gradient_norms_are_taken_between_the_real_and_the_fake_image_of_each_pair():
    """x -> |x|^2 / 2 has gradient x, so the norm says where x_hat was."""
    real, fake = torch.zeros(64, 1, 1, 1), torch.ones(64, 1, 1, 1)
    chance = torch.Generator().manual_seed(0)
    where = gradient_norms(lambda x: x.square().sum() / 2, real, fake, generator=chance)
    assert where.min() >= 0
    assert where.max() <= 1
    assert where.std() > 0.2  # a point for each image, not one for all
    again = torch.Generator().manual_seed(0)
    assert torch.equal(
        where, gradient_norms(lambda x: x.square().sum() / 2, real, fake, generator=again)
    )


def test_the_penalty_reaches_the_critic_and_not_the_fake_image():
    w = torch.tensor(3.0, requires_grad=True)
    fake = torch.ones(2, 1, 1, 1, requires_grad=True)
    penalty = gradient_penalty(lambda x: w * x, torch.zeros(2, 1, 1, 1), fake)
    (d_w,) = torch.autograd.grad(penalty, w)
    assert d_w.item() == pytest.approx(2 * (3 - 1))
