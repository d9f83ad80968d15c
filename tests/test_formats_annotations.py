"""COCO, YOLO, VOC and class folders: their conventions, and what is wrong in them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from synthoma.data.dataset import Dataset
from synthoma.errors import DataError
from synthoma.formats.convert import ImportSummary, import_dataset
from synthoma.formats.voc import VocSettings


def picture(path: Path, number: int = 0) -> None:
    """10 high, 20 wide, different for every number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (10, 20)).astype(np.uint8)
    Pillow.fromarray(values).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(folder: Path, format: str, **more: object) -> tuple[ImportSummary, Dataset]:
    out = folder.parent / f"{folder.name}-out-{len(list(folder.parent.iterdir()))}"
    summary = import_dataset(folder, out, format=format, **more)  # type: ignore[arg-type]
    return summary, Dataset.open(out)


# VOC


def voc(folder: Path, *objects: str, stem: str = "1", size: str = "") -> None:
    picture(folder / "JPEGImages" / f"{stem}.png", len(list(folder.rglob("*.png"))))
    text = f"<annotation>{size}{''.join(objects)}</annotation>"
    write(folder / "Annotations" / f"{stem}.xml", text)


def thing(x0: object, y0: object, x1: object, y1: object, more: str = "") -> str:
    box = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
    return f"<object><name>cell</name>{more}<bndbox>{box}</bndbox></object>"


def test_voc_counts_pixels_from_1_and_includes_both_edges(tmp_path: Path) -> None:
    voc(tmp_path / "v", thing(1, 1, 20, 10), thing(3, 4, 3, 4))
    _, (case,) = read(tmp_path / "v", "voc")
    assert case.boxes.tolist() == [[0, 0, 10, 20], [3, 2, 4, 3]]


def test_boxes_over_the_edge_are_cut_and_empty_ones_dropped_and_counted(tmp_path: Path) -> None:
    voc(
        tmp_path / "v",
        thing(15, 5, 40, 8),
        thing(30, 1, 40, 5),
        thing(6, 5, 5, 9),
        thing(2, 2, 4, 4),
    )
    summary, (case,) = read(tmp_path / "v", "voc")
    assert case.boxes.tolist() == [[4, 14, 8, 20], [1, 1, 4, 4]]
    assert case.box_labels == ("cell", "cell")
    assert summary.noted == {"box cut at the edge of its image": 1}
    assert summary.dropped == {"box empty or outside its image": 2}


def test_voc_lists_are_splits_and_unlisted_images_are_counted(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        voc(tmp_path / "v", stem=stem)
    write(tmp_path / "v/ImageSets/Main/train.txt", "a\n")
    write(tmp_path / "v/ImageSets/Main/val.txt", "b 1\n")
    summary, dataset = read(tmp_path / "v", "voc")
    assert [len(dataset.splits[name]) for name in ("train", "validation", "test")] == [1, 1, 0]
    assert summary.dropped == {"in no list of ImageSets/Main": 1}
    write(tmp_path / "v/ImageSets/Main/test.txt", "a\n")
    with pytest.raises(DataError, match="a is in train too"):
        read(tmp_path / "v", "voc")


def test_difficult_objects_may_be_left_out(tmp_path: Path) -> None:
    voc(tmp_path / "v", thing(1, 1, 5, 5, "<difficult>1</difficult>"), thing(2, 2, 6, 6))
    assert read(tmp_path / "v", "voc")[0].n_boxes == 2
    summary, _ = read(tmp_path / "v", "voc", settings=VocSettings(drop_difficult=True))
    assert (summary.n_boxes, summary.dropped) == (1, {"object marked as difficult": 1})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation>", "not XML"),
        ("<html></html>", "starts with <annotation>"),
        (f"<annotation>{thing(1, 2, 'x', 4)}</annotation>", "four numbers"),
        (f"<annotation>{thing(1, 2, 'inf', 4)}</annotation>", "not finite"),
        ("<annotation><object><name>a</name></object></annotation>", "four numbers"),
        ("<annotation><size><width>9</width><height>9</height></size></annotation>", "9 x 9"),
        ('<!DOCTYPE a [<!ENTITY b "b">]><annotation>&b;</annotation>', "refused"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation/>', "refused"),
        ("<a>" * 100_000, "not XML"),
        ("<annotation><filename>../../x.png</filename></annotation>", "no such file|refused|20"),
    ],
)
def test_a_broken_annotation_is_one_error_and_the_rest_is_read(
    tmp_path: Path, text: str, said: str
) -> None:
    voc(tmp_path / "v", thing(1, 1, 2, 2))
    voc(tmp_path / "v", stem="2")
    name = "3" if "filename" in text else "2"
    write(tmp_path / f"v/Annotations/{name}.xml", text)
    summary, dataset = read(tmp_path / "v", "voc")
    assert len(dataset) == (2 if name == "3" else 1)
    (message,) = summary.errors
    assert "refused" in message or f"{name}.xml" in message
    assert re.search(said, message)


