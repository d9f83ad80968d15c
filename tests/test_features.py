"""The frozen features are those of a network that knows photographs."""

import pytest
import torch
from sklearn.datasets import load_sample_image

from synthoma.errors import DataError
from synthoma.nn import features

CPU = torch.device("cpu")


def photograph(name: str) -> torch.Tensor:
    """(1, 3, 224, 224) in [-1, 1]."""
    values = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None].float()
    square = values[..., 100:640] if values.shape[-1] > 640 else values
    return torch.nn.functional.interpolate(square, (224, 224), mode="area") / 127.5 - 1


def test_the_packaged_weights_name_a_photograph_right():
    with torch.no_grad():
        logits = features.lite0(CPU)(features.prepared(photograph("china.jpg"), None))
    assert logits.argmax().item() == 442  # "bell cote": the roof of a temple


def test_maps_have_the_promised_channels_and_strides():
    found = features.maps(torch.zeros(2, 1, 64, 64), (4, 8, 16, 32))
    assert {s: tuple(m.shape) for s, m in found.items()} == {
        s: (2, features.CHANNELS[s], 64 // s, 64 // s) for s in (4, 8, 16, 32)
    }


def test_maps_lead_to_the_vectors():
    image = torch.rand(2, 1, 64, 64) * 2 - 1
    network = features.lite0(CPU)
    with torch.no_grad():
        last = network.bn2(network.conv_head(features.maps(image, (32,))[32]))
    torch.testing.assert_close(last.mean((2, 3)), features.vectors(image))


def test_gradients_reach_the_image_and_no_weight():
    image = torch.rand(1, 1, 64, 64).requires_grad_(True)
    sum(m.mean() for m in features.maps(image, (8, 32)).values()).backward()
    assert image.grad.abs().sum() > 0
    assert all(p.grad is None for p in features.lite0(CPU).parameters())


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="2 channels"):
        features.vectors(torch.zeros(1, 2, 64, 64))


def test_images_that_features_cannot_see_are_refused_before_training():
    features.check_channels(1)
    features.check_channels(3)
    with pytest.raises(DataError, match="4 channels"):
        features.check_channels(4)


def test_a_side_that_loses_a_map_is_refused():
    with pytest.raises(ValueError, match=r"no maps of strides \["):
        features.maps(torch.zeros(1, 1, 100, 100), (4, 8, 16, 32))
