"""Volumes: which way is up, where boxes lie in the world, and what is refused."""

import gzip
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from synthoma.data.batches import Pool
from synthoma.data.boxes import around
from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError, SettingsError
from synthoma.formats import volumes
from synthoma.formats.convert import export_dataset, import_dataset
from synthoma.formats.nifti import NiftiSettings
from synthoma.formats.pairs import pair
from synthoma.formats.volumes import percentiles, read_volume

#: A head of 10 x 12 x 8 voxels in RAS+ order, 1 x 2 x 3 mm, whose values are all different.
HEAD = np.arange(1, 10 * 12 * 8 + 1, dtype=np.int16).reshape(10, 12, 8)
RAS = np.diag([1.0, 2.0, 3.0, 1.0])
RAS[:3, 3] = (-5, -12, -7)


def save(path: Path, values: np.ndarray, affine: np.ndarray = RAS, codes: str = "RAS") -> None:
    """Write a RAS+ array with its axes stored in another order."""
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = apply_orientation(values, change)
    turned = affine @ inv_ornt_aff(change, values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(stored, turned), path)


def import_nifti(source: Path, **fields: object) -> Dataset:
    out = source.parent / f"{source.name}-{len(list(source.parent.iterdir()))}"
    settings = NiftiSettings.model_validate(fields)
    import_dataset(source, out, format="nifti", settings=settings)
    return Dataset.open(out)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SRP", "AIL", "PSR"])
@pytest.mark.parametrize(
    ("axis", "down", "right", "through"),
    [("axial", "P", "L", "S"), ("coronal", "I", "L", "P"), ("sagittal", "I", "P", "L")],
)
def test_slices_are_upright_however_the_file_stores_them(
    tmp_path: Path, codes: str, axis: str, down: str, right: str, through: str
) -> None:
    save(tmp_path / "in" / "head.nii.gz", HEAD, codes=codes)
    dataset = import_nifti(tmp_path / "in", axis=axis)
    case = dataset[2]
    assert (case.traits["axis"], case.traits["slice"]) == (axis, 2)
    assert case.image.affine is not None
    assert "".join(nibabel.aff2axcodes(case.image.affine)) == right + down + through
    inverse = np.linalg.inv(RAS)
    height, width = case.image.space
    for y, x in [(0, 0), (1, 3), (height - 1, width - 1)]:
        i, j, k = (round(float(v)) for v in (inverse @ case.image.affine @ (x, y, 0, 1))[:3])
        assert case.image.values[0, y, x] == HEAD[i, j, k]
    mm = {"R": 1.0, "L": 1.0, "A": 2.0, "P": 2.0, "S": 3.0, "I": 3.0}
    assert case.image.spacing_mm == (mm[down], mm[right])


def test_the_planes_of_a_whole_volume_are_its_axial_slices(tmp_path: Path) -> None:
    save(tmp_path / "in" / "head.nii", HEAD)
    (whole,) = import_nifti(tmp_path / "in", axis="volume")
    for case in import_nifti(tmp_path / "in", axis="axial"):
        np.testing.assert_array_equal(
            case.image.values[0], whole.image.values[0, case.traits["slice"]]
        )
    assert whole.image.spacing_mm == (3.0, 2.0, 1.0)
    assert whole.boxes is None
    assert whole.label is None


def test_whole_volumes_of_ct_are_ready_to_train_on_and_others_say_why_not(tmp_path: Path) -> None:
    save(tmp_path / "in" / "chest.nii", HEAD)
    ct = import_nifti(tmp_path / "in", axis="volume", unit="hu")
    assert ct.about["value_range"] == (-1000, 400)
    assert ct[0].image.unit == "hu"
    Pool([ct])
    with pytest.raises(DataError, match=r"only CT is known in volumes: .*nifti\.unit=hu"):
        Pool([import_nifti(tmp_path / "in", axis="volume")])
    with pytest.raises(DataError, match="run `synthoma data prepare`"):
        Pool([import_nifti(tmp_path / "in", unit="hu")])


def lesions() -> np.ndarray:
    """Two diagonal neighbours (one component), a voxel apart, and another value."""
    mask = np.zeros(HEAD.shape, np.uint8)
    mask[2, 3, 4] = mask[3, 4, 4] = 1
    mask[6:8, 8, 4] = 1
    mask[1, 1, 4] = 2
    return mask


