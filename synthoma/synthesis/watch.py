"""What a run shows while it trains.

A GAN's: a grid of samples, and how diverse they are. A refiner's: images and what it makes of each.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthoma.data.batches import Batch, Pool, Request, Server
from synthoma.data.sheet import contact_sheet, draw_boxes, to_bytes, write_png
from synthoma.engine.run import Run
from synthoma.engine.system import GAN, Refiner, System
from synthoma.engine.train import generator_for
from synthoma.metrics.diversity import spread
from synthoma.metrics.refining import changes
from synthoma.nn import features
from synthoma.nn.conditions import lesion_looks

#: Images that are drawn each time, from fixed noise and fixed orders, and how many are shown.
WATCHED, SHOWN = 64, 16


def pictures(
    system: System, run: Run, domains: Mapping[str, Pool], facts: Mapping[str, Any]
) -> Callable[[System, int], None] | None:
    """What writes the samples of a run; None for systems that make no images."""
    if isinstance(system, GAN):
        return sampler(run, domains, facts)
    return pairs(run, domains, facts) if isinstance(system, Refiner) else None


def pairs(
    run: Run, domains: Mapping[str, Pool], facts: Mapping[str, Any]
) -> Callable[[System, int], None]:
    """Writes samples/step-N.png, each image of the source with its refined one to its right, and
    logs what refining does to them: always the same images, and in the same styles."""

    def watch(system: System, step: int) -> None:
        if not isinstance(system, Refiner):
            raise AssertionError("only refiners refine")
        device = next(system.parameters()).device
        request = Request(SHOWN, system.side_px, domains=("source",))
        source = Server(dict(domains), seed=0, workers=1)(request, 1, 0)["image"]
        style = torch.randn(SHOWN, *system.style_shape, generator=generator_for(0, 0, "paint", 0))
        refined = system.refine(source.to(device), style.to(device) if system.style_shape else None)
        refined = refined.float().cpu()
        tiles = [
            draw_boxes(to_bytes(image, (-1, 1)), np.zeros((0, 4)), side_px=128)
            for pair in zip(source.numpy(), refined.numpy(), strict=True)
            for image in pair
        ]
        said = {"Synthetic": "yes", "Run": facts["id"], "Step": str(step)}
        write_png(run.samples / f"step-{step:08}.png", contact_sheet(tiles), said)
        found = changes(source.numpy(), refined.numpy())
        means = {name: round(float(values.mean()), 4) for name, values in found.items()}
        run.log({"step": step, "refining": means})

    return watch


def sampler(
    run: Run, domains: Mapping[str, Pool], facts: Mapping[str, Any]
) -> Callable[[System, int], None]:
    """Writes samples/step-N.png, with the boxes that were ordered, and logs the spread of pixels
    and features beside that of as many real images."""

    def watch(system: System, step: int) -> None:
        if not isinstance(system, GAN):
            raise AssertionError("only GANs draw")
        device = next(system.parameters()).device
        served = serve(system, domains, step)
        given = given_of(system, served)
        noise = torch.randn(WATCHED, *system.noise_shape, generator=generator_for(0, 0, "paint", 0))
        moved = {name: tensor.to(device) for name, tensor in given.items()} if given else None
        images = system.sample(noise.to(device), moved).float().cpu()
        factor = images.shape[-1] / system.side_px
        tiles = []
        for k, image in enumerate(images[:SHOWN].numpy()):
            boxes = np.zeros((0, 4))
            if given is not None and "boxes" in given:
                boxes = given["boxes"][given["box_case"] == k].numpy() * factor
            tiles.append(draw_boxes(to_bytes(slice_of(image), (-1, 1)), boxes, side_px=128))
        said = {"Synthetic": "yes", "Run": facts["id"], "Step": str(step)}
        write_png(run.samples / f"step-{step:08}.png", contact_sheet(tiles), said)
        real = served["image"]
        if images.ndim == 4:  # volumes have their side from the first step on
            real = torch.nn.functional.interpolate(
                real, images.shape[-2:], mode="bilinear", antialias=True
            )
        found = spreads(images) | {f"real {kind}": s for kind, s in spreads(real).items()}
        run.log({"step": step, "diversity": {kind: round(s, 4) for kind, s in found.items()}})

    return watch


def serve(system: GAN, domains: Mapping[str, Pool], step: int) -> Batch:
    """Fixed real cases at the finished side."""
    fields = tuple(dict.fromkeys(["image", *system.request(step).fields]))
    request = Request(WATCHED, system.side_px, fields, traits=system.request(step).traits)
    return Server(dict(domains), seed=0, workers=1)(request, 1, 0)


def given_of(system: GAN, real: Batch) -> Batch | None:
    """What a GAN is told so that it draws what these real images show."""
    given: Batch = {}
    if "boxes" in system.conditions:
        given |= {"boxes": real["boxes"], "box_case": real["box_case"]}
    if "looks" in system.conditions:
        given["looks"] = lesion_looks(real["image"], real["boxes"], real["box_case"])
    if "background" in system.conditions:
        given["image"] = real["image"]
    if "label" in system.conditions:
        given["label"] = real["label"]
    if "traits" in system.conditions:
        given |= {name: real[name] for name, _ in system.request(1).traits}
    return given or None


def slice_of(image: np.ndarray) -> np.ndarray:
    """An image; of a volume the slice in its middle."""
    return image if image.ndim == 3 else image[:, image.shape[1] // 2]


def spreads(image: Tensor) -> dict[str, float]:
    """Spread of pixels and, of grey or RGB slices, of frozen features."""
    found = {"pixels": spread(image.numpy())}
    if image.ndim == 4 and image.shape[1] in (1, 3):
        side_px = max(64, image.shape[-1])
        found["features"] = spread(features.vectors(image, side_px).numpy())
    return found
