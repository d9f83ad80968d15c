"""Each verb as a person types it: what it prints, what it leaves, how it exits."""

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from synthoma import __version__
from synthoma.data.dataset import Dataset
from synthoma.zoo import SYSTEMS


def synthoma(*words, expect=0, timeout=300):
    done = subprocess.run(
        [sys.executable, "-m", "synthoma.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == expect, f"exit {done.returncode}: {done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "brains"
    synthoma("data", "phantoms", "--out", folder, "--patients", 10, "--slices", 3, "--side-px", 32)
    return folder


def test_python_runs_the_package_as_its_command():
    done = subprocess.run(
        [sys.executable, "-m", "synthoma", "zoo"], capture_output=True, text=True, check=True
    )
    assert done.stdout == synthoma("zoo").stdout


def test_help_names_every_verb():
    text = synthoma("--help").stdout
    for verb in ("demo", "data", "train", "sample", "evaluate", "augment", "zoo", "config"):
        assert verb in text


def test_show_counts_and_draws_a_sheet(brains, tmp_path):
    done = synthoma("data", "show", brains, "--out", tmp_path / "sheet.png", "--n", 5)
    assert "30 cases (0 synthetic), 2D" in done.stdout
    assert "train: 7 patients, 21 cases" in done.stdout
    assert "images: 32 x 32 px (y, x), 1 channel" in done.stdout
    dataset = Dataset.open(brains)
    n = [len(dataset.split(name).where(label="tumour")) for name in ("train", "validation", "test")]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  tumour ")]
    assert [int(word) for word in line.split() if word.isdecimal()] == [*n, sum(n)]
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    again = synthoma("data", "show", brains, "--out", tmp_path / "sheet.png", expect=2)
    assert "nothing is overwritten" in again.stderr


def test_split_with_another_seed_is_another_split_of_the_same_cases(brains, tmp_path):
    synthoma("data", "split", brains, "--seed", 3, "--out", tmp_path / "again")
    before, after = Dataset.open(brains), Dataset.open(tmp_path / "again")
    assert before.splits != after.splits
    assert sorted(before.patients) == sorted(after.patients)
    assert len(after) == 30


def test_prepare_brings_images_to_a_side_and_takes_settings(brains, tmp_path):
    out = tmp_path / "prepared"
    words = ("data", "prepare", brains, "--side-px", 16, "--set", "prepare.crop=false")
    synthoma(*words, "--out", out)
    assert Dataset.open(out)[0].image.values.shape == (1, 16, 16)
    wrong = synthoma(
        "data", "prepare", brains, "--set", "prepare.sid=1", "--out", tmp_path / "x", expect=2
    )
    assert "prepare.sid: there is no setting 'sid'" in wrong.stderr
    assert "side_px" in wrong.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("format", ["csv", "coco", "yolo", "voc", "nifti", "folder"])
def test_export_and_import_again(brains, tmp_path, format):
    synthoma("data", "export", brains, "--format", format, "--out", tmp_path / "files")
    synthoma("data", "import", tmp_path / "files", "--format", format, "--out", tmp_path / "back")
    before, after = Dataset.open(brains), Dataset.open(tmp_path / "back")
    assert len(before) == len(after)


def test_import_tells_of_labels_that_are_not_there(brains, tmp_path):
    synthoma("data", "export", brains, "--format", "csv", "--out", tmp_path / "files")
    for name in ("synthoma.json", "synthoma.jsonl"):  # they would know the labels
        (tmp_path / "files" / name).unlink()
    table = tmp_path / "files" / "cases.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    seen = {}  # by image: every other one has a label
    for row in rows[1:]:
        seen.setdefault(row[0], len(seen))
    for column in ("label", "class"):
        lines = [f"image,{column}"]
        lines += [f"{name},{'odd' if number % 2 else ''}" for name, number in seen.items()]
        table.write_text("\n".join(lines))
        words = ("data", "import", table, "--format", "csv", "--out", tmp_path / column)
        said = synthoma(*words).stdout.splitlines()
        without = 15 if column == "label" else 30
        assert f"{without} of 30 cases have no label" in said
        hint = "noted: columns not used: class; --map label=class if it names the class"
        assert (hint in said) == (column == "class")
        assert said[0].startswith("30 cases, boxes not annotated, ")


@pytest.mark.parametrize("name", [*SYSTEMS, "prepare", "csv", "nifti"])
def test_config_prints_yaml_that_the_verbs_take(name, tmp_path):
    text = synthoma("config", name).stdout
    settings = yaml.safe_load(text)
    assert settings
    if name in SYSTEMS:
        assert set(settings) == {"system", "train"}
        assert settings["train"]["steps"] >= 1


def test_zoo_lists_every_system_with_its_presets():
    text = synthoma("zoo").stdout
    for name in SYSTEMS:
        assert name in text
    presets = [line.split(": ")[1] for line in text.splitlines() if "presets: " in line]
    assert len(presets) == len(SYSTEMS)
    assert all({"paper", "small", "smoke"} <= set(line.split(", ")) for line in presets)


def test_the_version_needs_no_verb():
    assert synthoma("--version").stdout.strip() == __version__


def test_doctor_tells_versions_and_devices():
    text = synthoma("doctor").stdout
    assert "torch" in text
    assert "reproducible" in text


TWO_LABELS = ("--where", "label=a", "--where", "label=b")


def test_what_is_wrong_is_said_in_one_line_with_the_right_exit_code(brains, tmp_path):
    out = tmp_path / "never"
    cases = [
        (("train", "cpgan", "--data", brains, "--out", out), 2, "cpggan"),
        (("train", "cpggan", "--data", tmp_path / "no", "--out", out), 3, "not a dataset folder"),
        (("train", "cpggan", "--data", brains, "--out", out, "--preset", "tiny"), 2, "smoke"),
        (
            ("train", "cpggan", "--data", brains, "--out", out, "--set", "train.stepz=3"),
            2,
            "train.stepz: there is no setting 'stepz'; did you mean steps? There are: steps, ",
        ),
        (
            ("train", "cpggan", "--data", brains, "--out", out, "--where", "label=glioma"),
            3,
            "no case has label=glioma",
        ),
        (
            ("train", "cpggan", "--data", brains, "--out", out, *TWO_LABELS),
            2,
            "label=a was given before; allowed: one value a name",
        ),
        (
            ("data", "import", tmp_path, "--format", "csv", "--out", out, "--map", "image"),
            2,
            "allowed: --map NAME=COLUMN",
        ),
        (("train", "--resume", tmp_path), 3, "not a run folder"),
        (("sample", tmp_path, "--out", out), 3, "not a run folder"),
        (("augment", brains, "--out", out, "--scale", "huge"), 2, "smoke"),
        (("data", "import", tmp_path, "--format", "tiff", "--out", out), 2, "nifti"),
    ]
    for words, code, said in cases:
        done = synthoma(*words, expect=code)
        assert done.stderr.startswith("error: ")
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_interrupts_is_told_how_to_go_on(tmp_path, number):
    command = ["data", "phantoms", "--patients", "5000", "--out", str(tmp_path / "brains")]
    started = subprocess.Popen(
        [sys.executable, "-m", "synthoma.cli", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    while started.poll() is None and not list(tmp_path.iterdir()):  # until it draws
        time.sleep(0.05)
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130
    assert said.endswith("interrupted; what was begun goes on with --resume\n")
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "synthoma.cli", "data", "show", str(tmp_path), "--debug"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" in done.stderr
    assert done.returncode == 1


GAN = {
    "system.side_px": 16,
    "system.widest": 8,
    "system.noise_dim": 8,
    "system.batch_size": 4,
    "system.stable_images": 16,
    "system.fade_images": 16,
    "train.steps": 24,
}


def as_options(settings):
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def test_train_stop_resume_sample_and_evaluate(brains, tmp_path):
    run = tmp_path / "gan"
    words = ("train", "cpggan", "--preset", "smoke", "--data", brains, "--out", run)
    done = synthoma(*words, *as_options(GAN), "--minutes", 0.01)
    if "time is up" in done.stdout:
        synthoma("train", "--resume", run)
    assert json.loads((run / "model.json").read_text())["step"] == 24
    assert list((run / "samples").glob("*.png"))
    assert (run / "log.jsonl").stat().st_size

    said = synthoma("sample", run, "--n", 6, "--seed", 4, "--out", tmp_path / "synthetic").stdout
    made = Dataset.open(tmp_path / "synthetic")
    assert len(made) == 6
    nearest = made.about["copy_check"]["threshold"]
    assert said.splitlines()[-1] == (
        f"0 copies of training images left out; compared with 21, a copy is nearer than {nearest:g}"
    )
    told = synthoma("evaluate", run, "--data", brains, expect=2).stderr
    assert f"{run}: cpggan is neither a detector nor a classifier" in told
    text = synthoma("data", "show", tmp_path / "synthetic").stdout
    assert "6 cases (6 synthetic)" in text

    detector = tmp_path / "detector"
    words = ("train", "yolov3", "--preset", "smoke", "--data", brains, "--out", detector)
    mixed = ("--with", tmp_path / "synthetic", "--ratio", 0.25)
    synthoma(*words, *mixed, "--set", "train.steps=3", "--set", "system.side_px=64")
    text = synthoma("evaluate", detector, "--data", brains).stdout
    assert "Sensitivity at IoU 0.25" in text
    assert "2 patients" in text
    again = synthoma(*words, expect=2)
    assert "train --resume" in again.stderr
