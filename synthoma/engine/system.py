"""The contract between the training loop and everything that it trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from synthoma.data.batches import Batch, Request

__all__ = [
    "GAN",
    "Batch",
    "Classifier",
    "Condition",
    "Detections",
    "Detector",
    "Losses",
    "Player",
    "Refiner",
    "Request",
    "System",
    "Turn",
]

#: What a GAN may be told, and under which names `sample` is given it:
#:   "boxes"       where lesions lie: "boxes" (m, 4 | 6) and "box_case" (m,)
#:   "looks"       how each looks: "looks" (m, 2), see `nn/conditions.py`
#:   "background"  the real image that lesions are painted into: "image" (n, c, *space)
#:   "label"       the class of each image: "label" (n,)
#:   "traits"      the traits that its requests name, each (n,) by its name
Condition = Literal["boxes", "looks", "background", "label", "traits"]

#: Named loss terms. The engine minimises their sum and logs each under its name.
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Player:
    """Weights that move together, and the optimiser that moves them."""

    name: str
    modules: tuple[nn.Module, ...]
    optimizer: torch.optim.Optimizer
    moves: int = 1
    """Moves per step."""
    rate: Callable[[int, int], float] = lambda step, steps: 1.0
    """Factor on the learning rate at a step of so many."""
    average: Callable[[int], float] | None = None
    """Decay of the moving average of the weights (EMA) at a step; None keeps no average."""


@dataclass
class Turn:
    """One move of one player (or one part of it, where gradients are accumulated)."""

    step: int
    """Counts from 1."""
    move: int
    generator: torch.Generator
    """Seeded by (seed, step, player, move, part), on the CPU: the only source of chance in
    `losses`. The global generator is seeded alike, for `nn.Dropout`."""
    shared: dict[str, Tensor] = field(default_factory=dict)
    """Emptied at each step: what a player leaves for the next, such as the fake images with
    their graph. The engine asks autograd for the moving player's weights alone, so a graph that
    reaches another player's weights is harmless; whoever backpropagates through shared graphs
    twice leaves a detached copy in the first turn."""


class System(nn.Module, ABC):
    """Anything that trains. Concrete systems are final: wrap one, never subclass it.

    Everything that a step depends on and that is not a function of (seed, step) is a parameter or
    a registered buffer, so that the checkpoint has it.
    """

    @abstractmethod
    def request(self, step: int) -> Request:
        """The batch that `step` wants; a pure function of `step`."""

    @abstractmethod
    def players(self, step: int) -> tuple[Player, ...]:
        """Who plays at `step`, in the order they move, with fresh optimisers; the same names at
        every step of one stage."""

    @abstractmethod
    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """The terms that `player` minimises. No backward, no step, no logging.

        Args:
            batch: What `request` asked for: "image", ..., or "real/image", "source/image", ...
                where it asked for several domains.
        """

    def after_move(self, player: str, batch: Batch, turn: Turn) -> None:
        """Called after each optimiser step, for weight clipping or a history buffer."""

    training_only: tuple[str, ...] = ()
    """Buffers that only training needs and that hold images: checkpoints have them, the model to
    share does not."""

    def stage(self, step: int) -> Hashable:
        """Where a schedule stands. When it changes, the engine deals fresh players."""
        return None

    def begin(self) -> None:
        """Called once before the first step of a run, to read pre-trained weights. A run that goes
        on and a trained system that is loaded have their own, and need no file but the run's."""


class GAN(System):
    """A `System` that also draws images."""

    noise_shape: tuple[int, ...]
    """Of one image's noise."""
    side_px: int
    """Side of the finished images."""
    dimensions: int = 2
    """3 where it draws volumes."""
    conditions: tuple[Condition, ...] = ()
    """What `sample` must be given."""

    @abstractmethod
    def sample(self, noise: Tensor, given: Batch | None = None) -> Tensor:
        """Images in [-1, 1], one for each row of `noise`; while a network still grows, smaller
        than `side_px`.

        Args:
            noise: (n, *noise_shape), standard normal.
            given: What the images shall show, as `conditions` says. Boxes are in pixels of the
                finished image, and looks go with them.
        """


class Refiner(System):
    """A `System` that makes images of one domain, "source", look like those of another, "real"."""

    side_px: int
    """Side of the images."""
    style_shape: tuple[int, ...] = ()
    """Of one image's style; empty where the image alone decides what becomes of it."""

    @abstractmethod
    def refine(self, image: Tensor, style: Tensor | None = None) -> Tensor:
        """The images, of the same shape and in [-1, 1], as the other domain would show them.

        Args:
            image: (n, c, side_px, side_px) of the source, in [-1, 1].
            style: (n, *style_shape), standard normal, where the system takes one.
        """


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, best first."""

    boxes: Tensor
    """(k, 4 | 6), ((z0,) y0, x0, (z1,) y1, x1) in pixels of the image it was given."""
    scores: Tensor
    """(k,) in [0, 1], falling."""
    labels: Tensor
    """(k,) int64: which of the data set's box labels."""


class Detector(System):
    """A `System` that finds boxes in images."""

    @abstractmethod
    def detect(self, image: Tensor, *, lowest_score: float = 0.001) -> list[Detections]:
        """What is found in each image (n, c, *space) in [-1, 1], from `lowest_score` up."""


class Classifier(System):
    """A `System` that says of which class an image is."""

    classes: tuple[str, ...]
    """Names of the classes, sorted, as batches number them."""
    positive: str = ""
    """Of two classes, the one that is looked for; empty: the last."""
    side_px: int
    """Side at which it looks at images."""

    @abstractmethod
    def classify(self, image: Tensor) -> Tensor:
        """Probabilities (n, k) of the classes, for images (n, c, *space) in [-1, 1]."""
