"""README's commands, as they stand there, in an empty folder; sizes alone are made small."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
GAN = [
    "side_px=32",
    "widest=8",
    "base=64",
    "noise_dim=8",
    "batch_size=4",
    "stable_images=8",
    "fade_images=8",
]
DETECTOR = ["side_px=64", "test_side_px=64", "width=0.125"]
#: What is added to a command so that it takes seconds.
SMALLER = {
    "train cpggan": [f"system.{item}" for item in GAN] + ["train.steps=20"],
    "train yolov3": [f"system.{item}" for item in DETECTOR] + ["train.steps=3"],
    "augment brains": [f"hybrid.{item}" for item in [*GAN, "projected_from=18"]]
    + ["paint.side_px=32", "paint.batch_size=4"]
    + [f"detector.{item}" for item in DETECTOR]
    + ["hybrid_train.steps=20", "paint_train.steps=3", "detector_train.steps=3"],
}


def block_after(heading: str, language: str = "") -> str:
    """The first fenced block below a heading."""
    below = README[README.index(f"## {heading}") :]
    found = re.search(rf"```{language}\n(.*?)```", below, re.DOTALL)
    assert found is not None
    return found[1]


def commands(block: str) -> list[list[str]]:
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("synthoma ")]


def run(words: list[str], folder: Path) -> str:
    start = " ".join(words[1:3])
    more = [word for item in SMALLER.get(start, []) for word in ("--set", item)]
    done = subprocess.run(
        [sys.executable, "-m", "synthoma.cli", *words[1:], *more],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr[-1500:]}"
    return done.stdout


@pytest.mark.slow
def test_step_by_step_runs_as_written_and_so_do_its_lines_of_python(tmp_path):
    for words in commands(block_after("Step by step")):
        run([word if word != "64" else "32" for word in words], tmp_path)
    script = block_after("Step by step", "python").replace("n=500", "n=5")
    script += "assert case.image.values.shape == (1, 32, 32)\nassert case.boxes.shape[1] == 4\n"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


@pytest.mark.slow
def test_ones_own_data_runs_as_written(tmp_path):
    phantoms = ["data", "phantoms", "--patients", "12", "--slices", "3", "--side-px", "32"]
    run(["synthoma", *phantoms, "--out", "phantoms"], tmp_path)
    run(["synthoma", "data", "export", "phantoms", "--format", "csv", "--out", "csv"], tmp_path)
    for path in (tmp_path / "csv").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "cases.csv").rename(tmp_path / "slices.csv")
    for words in commands(block_after("On your own data")):
        run(words, tmp_path)
    assert (tmp_path / "runs" / "does-it-help" / "report.html").is_file()
    assert (tmp_path / "brains.png").is_file()
