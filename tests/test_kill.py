"""A PGGAN run that is really killed, with SIGKILL, and resumed ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from synthoma.gans.pggan import PRESETS, stage
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains

#: 4, 8 and 16 px in 48 steps.
TINY = {
    "system.side_px": 16,
    "system.widest": 8,
    "system.noise_dim": 8,
    "system.batch_size": 4,
    "system.stable_images": 40,
    "system.fade_images": 36,
    "train.steps": 48,
    "train.log_every": 1,
    "train.checkpoint_every": 5,
    "train.keep_checkpoints": 99,
    "train.sample_every": 24,
    "train.threads": 1,
}


def command(*words):
    return [sys.executable, "-m", "synthoma.cli", *map(str, words)]


def settings():
    return [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]


def train_words(data, out):
    return command("train", "pggan", "--preset", "smoke", "--data", data, "--out", out, *settings())


def last_step(run):
    path = run / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def kill_at(words, run, step):
    """Start a process and SIGKILL it as soon as its log has reached a step."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while last_step(run) < step:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def content(run):
    """Every file that a user could compare; times of day and durations are not results."""
    kept = {
        str(path.relative_to(run)): path.read_bytes()
        for folder in ("checkpoints", "samples")
        for path in sorted((run / folder).iterdir())
    }
    kept["model"] = (run / "model.safetensors").read_bytes() + (run / "model.json").read_bytes()
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept["log"] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return kept


def growth_steps():
    config = PRESETS["smoke"].system.model_copy(
        update={k.removeprefix("system."): v for k, v in TINY.items() if k.startswith("system.")}
    )
    steps = range(2, TINY["train.steps"] + 1)
    return [step for step in steps if stage(config, step) != stage(config, step - 1)]


@pytest.mark.slow
def test_a_run_killed_at_three_moments_and_resumed_ends_in_the_bytes_of_an_uninterrupted_one(
    tmp_path,
):
    data = tmp_path / "brains"
    write_brains(data, BrainConfig(side_px=32, patients=6, slices_per_patient=3), seed=0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(train_words(data, whole), check=True, capture_output=True)

    growth = growth_steps()
    assert len(growth) == 4  # 8 px fades in, is stable, 16 px fades in, is stable
    resume = command("train", "--resume", broken)
    kill_at(train_words(data, broken), broken, 3)  # before the first checkpoint
    kill_at(resume, broken, growth[0] - 1)  # the next step grows
    kill_at(resume, broken, growth[2])  # just grown
    done = subprocess.run(resume, check=True, capture_output=True, text=True)
    assert f"{TINY['train.steps']} steps" in done.stdout

    first, second = content(whole), content(broken)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == second[name], f"{name} differs"

    again = subprocess.run(resume, check=True, capture_output=True, text=True)
    assert again.returncode == 0
    assert content(broken) == second, "resuming a finished run changed it"
