"""MedMNIST: its splits and classes come in, what lies is refused, exports come back."""

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from synthoma.data.case import Case, Image, Real, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError, LeakError
from synthoma.formats import medmnist, npz
from synthoma.formats.convert import ImportSummary, export_dataset, import_dataset
from synthoma.formats.medmnist import CLASSES, MedmnistSettings

COUNTS = {"train": 6, "val": 3, "test": 4}


def arrays(
    space: tuple[int, ...] = (7, 9), columns: int = 1, classes: int = 2
) -> dict[str, np.ndarray]:
    """A small set; every image differs."""
    rng = np.random.default_rng(0)
    made = {}
    for split, n in COUNTS.items():
        made[f"{split}_images"] = rng.integers(0, 256, (n, *space)).astype(np.uint8)
        labels = np.arange(n * columns).reshape(n, columns) % classes
        made[f"{split}_labels"] = labels.astype(np.uint8)
    return made


def save(path: Path, made: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **made)  # type: ignore[arg-type]
    return path


def read(source: Path, **fields: object) -> tuple[ImportSummary, Dataset]:
    out = source.parent / f"out-{len(list(source.parent.iterdir()))}"
    settings = MedmnistSettings.model_validate(fields)
    return import_dataset(source, out, format="medmnist", settings=settings), Dataset.open(out)


