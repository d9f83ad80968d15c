"""What refining did to images: how far they went, whether shape was kept, whether texture is new.

Shape is what is left of an image when blocks of pixels are averaged, sixteen along each side;
texture is what is lost by that.
"""

import numpy as np
from jaxtyping import Float

#: Blocks along each side.
BLOCKS = 16


def changes(
    source: Float[np.ndarray, "n c y x"], refined: Float[np.ndarray, "n c y x"]
) -> dict[str, Float[np.ndarray, " n"]]:
    """Of each image:

    - "distance": the mean absolute difference of pixels,
    - "shape": the correlation of block means, 1 where shape is kept (0 for an even image),
    - "texture": what is new of the texture, from 0 (the same) to 1 (nothing in common).

    Example:
        >>> flat = np.zeros((1, 1, 32, 32)); flat[..., :16] = 1
        >>> striped = flat + 0.1 * (-1.0) ** np.arange(32)
        >>> {name: round(float(value[0]), 3) for name, value in changes(flat, striped).items()}
        {'distance': 0.1, 'shape': 1.0, 'texture': 1.0}
    """
    (coarse, fine), (new_coarse, new_fine) = parts(source), parts(refined)
    length = np.linalg.norm(fine, axis=1) + np.linalg.norm(new_fine, axis=1)
    return {
        "distance": np.abs(refined - source).reshape(len(source), -1).mean(axis=1),
        "shape": correlation(coarse, new_coarse),
        "texture": np.linalg.norm(new_fine - fine, axis=1) / np.maximum(length, 1e-6),
    }


def parts(
    image: Float[np.ndarray, "n c y x"],
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n m"]]:
    """Block means, and what pixels have beside them; rows and columns left over are not seen."""
    n, c, height, width = image.shape
    tall, wide = max(1, height // BLOCKS), max(1, width // BLOCKS)
    seen = image[:, :, : height // tall * tall, : width // wide * wide].astype(np.float64)
    blocks = seen.reshape(n, c, height // tall, tall, width // wide, wide)
    means = blocks.mean(axis=(3, 5), keepdims=True)
    return means.reshape(n, -1), (blocks - means).reshape(n, -1)


def correlation(
    a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " n"]:
    """Pearson's, of each row."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(lengths, 1e-12)
