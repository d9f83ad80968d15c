"""Tables: what a column means, and what a wrong table says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from synthoma.data.dataset import Dataset
from synthoma.errors import DataError, LeakError, SettingsError
from synthoma.formats.convert import ImportSummary, export_dataset, import_dataset

PIXELS = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)


def picture(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(PIXELS + number).save(path)


def import_table(folder: Path, text: str, n: int = 4, **more: object) -> ImportSummary:
    """Import a table of images 1.png, 2.png, … into folder/out."""
    for i in range(1, n + 1):
        picture(folder / f"{i}.png", i)
    (folder / "table.csv").write_text(text)
    return import_dataset(folder / "table.csv", folder / "out", format="csv", **more)  # type: ignore[arg-type]


def test_the_brain_slices_import_with_their_own_split_in_blocks_of_ids(
    real_data: Path, tmp_path: Path
) -> None:
    source = real_data / "brain_t1ce_cheng" / "slices.csv"
    mapping = {name: f"{name}_px" for name in ("x0", "y0", "x1", "y1")}
    summary = import_dataset(
        source, tmp_path / "d", format="csv", mapping=mapping, patient_block=13
    )
    assert (summary.n_cases, summary.n_boxes, summary.n_patients) == (1795, 1795, 153)
    assert (summary.patients_from, summary.splits_from) == ("blocks of 13 ids", "the source")
    assert not summary.errors
    assert not summary.dropped
    dataset = Dataset.open(tmp_path / "d")
    sizes = [len(dataset.split(name)) for name in ("train", "validation", "test")]
    assert sizes == [973, 180, 642]
    by_id = {case.case_id: case for case in dataset}
    case = by_id["images/2081.jpg"]
    assert case.patient_id == "block-00160"
    assert case.image.values.shape == (1, 512, 512)
    np.testing.assert_allclose(by_id["images/1.jpg"].boxes, [[176.6, 267.6, 253.7, 381.0]])
    assert dataset.about["value_range"] == (0, 255)


def test_several_rows_of_an_image_are_several_boxes_and_blanks_are_none(tmp_path: Path) -> None:
    import_table(
        tmp_path,
        "image,x0,y0,x1,y1,box_label\n1.png,1,2,3.5,4,solid\n2.png,,,,,\n1.png,5,6,7,8,ring\n",
    )
    one, two = Dataset.open(tmp_path / "out")
    np.testing.assert_array_equal(one.boxes, [[2, 1, 4, 3.5], [6, 5, 8, 7]])
    assert one.box_labels == ("solid", "ring")
    assert two.boxes.shape == (0, 4)


def test_a_table_without_boxes_knows_nothing_of_boxes(tmp_path: Path) -> None:
    import_table(tmp_path, "image;label\n1.png;a\n2.png;b\n")
    assert all(case.boxes is None for case in Dataset.open(tmp_path / "out"))


def test_columns_that_are_not_used_are_named_with_what_to_type(tmp_path: Path) -> None:
    for number, (header, row, hint) in enumerate([
        ("image,class", "a", "columns not used: class; --map label=class if it names the class"),
        ("image,kind", "a", "columns not used: kind; --map label=kind if it names the class"),
        ("image,age,Class,sex", "7,a,f",
         "columns not used: age, Class, sex; --map label=Class if it names the class"),
        ("image,age,sex", "7,f",
         "columns not used: age, sex; --map label=COLUMN if one of them names the class"),
        ("image,label,age", "a,7", "columns not used: age"),
    ]):  # fmt: skip
        summary = import_table(tmp_path / str(number), f"{header}\n1.png,{row}\n")
        assert summary.hints == (hint,)
    mapped = import_table(tmp_path / "m", "image,class\n1.png,a\n", mapping={"label": "class"})
    assert mapped.hints == ()
    assert mapped.n_labelled == 1


def test_a_set_that_was_exported_has_no_columns_to_tell_of(tmp_path: Path) -> None:
    import_table(tmp_path, "image,label,x0,y0,x1,y1\n1.png,a,1,2,3,4\n2.png,,,,,\n")
    export_dataset(Dataset.open(tmp_path / "out"), tmp_path / "files", format="csv")
    again = import_dataset(tmp_path / "files", tmp_path / "again", format="csv")
    assert again.hints == ()


def test_cases_with_a_label_and_with_annotated_boxes_are_counted(tmp_path: Path) -> None:
    picture(tmp_path / "some" / "copy.png", 1)
    table = "image,patient,label\n1.png,p,a\n2.png,p,\n3.png,q,b\n4.png,q,\ncopy.png,r,a\n"
    some = import_table(tmp_path / "some", table, drop_duplicates=True)
    assert (some.n_cases, some.n_labelled, some.n_boxed) == (4, 2, 0)
    none = import_table(tmp_path / "none", "image,x0,y0,x1,y1\n1.png,,,,\n2.png,1,2,3,4\n")
    assert (none.n_labelled, none.n_boxed, none.n_boxes) == (0, 2, 1)


def test_a_block_follows_the_id_and_not_the_row(tmp_path: Path) -> None:
    import_table(tmp_path, "image,slice_id\n4.png,0\n3.png,12\n2.png,13\n1.png,7\n",
                 mapping={"id": "slice_id"}, patient_block=13)  # fmt: skip
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.patient_ids == ["block-00000", "block-00001", "block-00000", "block-00000"]


def test_a_patient_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    with pytest.raises(LeakError, match="patient p is in two splits, train and test"):
        import_table(tmp_path, "image,patient,split\n1.png,p,train\n2.png,p,test\n")
    assert not (tmp_path / "out").exists()


def test_the_same_image_of_two_patients_is_a_leak_or_dropped(tmp_path: Path) -> None:
    picture(tmp_path / "copy.png", 1)
    table = "image,patient\n1.png,p\ncopy.png,q\n"
    with pytest.raises(LeakError, match="same image"):
        import_table(tmp_path, table)
    summary = import_table(tmp_path, table, drop_duplicates=True)
    assert (summary.n_cases, sum(summary.dropped.values())) == (1, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file\n1.png\n", "no column for image; columns are file"),
        ("image,x0,y0\n1.png,1,2\n", "no column for x1, y1"),
        ("image,split\n1.png,train\n1.png,test\n", r"row 3: 1.png has split 'test', but 'train'"),
        ("image,label\n1.png,a\n2.png,b\n1.png,b\n", r"row 4: 1.png has label 'b'"),
        ("image,split\n1.png,dev\n", "row 2: split 'dev'; allowed: train"),
        ("image,split\n1.png,train\n2.png,\n", "2.png has no split"),
        ("image,x0,y0,x1,y1\n1.png,1,2,3,\n", "row 2: box"),
        ("image,x0,y0,x1,y1\n1.png,1,2,3,nan\n", "not finite"),
        ("image,label\n1.png\n", "row 2: 1 cells"),
        ("image,image\n1.png,1.png\n", "two columns"),
        ("image,x0,y0,x1,y1,box_label\n1.png,1,1,2,2,a\n2.png,1,1,2,2,\n", "give all or none"),
        ("image\n", "no rows"),
        ("", "no column for image"),
    ],
)
def test_a_wrong_table_names_its_row(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        import_table(tmp_path, text)
    assert "table.csv" in str(error.value) or "2.png" in str(error.value)


def test_a_wrong_mapping_says_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="allowed names: image, id"):
        import_table(tmp_path, "image\n1.png\n", mapping={"picture": "image"})
    with pytest.raises(SettingsError, match="NAME=COLUMN, as --map image=filename; allowed names"):
        import_table(tmp_path, "filename\n1.png\n", mapping={"filename": "image"})
    with pytest.raises(SettingsError, match="NAME=COLUMN, as --map label=kind; allowed names"):
        import_table(tmp_path, "image,kind\n1.png,a\n", mapping={"kind": "label"})
    with pytest.raises(DataError, match="no column 'file'; columns are image"):
        import_table(tmp_path, "image\n1.png\n", mapping={"image": "file"})


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "link.png", "a/../../secret.png"])
def test_a_table_reads_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner"
    picture(tmp_path / "secret.png", 99)
    inner.mkdir()
    (inner / "link.png").symlink_to(tmp_path / "secret.png")
    summary = import_table(inner, f"image\n1.png\n{name}\n")
    assert summary.n_cases == 1
    (message,) = summary.errors
    assert "refused" in message
    assert name in message


def test_a_folder_with_two_tables_asks_which(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("image\n")
    with pytest.raises(DataError, match=r"found a\.csv, b\.csv"):
        import_dataset(tmp_path, tmp_path / "out", format="csv")


def test_binary_is_no_table(tmp_path: Path) -> None:
    for content in (b"\xff\xfe\x00\x01" * 100, b"image\n\x00\x00\n", b"image" + b"," * (1 << 21)):
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"t\.csv"):
            import_dataset(tmp_path / "t.csv", tmp_path / "out", format="csv")