@pytest.mark.parametrize(
    ("space", "shape"),
    [((7, 9), (1, 7, 9)), ((7, 9, 3), (3, 7, 9)), ((5, 7, 9), (1, 5, 7, 9))],
    ids=["grey", "colour", "3D"],
)
def test_splits_labels_and_images_are_the_files_own(
    tmp_path: Path, space: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    made = arrays(space)
    summary, dataset = read(save(tmp_path / "pneumoniamnist.npz", made))
    assert (summary.n_cases, summary.patients_from) == (13, "one an image")
    assert summary.splits_from == "the source"
    assert dataset.about["value_range"] == (0.0, 255.0)
    for own, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        cases = list(dataset.split(name))
        assert [case.case_id for case in cases] == [f"{own}/{i:06}" for i in range(COUNTS[own])]
        for i, case in enumerate(cases):
            image = made[f"{own}_images"][i]
            expected = image.transpose(2, 0, 1) if len(shape) == 3 and shape[0] == 3 else image
            np.testing.assert_array_equal(case.image.values, expected.reshape(shape))
            assert case.label == ("normal", "pneumonia")[made[f"{own}_labels"][i, 0]]


def test_blocks_of_images_are_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a" / "x.npz", arrays())
    _, whole = read(path)
    monkeypatch.setattr(medmnist, "BLOCK_BYTES", 2 * 63)
    _, blocks = read(path)
    assert whole.about["digest"] == blocks.about["digest"]


def test_classes_come_by_setting_by_name_or_as_numbers(tmp_path: Path) -> None:
    made = arrays(classes=2)
    assert read(save(tmp_path / "a/other.npz", made))[1].labels == ["0", "1"]
    assert read(save(tmp_path / "b/breastmnist_224.npz", made))[1].labels == [
        "malignant", "normal, benign",
    ]  # fmt: skip
    given = read(save(tmp_path / "c/breastmnist.npz", made), classes=("cancer", "none"))
    assert given[1].labels == ["cancer", "none"]
    with pytest.raises(DataError, match="labels 0 to 1; classes"):
        read(tmp_path / "c/breastmnist.npz", classes=("cancer",))
    assert len(CLASSES) == 18
    assert {name: len(classes) for name, classes in CLASSES.items() if "organ" in name} == {
        "organamnist": 11, "organcmnist": 11, "organsmnist": 11, "organmnist3d": 11,
    }  # fmt: skip


def test_multi_label_sets_want_the_finding_that_is_the_label(tmp_path: Path) -> None:
    made = arrays(columns=14)
    path = save(tmp_path / "chestmnist.npz", made)
    with pytest.raises(DataError, match=r"multi-label, 14 columns.*atelectasis, cardiomegaly"):
        read(path)
    _, dataset = read(path, finding="mass")
    assert [case.label for case in dataset.split("train")] == [
        "mass" if row[4] else "no mass" for row in made["train_labels"]
    ]
    with pytest.raises(DataError, match="one label an image"):
        read(save(tmp_path / "b/pneumoniamnist.npz", arrays()), finding="mass")


def test_an_image_that_is_there_twice_is_a_leak_until_it_is_dropped(tmp_path: Path) -> None:
    made = arrays()
    made["train_images"][2] = made["test_images"][1]
    path = save(tmp_path / "x.npz", made)
    with pytest.raises(LeakError, match=r"train/000002 .* test/000001"):
        read(path)
    done = import_dataset(path, tmp_path / "out", format="medmnist", drop_duplicates=True)
    assert done.n_cases == 12
    assert len(Dataset.open(tmp_path / "out").split("test")) == 4  # the test images stay


def npy(shape: object, *, descr: str = "|u1", order: bool = False, data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape!r}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train_images", npy((6, 10**9, 10**9)), "declares"),
        ("train_images", npy((6, -7, 9)), "damaged"),
        ("train_images", npy((6, 7, 9), descr="|O", data=b"cos\nsystem\n(S'false'\ntR."), "pickle"),
        ("train_images", npy((6, 7, 9), order=True, data=bytes(378)), "Fortran"),
        ("train_images", npy((6, 7, 9), descr="<f4", data=bytes(4 * 378)), "allowed: uint8"),
        ("train_images", npy((378,), data=bytes(378)), "allowed: uint8"),
        ("train_images", npy((0, 0, 9)), "allowed: uint8"),
        ("train_images", npy((1, 8000, 8000)), "declares"),
        ("train_images", b"not numpy", "damaged"),
        ("train_labels", npy((5, 1), data=bytes(5)), "one row an image"),
        ("train_labels", npy((6, 1), descr="<f8", data=bytes(48)), "whole numbers"),
        ("train_labels", npy((6, 1), descr="|i1", data=b"\xff" * 6), "labels -1"),
        ("train_labels", None, "no array 'train_labels'"),
        ("classes", npy((2,), descr="<U1", data=b"\xff" * 8), "not text"),
        ("classes", npy((2,), descr="<U0"), "a list of text"),
    ],
)
def test_what_lies_or_is_no_medmnist_stops_the_import_with_its_name(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    good = save(tmp_path / "good.npz", arrays())
    path = tmp_path / "in" / "x.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            if member != f"{name}.npy":
                new.writestr(member, old.read(member))
        if content is not None:
            new.writestr(f"{name}.npy", content)
    start = time.monotonic()
    with pytest.raises(DataError, match=said) as error:
        read(path)
    assert time.monotonic() - start < 5
    assert "x.npz" in str(error.value)
    assert not list(path.parent.glob("out*"))


def test_a_zip_bomb_is_refused_before_it_is_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, n = tmp_path / "x.npz", 3000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", npy((n, 28, 28), data=bytes(n * 784)))
        archive.writestr("train_labels.npy", npy((n, 1), data=bytes(n)))
    monkeypatch.setattr(npz, "FREE_BYTES", 1 << 20)  # as if the file were 64 times as large
    with pytest.raises(DataError, match="would inflate to 23520"):
        read(path)


def test_other_files_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for content in (b"", b"PK", b"\0" * 100_000, b"PK\x05\x06" + b"\xff" * 18):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.npz: not a"):
            read(path)
    path.write_bytes(b"PK\x05\x06" + b"\0" * 8 + (1 << 30).to_bytes(4, "little") + b"\0" * 6)
    with pytest.raises(DataError, match="too many arrays"):
        read(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(DataError, match="train_images, train_labels"):
        read(path)
    (tmp_path / "two").mkdir()
    for name in "ab":
        save(tmp_path / "two" / f"{name}.npz", arrays())
    with pytest.raises(DataError, match=r"2 files end in \.npz"):
        read(tmp_path / "two")


@pytest.mark.parametrize("deflated", [True, False])
def test_of_a_damaged_array_nothing_is_read_and_one_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deflated: bool
) -> None:
    monkeypatch.setattr(medmnist, "BLOCK_BYTES", 2 * 6300)
    path = tmp_path / "in" / "x.npz"
    path.parent.mkdir()
    (np.savez_compressed if deflated else np.savez)(path, **arrays((70, 90)))  # type: ignore[arg-type]
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("train_images.npy").header_offset
    content = bytearray(path.read_bytes())
    content[start + 20_000] ^= 255  # in the fourth image; the checksum at the end tells
    path.write_bytes(content)
    summary, dataset = read(path)
    (error,) = summary.errors
    assert "x.npz: train_images: damaged or truncated" in error
    assert summary.dropped == {"unreadable": 1, "image in a damaged array": 6}
    assert sorted(case.case_id[:4] for case in dataset) == ["test"] * 4 + ["val/"] * 3


def test_images_may_not_be_larger_than_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medmnist, "LIMIT_IMAGE", 62)
    with pytest.raises(DataError, match="at most 4000000 images"):
        read(save(tmp_path / "x.npz", arrays()))