def test_blood_cells_import_with_all_their_boxes(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "bccd_blood_cells"
    summary = import_dataset(source, tmp_path / "d", format="voc")
    assert (summary.n_cases, summary.n_boxes) == (60, 1093)
    assert not summary.errors
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.box_labels == ["Platelets", "RBC", "WBC"]
    assert dataset[0].image.values.shape == (3, 480, 640)


# COCO

MARK = {"image_id": 7, "category_id": 3}


def coco(folder: Path, **changes: object) -> None:
    for i in (1, 2):
        picture(folder / "images" / f"{i}.png", i)
    content = {
        "images": [{"id": 7, "file_name": "1.png", "width": 20, "height": 10},
                   {"id": 8, "file_name": "images/2.png"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [2.5, 1, 4, 5]},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            {"id": 3, "image_id": 99, "category_id": 3, "bbox": [0, 0, 9, 9]},
        ],
        "categories": [{"id": 3, "name": "cell"}],
    }  # fmt: skip
    write(folder / "annotations.json", json.dumps(content | changes))


def test_coco_boxes_are_corner_and_size(tmp_path: Path) -> None:
    coco(tmp_path / "c")
    summary, dataset = read(tmp_path / "c", "coco")
    one, two = dataset
    assert (one.boxes.tolist(), one.box_labels) == ([[1, 2.5, 6, 6.5]], ("cell",))
    assert two.boxes.shape == (0, 4)
    assert summary.dropped == {
        "annotation of a crowd": 1,
        "annotation of an image that is not listed": 1,
    }
    assert (
        import_dataset(tmp_path / "c/annotations.json", tmp_path / "o", format="coco").n_cases == 2
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 3}, "no list of images"),
        ({"images": [{"id": 1}]}, "images.0.file_name"),
        ({"images": [{"id": 7, "file_name": "1.png"}] * 2}, "two images have the id 7"),
        ({"categories": []}, "no category 3"),
        ({"annotations": [MARK | {"bbox": [1, 2, 3]}]}, "annotations.0.bbox"),
        ({"annotations": [MARK | {"bbox": [1, 2, 3, float("nan")]}]}, "annotations.0.bbox"),
    ],
)  # fmt: skip
def test_a_damaged_coco_table_names_the_entry(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    coco(tmp_path / "c", **changes)
    with pytest.raises(DataError, match=said.replace(".", r"\.")):
        read(tmp_path / "c", "coco")


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{", "\x00", "[1]", '{"images": 1e999}', "9" * 9999]
)
def test_what_is_not_coco_is_one_error(tmp_path: Path, text: str) -> None:
    write(tmp_path / "annotations.json", text)
    with pytest.raises(DataError, match=r"annotations\.json"):
        import_dataset(tmp_path, tmp_path / "out", format="coco")


def test_coco_reads_nothing_outside_its_folder(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png", 9)
    images = [{"id": 1, "file_name": "../secret.png"}, {"id": 2, "file_name": "1.png"},
              {"id": 3, "file_name": str(tmp_path / "secret.png")}]  # fmt: skip
    coco(tmp_path / "c", images=images, annotations=[])
    summary, dataset = read(tmp_path / "c", "coco")
    assert len(dataset) == 1
    assert len(summary.errors) == 2
    assert all("refused" in message for message in summary.errors)


def test_an_image_of_another_size_than_annotated_is_an_error(tmp_path: Path) -> None:
    coco(tmp_path / "c", images=[{"id": 7, "file_name": "1.png", "width": 10, "height": 20}])
    with pytest.raises(DataError, match="says 10 x 20 pixels, the image has 20 x 10"):
        read(tmp_path / "c", "coco")


# YOLO


@pytest.mark.parametrize("place", ["images/{}/1.png", "{}/images/1.png"])
def test_yolo_boxes_are_centre_and_size_as_fractions(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "y"
    for i, split in enumerate(("train", "val", "test")):
        picture(folder / place.format(split), i)
    label = place.format("train").replace("images", "labels").replace("png", "txt")
    write(folder / label, "1 0.5 0.5 0.5 0.2\n\n0 0.1 0.2 0.2 0.4\n")
    write(folder / "data.yaml", "path: ../elsewhere\nnames: {0: cyst, 1: tumour}\n")
    summary, dataset = read(folder, "yolo")
    assert summary.splits_from == "the source"
    (case,) = dataset.split("train")
    np.testing.assert_allclose(case.boxes, [[4, 5, 6, 15], [0, 0, 4, 4]], atol=1e-5)
    assert case.box_labels == ("tumour", "cyst")
    (case,) = dataset.split("validation")
    assert case.boxes.shape == (0, 4)


def test_yolo_classes_may_be_lines_or_have_no_names(tmp_path: Path) -> None:
    folder = tmp_path / "y"
    picture(folder / "images/1.png")
    write(folder / "labels/1.txt", "1 .5 .5 .5 .5\n")
    assert read(folder, "yolo")[1].box_labels == ["1"]
    write(folder / "labels/classes.txt", "cyst\ntumour\n")
    assert read(folder, "yolo")[1].box_labels == ["tumour"]
    write(folder / "data.yaml", "names: [a, b]\n")
    assert read(folder, "yolo")[1].box_labels == ["b"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 .5 .5 .5", "class cx cy width height"),
        ("0 .1 .1 .2 .2 .3 .3", "class cx cy width height"),
        ("a .5 .5 .5 .5", "class cx cy width height"),
        ("0 .5 .5 nan .5", "fractions"),
        ("0 300 200 50 50", "fractions"),
        ("5 .5 .5 .5 .5", "class 5; there are"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    picture(tmp_path / "y/images/1.png")
    write(tmp_path / "y/labels/1.txt", f"0 .5 .5 .1 .1\n{line}\n")
    write(tmp_path / "y/data.yaml", "names: [a]\n")
    with pytest.raises(DataError, match=rf"1\.txt, line 2: .*{said}"):
        read(tmp_path / "y", "yolo")


@pytest.mark.parametrize(
    "text", ["names: [", "a: !!python/object/apply:os.system [ls]", "names: {a: b}"]
)
def test_yaml_is_data_and_never_code(tmp_path: Path, text: str) -> None:
    picture(tmp_path / "y/images/1.png")
    write(tmp_path / "y/data.yaml", text)
    with pytest.raises(DataError, match=r"data\.yaml"):
        read(tmp_path / "y", "yolo")


# Folders of classes


def test_folders_are_classes_and_splits_are_above_them(tmp_path: Path) -> None:
    for i, name in enumerate(
        ["Train/a/1.png", "train/b/deeper/2.png", "val/a/3.png", "test/b/4.png"]
    ):
        picture(tmp_path / "f" / name, i)
    summary, dataset = read(tmp_path / "f", "folder")
    assert dataset.labels == ["a", "b"]
    assert [len(dataset.split(name)) for name in ("train", "validation", "test")] == [2, 1, 1]
    assert summary.splits_from == "the source"
    picture(tmp_path / "f" / "extra/5.png", 5)
    summary, dataset = read(tmp_path / "f", "folder")
    assert dataset.labels == ["Train", "extra", "test", "train", "val"]
    assert summary.splits_from.startswith("7:1:2")


def test_linked_folders_and_hidden_files_are_not_entered(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere/1.png", 1)
    picture(tmp_path / "f/a/2.png", 2)
    picture(tmp_path / "f/a/._2.png", 3)
    (tmp_path / "f/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "f/a/loop").symlink_to(tmp_path / "f")
    _, (case,) = read(tmp_path / "f", "folder")
    assert case.case_id == "a/2.png"