def test_a_box_surrounds_each_component_of_the_mask(tmp_path: Path) -> None:
    save(tmp_path / "in" / "p1_t1ce.nii.gz", HEAD, codes="PSR")
    save(tmp_path / "in" / "p1_seg.nii.gz", lesions(), codes="PSR")
    dataset = import_nifti(tmp_path / "in", lesion_values=(1,))
    assert [case.label for case in dataset] == ["normal"] * 4 + ["tumour"] + ["normal"] * 3
    assert [len(case.boxes) for case in dataset] == [0, 0, 0, 0, 2, 0, 0, 0]
    case = dataset[4]
    assert (case.patient_id, case.traits["sequence"]) == ("p1", "T1c")
    # x grows to the left and y to the back: i = 9 - x, j = 11 - y.
    assert sorted(case.boxes.tolist()) == [[3, 2, 4, 4], [7, 6, 9, 8]]
    assert len(import_nifti(tmp_path / "in")[4].boxes) == 3
    assert len(import_nifti(tmp_path / "in", instances="values")[4].boxes) == 2
    assert len(import_nifti(tmp_path / "in", least_voxels=2)[4].boxes) == 2
    assert import_nifti(tmp_path / "in", label_with="yes", label_without="").labels == ["yes"]


def test_boxes_in_3d_surround_components_over_corners(tmp_path: Path) -> None:
    mask = np.zeros(HEAD.shape, np.uint8)
    mask[2, 3, 4] = mask[3, 4, 5] = 1
    save(tmp_path / "in" / "head.nii", HEAD)
    save(tmp_path / "in" / "head_mask.nii", mask)
    (case,) = import_nifti(tmp_path / "in", axis="volume")
    np.testing.assert_array_equal(case.boxes, around(mask[::-1, ::-1].T > 0))
    assert case.label == "tumour"


def test_values_outside_the_brain_become_0(tmp_path: Path) -> None:
    brain = np.zeros(HEAD.shape, np.uint8)
    brain[3:6, 3:6, 3:6] = 1
    save(tmp_path / "in" / "head.nii", HEAD)
    save(tmp_path / "in" / "head_brain_mask.nii", brain)
    dataset = import_nifti(tmp_path / "in")
    assert len(dataset) == 3
    assert all(case.boxes is None for case in dataset)
    assert np.count_nonzero(dataset[0].image.values) == 9


def test_slices_may_be_chosen_and_blank_ones_are_counted(tmp_path: Path) -> None:
    values = HEAD.copy()
    values[:, :, 3] = 7
    save(tmp_path / "in" / "head.nii", values)
    assert [c.traits["slice"] for c in import_nifti(tmp_path / "in")] == [0, 1, 2, 4, 5, 6, 7]
    dataset = import_nifti(tmp_path / "in", extent=(0.25, 0.75), every=2)
    assert [case.traits["slice"] for case in dataset] == [2, 4]
    assert import_nifti(tmp_path / "in").about["dropped"]["blank image"]["n"] == 1
    with pytest.raises(ValueError, match="extent"):
        NiftiSettings(extent=(0.5, 0.5))


@pytest.mark.parametrize(
    ("stored", "kept"),
    [("uint8", "uint8"), ("int8", "int16"), ("int16", "int16"), ("uint16", "uint16"),
     (">i2", "int16"), ("int32", "int16"), ("int64", "int16"), ("float32", "float32"),
     (">f4", "float32"), ("float64", "float32")],
)  # fmt: skip
def test_values_are_kept_exactly(tmp_path: Path, stored: str, kept: str) -> None:
    values = (np.arange(24).reshape(2, 3, 4) * 5).astype(stored)
    image = nibabel.Nifti1Image(values, RAS, dtype=values.dtype)
    if stored.startswith(">"):
        image = nibabel.Nifti1Image(values, RAS, nibabel.Nifti1Header(endianness=">"))
        image.header.set_data_dtype(values.dtype)
    nibabel.save(image, tmp_path / "a.nii")
    read = read_volume(tmp_path / "a.nii").values
    assert read.dtype == kept
    np.testing.assert_array_equal(read, values[::-1, ::-1].T)