def make_dataset(folder: Path, *, channels: int = 1, sizes: tuple[int, ...] = (8,) * 6) -> Dataset:
    rng = np.random.default_rng(1)
    splits = {"train": ["p0", "p1"], "validation": [], "test": ["p2"]}
    with DatasetWriter(
        folder, patients_from="made up", value_range=(0.0, 255.0), splits=splits
    ) as writer:
        for i, side in enumerate(sizes):
            values = rng.integers(0, 256, (channels, side, 9)).astype(np.uint8)
            synthetic = Synthetic("run-7", 3, {}, ("p0", "p1"))
            origin = synthetic if i == 1 else Real("x.png")
            label = ("zebra", "ape")[i % 2]
            boxes = np.array([[1, 1, 3, 4]], np.float32)
            writer.add(Case(f"c{i}", f"p{i // 2}", Image(values), label=label, origin=origin,
                            boxes=boxes, traits={"number": i}))  # fmt: skip
    return Dataset.open(folder)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_exported_comes_back_and_numpy_reads_it(tmp_path: Path, channels: int) -> None:
    before = make_dataset(tmp_path / "d", channels=channels)
    done = export_dataset(before, tmp_path / "files", format="medmnist")
    assert done.noted == {"box left out: the format medmnist has none": 6}
    import_dataset(tmp_path / "files", tmp_path / "again", format="medmnist")
    after = {case.case_id: case for case in Dataset.open(tmp_path / "again")}
    assert Dataset.open(tmp_path / "again").splits == before.splits
    for case in before:
        same = after[case.case_id]
        np.testing.assert_array_equal(same.image.values, case.image.values)
        assert (same.label, same.patient_id, same.traits) == (
            case.label, case.patient_id, case.traits,
        )  # fmt: skip
        assert same.boxes is None
        if isinstance(case.origin, Synthetic):
            assert same.origin == case.origin
    with np.load(tmp_path / "files/medmnist.npz", allow_pickle=False) as file:
        assert file["train_images"].shape == ((4, 8, 9) if channels == 1 else (4, 8, 9, 3))
        assert file["val_images"].shape[0] == 0
        assert file["test_labels"].tolist() == [[1], [0]]
        assert file["classes"].tolist() == ["ape", "zebra"]
        assert file["train_runs"].tolist() == ["", "run-7", "", ""]
    export_dataset(before, tmp_path / "twice", format="medmnist")
    first, second = (tmp_path / n / "medmnist.npz" for n in ("files", "twice"))
    assert first.read_bytes() == second.read_bytes()


def test_a_synthetic_image_stays_synthetic_when_the_manifest_is_lost(tmp_path: Path) -> None:
    export_dataset(make_dataset(tmp_path / "d"), tmp_path / "files", format="medmnist")
    for name in ("synthoma.json", "synthoma.jsonl"):
        (tmp_path / "files" / name).unlink()
    _, dataset = read(tmp_path / "files")
    assert [case.origin.run for case in dataset if isinstance(case.origin, Synthetic)] == ["run-7"]
    assert dataset.labels == ["ape", "zebra"]


def test_what_medmnist_cannot_hold_is_not_exported(tmp_path: Path) -> None:
    odd = make_dataset(tmp_path / "odd", sizes=(8, 8, 8, 9, 8, 8))
    with pytest.raises(DataError, match=r"case 'c3'.*prepare"):
        export_dataset(odd, tmp_path / "files", format="medmnist")
    with DatasetWriter(tmp_path / "plain", patients_from="-") as writer:
        writer.add(Case("a", "a", Image(np.arange(16, dtype=np.uint8).reshape(1, 4, 4))))
    with pytest.raises(DataError, match="label"):
        export_dataset(Dataset.open(tmp_path / "plain"), tmp_path / "files", format="medmnist")
    assert not (tmp_path / "files").exists()


@pytest.mark.slow
def test_pneumoniamnist_is_read_as_published(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "pneumoniamnist"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    start = time.monotonic()
    done = import_dataset(source, tmp_path / "out", format="medmnist", drop_duplicates=True)
    assert time.monotonic() - start < 60
    dropped = done.dropped["the same image as an earlier patient's"]
    assert done.n_cases + dropped == 4708 + 524 + 624
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.labels == ["normal", "pneumonia"]
    with np.load(source / "pneumoniamnist.npz", allow_pickle=False) as file:
        for own, name in (("train", "train"), ("val", "validation"), ("test", "test")):
            cases, labels = dataset.split(name), file[f"{own}_labels"][:, 0]
            for i in (0, len(cases) // 2, len(cases) - 1):
                row = int(cases[i].case_id.split("/")[1])
                np.testing.assert_array_equal(cases.values(i)[0], file[f"{own}_images"][row])
                assert cases.label(i) == ("normal", "pneumonia")[labels[row]]
