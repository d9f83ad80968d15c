"""CPU seconds of 3D suppression and RoIAlign at the sizes of a 3D Faster R-CNN, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/boxes3d.py

2,000 boxes; 128 boxes of 7^3 bins from 64 channels of 20 x 22 x 28 cells (160 x 176 x 224 voxels).
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from synthoma.nn.boxes3d import nms, roi_align

SPACE = torch.tensor([160.0, 176.0, 224.0])


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the quickest of five, so that other jobs disturb little."""
    taken = []
    for _ in range(6):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken[1:])


def boxes(m: int, side: float, chance: torch.Generator) -> Tensor:
    """Of `side` voxels, give or take a half, with their middles anywhere."""
    middle = torch.rand(m, 3, generator=chance) * SPACE
    half = side * (0.5 + torch.rand(m, 3, generator=chance)) / 2
    return torch.cat([middle - half, middle + half], dim=1)


def main() -> None:
    torch.set_num_threads(1)
    chance = torch.Generator().manual_seed(0)
    for side in (12, 32, 64):
        drawn, scores = boxes(2000, side, chance), torch.rand(2000, generator=chance)
        kept = len(nms(drawn, scores, 0.3))
        taken = seconds(lambda drawn=drawn, scores=scores: nms(drawn, scores, 0.3))  # type: ignore[misc]
        print(f"suppression, boxes of {side} voxels, {kept} of 2000 stay: {taken:.3f} s")

    maps = torch.randn(1, 64, 20, 22, 28, generator=chance, requires_grad=True)
    image = torch.zeros(128, dtype=torch.int64)
    for side in (24, 64, 160):
        drawn = boxes(128, side, chance)

        def forward(drawn: Tensor = drawn) -> Tensor:
            return roi_align(maps, drawn, image, stride=(8.0, 8.0, 8.0))

        def both(forward: Callable[[], Tensor] = forward) -> None:
            maps.grad = None
            forward().sum().backward()

        print(
            f"RoIAlign, boxes of {side} voxels: forward {seconds(forward):.3f} s, "
            f"with gradients {seconds(both):.3f} s"
        )


if __name__ == "__main__":
    main()