def test_wide_whole_numbers_that_do_not_fit_become_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "PIECE", 5)
    values = np.arange(24, dtype=np.int32).reshape(2, 3, 4) * 3000
    nibabel.save(nibabel.Nifti1Image(values, RAS), tmp_path / "a.nii")
    read = read_volume(tmp_path / "a.nii").values
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values[::-1, ::-1].T)


def test_a_slope_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(HEAD, RAS)
    image.header.set_slope_inter(0.5, 10)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    nibabel.save(image, tmp_path / "b.nii")
    for name in ("a.nii", "b.nii"):
        expected = nibabel.load(tmp_path / name).get_fdata()[::-1, ::-1].T
        np.testing.assert_allclose(read_volume(tmp_path / name).values, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_percentiles_leave_out_the_background(dtype: type) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-50, 3000, (5, 6, 7)).astype(dtype)
    values[:2] = 0
    expected = np.percentile(values[values != 0], (1.0, 50.0, 99.0))
    np.testing.assert_allclose(percentiles(values, (1.0, 50.0, 99.0)), expected)
    assert percentiles(np.zeros((2, 2, 2), dtype), (1.0, 99.0)) == []


def test_whole_volumes_come_back_with_their_geometry_and_provenance(tmp_path: Path) -> None:
    save(tmp_path / "in" / "p1" / "t2.nii.gz", HEAD)
    save(tmp_path / "in" / "p1" / "mask.nii.gz", lesions())
    for axis in ("volume", "axial", "coronal", "sagittal"):
        before = import_nifti(tmp_path / "in", axis=axis)
        files, again = tmp_path / f"files-{axis}", tmp_path / f"again-{axis}"
        export_dataset(before, files, format="nifti")
        settings = NiftiSettings(axis="volume" if axis == "volume" else "axial")
        import_dataset(files, again, format="nifti", settings=settings)
        cases = {case.case_id: case for case in Dataset.open(again)}
        assert len(cases) == len(before)
        for case in before:
            same = cases[case.case_id]
            np.testing.assert_array_equal(same.image.values, case.image.values)
            np.testing.assert_allclose(same.image.affine, case.image.affine)
            assert same.image.spacing_mm == case.image.spacing_mm
            np.testing.assert_array_equal(same.boxes, case.boxes)
            assert (same.label, same.traits) == (case.label, case.traits)


def test_an_exported_volume_lies_where_the_original_lay(tmp_path: Path) -> None:
    save(tmp_path / "in" / "head.nii.gz", HEAD, codes="SRP")
    export_dataset(import_nifti(tmp_path / "in", axis="volume"), tmp_path / "files", format="nifti")
    written = nibabel.as_closest_canonical(nibabel.load(tmp_path / "files" / "head.nii.gz"))
    np.testing.assert_array_equal(np.asarray(written.dataobj), HEAD)
    np.testing.assert_allclose(written.affine, RAS)


def test_a_whole_volume_exported_with_boxes_can_be_cut_into_slices(tmp_path: Path) -> None:
    save(tmp_path / "in" / "head.nii.gz", HEAD)
    save(tmp_path / "in" / "head_mask.nii.gz", lesions())
    export_dataset(import_nifti(tmp_path / "in", axis="volume"), tmp_path / "files", format="nifti")
    dataset = import_nifti(tmp_path / "files", axis="axial")
    assert [len(case.boxes) for case in dataset] == [0, 0, 0, 0, 3, 0, 0, 0]


