"""What systems of two domains share: which domain is which, and that their images fit together."""

from collections.abc import Mapping

from synthoma.data.batches import Pool
from synthoma.errors import DataError

#: "real" is what images shall look like, "source" is where images come from.
DOMAINS = ("real", "source")

#: The other domain of each.
OTHER = {"real": "source", "source": "real"}


def channels_of(pools: Mapping[str, Pool]) -> int:
    """How many channels the images of both domains have.

    Raises:
        DataError: There is one domain only, or they differ; the message names both folders.
    """
    if "source" not in pools:
        raise DataError(
            f"{pools['real'].datasets[0].folder}: a refiner needs a second domain, the images to "
            "refine; give their folder with --source"
        )
    real, source = (pools[domain].datasets[0] for domain in DOMAINS)
    channels = {d.folder: int(d.values(0).shape[0]) for d in (real, source)}
    if len(set(channels.values())) > 1:
        raise DataError(
            f"{real.folder} has images of {channels[real.folder]} channels, but {source.folder} of "
            f"{channels[source.folder]}; prepare both alike (`synthoma data prepare`)"
        )
    return channels[real.folder]
