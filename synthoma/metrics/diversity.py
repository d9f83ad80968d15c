"""How different images of a set are from one another; a generator that repeats itself scores low.

Adherence alone cannot see collapse: a generator that draws one head again and again obeys best.
"""

import numpy as np
from jaxtyping import Float

#: Below this share of the real set's spread a set is called collapsed.
LEAST_SHARE = 0.6


def spread(values: Float[np.ndarray, "n *rest"]) -> float:
    """The standard deviation of each entry over the set, averaged over entries.

    Compare sets of equal size and kind: pixels of aligned images, or feature vectors.

    Example:
        >>> spread(np.array([[0.0, 1.0], [2.0, 1.0]]))
        0.5
    """
    return float(values.reshape(len(values), -1).std(axis=0).mean())


def collapsed(found: dict[str, float]) -> list[str]:
    """Which of the spreads "pixels", "features" are far below "real pixels", "real features".

    Example:
        >>> collapsed({"pixels": 0.1, "real pixels": 0.3, "features": 0.2, "real features": 0.25})
        ['pixels']
    """
    kinds = [kind for kind in ("pixels", "features") if kind in found]
    return [kind for kind in kinds if found[kind] < LEAST_SHARE * found[f"real {kind}"]]