def test_a_synthetic_volume_says_so_in_its_sidecar(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", patients_from="-") as writer:
        image = Image(np.arange(64, dtype=np.float32).reshape(1, 4, 4, 4) / 9 - 1)
        writer.add(Case("a", "a", image, origin=Synthetic("run-7", 3, {}, ("p1",))))
    export_dataset(Dataset.open(tmp_path / "d"), tmp_path / "files", format="nifti")
    assert '"synthetic": "yes"' in (tmp_path / "files/a.json").read_text()
    header = nibabel.load(tmp_path / "files/a.nii.gz").header
    assert header["descrip"].item().startswith(b"synthetic")
    for name in ("synthoma.json", "synthoma.jsonl"):
        (tmp_path / "files" / name).unlink()
    (case,) = import_nifti(tmp_path / "files", axis="volume")
    assert isinstance(case.origin, Synthetic)
    np.testing.assert_array_equal(case.image.values, image.values)


def test_masks_are_found_by_pattern_and_by_habit() -> None:
    names = ["1/Pre_Scan_T1.nii.gz", "1/Pre_Mask.nii.gz", "1/Post_Scan_T1.nii.gz",
             "1/seg/mav.nii.gz", "2/t2.nii", "2/mask.nii"]  # fmt: skip
    found = {p.image: p.mask for p in pair(names)}
    assert found == {
        "1/Pre_Scan_T1.nii.gz": "1/Pre_Mask.nii.gz",
        "1/Post_Scan_T1.nii.gz": None,
        "1/seg/mav.nii.gz": None,
        "2/t2.nii": "2/mask.nii",
    }
    (first, *_) = pair(names, image="*/*_Scan_T1.nii.gz", mask="{1}/seg/{2}.nii")
    assert (first.image, first.mask) == ("1/Post_Scan_T1.nii.gz", "1/seg/Post.nii")
    (only,) = pair(names, image="**/mav.nii.gz", mask="{1}/{stem}_of_{folder}.nii")
    assert only.mask == "1/seg/mav_of_1/seg.nii"
    with pytest.raises(SettingsError, match=r"not a place; allowed: \{1\}"):
        pair(names, image="*/t2.nii", mask="{2}.nii")
    with pytest.raises(DataError, match="no file matches"):
        pair(names, image="*.mgz")
    assert "which is its mask" in pair(["x.nii", "x_seg.nii", "x_mask.nii"])[0].problem


def test_a_mask_that_does_not_fit_its_volume_names_both(tmp_path: Path) -> None:
    elsewhere = RAS.copy()
    elsewhere[0, 3] += 4
    for mask, affine, said in [
        (np.zeros((10, 12, 7), np.uint8), RAS, "of shape"),
        (np.zeros(HEAD.shape, np.uint8), elsewhere, "4 mm apart"),
        (np.full(HEAD.shape, 0.5, np.float32), RAS, "fractions"),
    ]:
        save(tmp_path / "in" / "head.nii", HEAD)
        save(tmp_path / "in" / "head_mask.nii", mask, affine)
        with pytest.raises(DataError, match=said) as error:
            import_nifti(tmp_path / "in")
        assert "head_mask.nii" in str(error.value)
    with pytest.raises(DataError, match="no such file"):
        import_nifti(tmp_path / "in", mask="{folder}/{stem}_gone.nii")


def broken(path: Path, **fields: object) -> None:
    """A file whose header says something else than its data."""
    content = bytearray(nibabel.Nifti1Image(HEAD, RAS).to_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else bytes(content))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dim": [3, 32000, 32000, 32000, 1, 1, 1, 1]}, "declares shape"),
        ({"dim": [3, 1000, 1000, 100, 1, 1, 1, 1]}, "truncated"),
        ({"dim": [3, -10, 12, 8, 1, 1, 1, 1]}, "shape|header"),
        ({"dim": [3, 0, 12, 8, 1, 1, 1, 1]}, "shape|header"),
        ({"dim": [99, 10, 12, 8, 1, 1, 1, 1]}, "header"),
        ({"dim": [4, 10, 12, 4, 2, 1, 1, 1]}, "volume_index=0 to 1"),
        ({"datatype": 32, "bitpix": 64}, "complex64"),
        ({"datatype": 128, "bitpix": 24}, "RGB"),
        ({"datatype": 1536, "bitpix": 128}, "data code 1536"),
        ({"datatype": 77}, "header"),
        ({"vox_offset": 3e9}, "header"),
        ({"vox_offset": np.nan}, "header"),
        ({"srow_x": [np.nan] * 4}, "affine"),
        ({"srow_x": [0] * 4}, "affine"),
        ({"magic": b"ni1"}, "not NIfTI in one file"),
        ({"magic": b"abc"}, "not NIfTI"),
        ({"intent_code": 3001}, "CIFTI"),
        ({"srow_x": [1e30] * 4}, "affine"),
    ],
)
def test_a_broken_header_is_one_clear_error(
    tmp_path: Path, name: str, fields: dict[str, object], said: str
) -> None:
    broken(tmp_path / name, **fields)
    start = time.monotonic()
    with pytest.raises(DataError, match=said) as error:
        read_volume(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert time.monotonic() - start < 1


def test_values_that_are_not_numbers_are_counted(tmp_path: Path) -> None:
    values = HEAD.astype(np.float32)
    values[0, :2, 0] = (np.nan, np.inf)
    nibabel.save(nibabel.Nifti1Image(values, RAS), tmp_path / "a.nii")
    with pytest.raises(DataError, match="2 of 960 values"):
        read_volume(tmp_path / "a.nii")


def test_a_bomb_is_not_inflated_beyond_what_it_declares(tmp_path: Path) -> None:
    content = nibabel.Nifti1Image(HEAD, RAS).to_bytes()
    with gzip.open(tmp_path / "a.nii.gz", "wb", compresslevel=9) as file:
        file.write(content)
        for _ in range(64):
            file.write(bytes(1 << 22))
    start = time.monotonic()
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").values, HEAD[::-1, ::-1].T)
    assert time.monotonic() - start < 0.5


def test_a_file_cut_or_changed_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("a.nii", "a.nii.gz"):
        broken(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for i in range(150):
            content = bytearray(whole[: int(rng.integers(0, len(whole)))] if i % 3 == 0 else whole)
            for place in rng.integers(0, min(max(len(content), 1), 352), 3 if content else 0):
                content[place] = int(rng.integers(0, 256))
            (tmp_path / name).write_bytes(content)
            try:
                volume = read_volume(tmp_path / name)
            except DataError as error:
                assert str(tmp_path / name) in str(error)  # noqa: PT017
            else:
                assert volume.values.ndim == 3


def test_the_oddities_are_one_error_each_and_the_rest_is_imported(
    real_data: Path, tmp_path: Path
) -> None:
    source = real_data / "nifti_oddities_nibabel"
    summary = import_dataset(source, tmp_path / "d", format="nifti")
    names = {case.traits["volume"] for case in Dataset.open(tmp_path / "d")}
    assert names == {"anatomical.nii", "reoriented_anat_moved.nii", "standard.nii.gz"}
    said = {message.split(": ")[0].rsplit("/", 1)[-1]: message for message in summary.errors}
    assert len(said) == len(summary.errors) == summary.dropped["unreadable"] == 15
    assert "153 of 1071 values are not finite" in said["resampled_anat_moved.nii"]
    assert "CIFTI" in said["row_major.dconn.nii"]
    assert "volume_index=0 to 19" in said["functional.nii"]
    for name in ("0.dcm", "test.mgz", "tiny.mnc", "nifti1.hdr", "bad_datatype+orig.HEAD"):
        assert "not NIfTI; allowed: .nii, .nii.gz" in said[name]
    more = import_dataset(
        source, tmp_path / "e", format="nifti", settings=NiftiSettings(volume_index=0)
    )
    assert len(more.errors) == 12


def test_the_progression_volumes_give_tumours_and_normal_slices(
    real_data: Path, tmp_path: Path
) -> None:
    summary = import_dataset(real_data / "brain_progression_tcia", tmp_path / "d", format="nifti")
    dataset = Dataset.open(tmp_path / "d")
    assert (summary.n_cases, summary.n_patients) == (160, 4)
    assert summary.dropped["blank image"] == 32
    assert (len(dataset.where(label="tumour")), len(dataset.where(label="normal"))) == (59, 101)


def test_four_sequences_of_one_patient_share_its_mask(real_data: Path, tmp_path: Path) -> None:
    settings = NiftiSettings(
        image="*/sri24/*_bet.nii.gz", mask="{1}/sri24/auto_segmentation/mav.nii.gz"
    )
    source = real_data / "brain_tcga_lgg_multiseq"
    summary = import_dataset(source, tmp_path / "d", format="nifti", settings=settings)
    dataset = Dataset.open(tmp_path / "d")
    assert summary.n_patients == 1
    assert {case.traits["sequence"] for case in dataset} == {"T1", "T1c", "T2", "FLAIR"}
    assert len({str(case.boxes.tolist()) for case in dataset if case.traits["slice"] == 100}) == 1
