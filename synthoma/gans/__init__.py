"""Every GAN of the toolkit: the module of each, by the name that the command line uses.

To add one: write `gans/<name>.py` with a frozen config, a final `GAN`, and `SYSTEM`, `PRESETS`
and `fitted` (see `synthoma.zoo`), then add a line here and a line of small settings to the
contract tests.
"""

GANS: dict[str, str] = {
    "gan": "synthoma.gans.gan",
    "cgan": "synthoma.gans.cgan",
    "dcgan": "synthoma.gans.dcgan",
    "wgan": "synthoma.gans.wgan",
    "pggan": "synthoma.gans.pggan",
    "cpggan": "synthoma.gans.cpggan",
    "pix2pix": "synthoma.gans.pix2pix",
    "hybrid": "synthoma.gans.hybrid",
    "paint": "synthoma.gans.paint",
    "mcgan": "synthoma.gans.mcgan",
}

#: Every refiner: an image of one domain in, the same as another domain would show it out.
REFINERS: dict[str, str] = {
    "simgan": "synthoma.gans.simgan",
    "unit": "synthoma.gans.unit",
    "munit": "synthoma.gans.munit",
}
