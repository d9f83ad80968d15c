"""Curation by clusters: weird images are proposed to be dropped, a person has the last word."""

import csv
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import save_file

from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError, ResourceError, SettingsError
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.synthesis import clusters as clustering
from synthoma.synthesis.clusters import (
    ClusterSettings,
    check_some_kept,
    cluster,
    distances,
    divide,
    farthest_first,
    nothing_dropped,
    number_for,
    read_clusters,
)
from synthoma.synthesis.curate import (
    Decision,
    Decisions,
    curate,
    read_decisions,
    write_decisions,
)
from synthoma.synthesis.draw import all_to_train
from synthoma.synthesis.vectors import (
    Look,
    Manifold,
    common_side,
    extractor,
    nearest,
    write_vectors,
)
from synthoma.tasks import backbones

CPU = torch.device("cpu")
TINY = Look(side_px=32, batch=16)


def thumbnails(image):
    """Stands in for a network: 8 x 8 pixels, which begin at 0."""
    return torch.nn.functional.adaptive_avg_pool2d(image, 8).flatten(1) + 1


def write_drawn(folder, images, *, saw=("phantom-1",)):
    """A synthetic set of these images (n, c, y, x), named by their place."""
    with DatasetWriter(
        folder, patients_from="made", value_range=(0, 255), splits=all_to_train
    ) as writer:
        for i, values in enumerate(images):
            name = f"s{i:03}"
            origin = Synthetic("a-run", 0, {"index": i}, tuple(saw))
            boxes = np.array([[4, 4, 12, 12]], np.float32)
            writer.add(
                Case(name, name, Image(np.ascontiguousarray(values)), boxes=boxes, origin=origin)
            )
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clusters") / "brains"
    config = BrainConfig(side_px=64, patients=30, slices_per_patient=3)
    return write_brains(folder, config, seed=0)


@pytest.fixture(scope="module")
def planted(brains):
    """Slices of patients whom nobody has seen, and among them noise (6) and empty images (5)."""
    others = BrainConfig(side_px=64, patients=20, slices_per_patient=4, first_patient=500)
    fair = write_brains(brains.folder.parent / "others", others, seed=1)
    chance = np.random.default_rng(0)
    noise = chance.integers(0, 256, (6, 1, 64, 64), dtype=np.uint8)
    blank = chance.integers(0, 4, (5, 1, 64, 64), dtype=np.uint8)
    images = [case.image.values for case in fair] + [*noise, *blank]
    return write_drawn(brains.folder.parent / "planted", images)


@pytest.fixture(scope="module")
def look(brains, planted):
    """Their folder of clusters, by the packaged network."""
    folder = brains.folder.parent / "look"
    settings = ClusterSettings(look=Look(side_px=64), shown=12)
    made = cluster(planted, brains.split("train"), folder, settings, device="cpu")
    return folder, made


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- what is proposed --------------------------------------------------------------------------


def test_noise_and_empty_images_are_dropped_and_honest_ones_mostly_stay(look):
    _, made = look
    keep = [made.keep[f"s{i:03}"] for i in range(91)]
    assert not any(keep[80:])
    assert np.mean(keep[:80]) > 0.9


def test_the_farthest_cluster_comes_first_and_the_table_says_what_is_in_it(look):
    folder, made = look
    rows, images = table(folder / "clusters.csv"), table(folder / "images.csv")
    assert len(rows) == number_for(91) == 9
    far = [float(row["distance"]) for row in rows]
    assert far == sorted(far, reverse=True)
    assert sum(int(row["images"]) for row in rows) == len(images) == 91
    for row in rows:
        own = [float(i["distance"]) for i in images if i["cluster"] == row["cluster"]]
        assert len(own) == int(row["images"])
        assert np.mean(own) == pytest.approx(float(row["distance"]), abs=2e-4)
        assert row["keep"] == row["proposed"] == ("yes" if float(row["distance"]) <= 2 else "no")
    assert [image["case_id"] for image in images] == [row.case_id for row in made.rows]


def test_sheets_show_every_cluster_and_say_that_it_is_synthetic(look):
    folder, _ = look
    assert len(list(folder.glob("cluster-*.png"))) == len(table(folder / "clusters.csv"))
    for name in ("index.png", "cluster-000.png"):
        picture = Picture.open(folder / name)
        assert picture.text["Synthetic"] == "yes"
        assert np.asarray(picture).max() == 255  # the title is white
    assert not list(folder.glob("*.f32"))  # the vectors are gone


def test_the_sheet_begins_with_the_image_nearest_to_the_centre(brains, tmp_path):
    ramp = np.arange(0, 200, 2, dtype=np.uint8)[:, None, None, None]
    grey = write_drawn(tmp_path / "grey", np.tile(ramp, (1, 1, 32, 32)))
    label, off = np.zeros(100, np.int64), np.arange(100, 0, -1).astype(np.float32)
    found = [clustering.Cluster(0, 100, 1.0, True, True)]
    clustering.draw_sheets(tmp_path, grey, found, label, off, shown=3)
    sheet = np.asarray(Picture.open(tmp_path / "cluster-000.png"))[18:]
    assert [int(sheet[5, 5 + 98 * k, 0]) for k in range(3)] == [198, 196, 194]


# --- a person has the last word ----------------------------------------------------------------


def test_what_a_person_changes_in_the_table_holds_and_is_recorded(look, planted, tmp_path):
    folder, made = look
    copy = tmp_path / "look"
    copy.mkdir()
    for name in ("clusters.csv", "images.csv", "clusters.json"):
        (copy / name).write_bytes((folder / name).read_bytes())
    assert read_clusters(copy, planted) == made
    first, *_ = table(copy / "clusters.csv")
    assert first["keep"] == "no"
    text = (copy / "clusters.csv").read_text()
    line = next(line for line in text.splitlines() if line.startswith("0,"))
    (copy / "clusters.csv").write_text(text.replace(line, line.removesuffix("no") + "Yes"))
    changed = read_clusters(copy, planted)
    back = {row.case_id for row in changed.rows if row.rule == "person"}
    assert len(back) == int(first["images"])
    assert all(changed.keep[name] and not made.keep[name] for name in back)

    write_decisions(changed, tmp_path / "new" / "decisions.csv")  # and it replays
    again = read_decisions(tmp_path / "new" / "decisions.csv")
    assert again == changed
    kept = curate(planted, again, tmp_path / "kept")
    assert {case.case_id for case in kept} == {r.case_id for r in changed.rows if r.keep}
    assert kept.about["curated"]["rules"]["person"] == len(back)
    assert "refused by clusters at distance 2" in kept.about["dropped"]


def test_who_decided_is_who_the_images_have_seen(look, brains, planted, tmp_path):
    _, made = look
    assert set(made.saw) == set(brains.splits["train"])
    kept = curate(planted, made, tmp_path / "kept")
    assert set(kept.generators_saw["a-run"]) == {"phantom-1", *brains.splits["train"]}


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("clusters.csv", ",no\n", ",perhaps\n", "row 2: keep is 'perhaps'; allowed: yes, no"),
        ("clusters.csv", "cluster,", "number,", "column 'cluster' must be there once"),
        ("clusters.csv", "\n1,", "\n0,", "row 3: cluster 0 is there twice"),
        ("clusters.csv", "\n1,", "\nx,", r"clusters\.csv: row 3: cluster is 'x'; allowed: a whole"),
        ("clusters.csv", "\n1,", "\n0.5,", "row 3: cluster is '0.5'; allowed: a whole number"),
        ("clusters.csv", "\n1,", "\n-1,", "row 3: cluster is '-1'; allowed: a whole number"),
        ("images.csv", "\ns001,", "\ns000,", r"images\.csv: row 3: case_id 's000' is there twice"),
        ("images.csv", "case_id,", "case,", "column 'case_id' must be there once"),
        ("clusters.json", '"saw"', '"seen"', "saw, digest or settings.most is damaged"),
    ],
)
def test_a_damaged_folder_is_refused_by_file_and_row(
    look, planted, tmp_path, name, old, new, message
):
    for own in ("clusters.csv", "images.csv", "clusters.json"):
        text = (look[0] / own).read_text()
        (tmp_path / own).write_text(text.replace(old, new, 1) if own == name else text)
    with pytest.raises(DataError, match=message):
        read_clusters(tmp_path, planted)
    with pytest.raises(DataError, match="not a folder of clusters"):
        read_clusters(tmp_path / "nowhere", planted)


def test_a_table_without_a_cluster_of_the_images_is_what_is_blamed(look, planted, tmp_path):
    folder, made = look
    for name in ("clusters.csv", "images.csv", "clusters.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    head, *rows = (folder / "clusters.csv").read_text().splitlines()
    n = [row.split(",")[1] for row in rows]

    def told(lines):
        (tmp_path / "clusters.csv").write_text("\n".join([head, *lines]))
        with pytest.raises(DataError) as error:
            read_clusters(tmp_path, planted)
        return str(error.value)

    beginning = f"{tmp_path / 'clusters.csv'}: no row is of cluster "
    said = told([rows[0], *rows[2:]])
    assert said.startswith(f"{beginning}1, in which images.csv has {n[1]} images; allowed: ")
    said = told([rows[0], "77" + rows[1].removeprefix("1"), *rows[2:]])
    assert f"{n[1]} images; row 3 is of cluster 77, in which images.csv has no image; " in said
    said = told(rows[:3])  # six rows are gone
    assert said.startswith(f"{beginning}3, ")
    assert "; and 3 more; " in said
    spreadsheet = [f"{k}.0{row.removeprefix(str(k))}" for k, row in enumerate(rows)]
    (tmp_path / "clusters.csv").write_text("\n".join([head, *spreadsheet]))
    assert read_clusters(tmp_path, planted) == made


def test_clusters_of_another_set_are_said_to_be_that(look, planted, tmp_path):
    other = write_drawn(tmp_path / "other", np.zeros((3, 1, 64, 64), np.uint8))
    with pytest.raises(DataError) as told:
        read_clusters(look[0], other)
    said = str(told.value)
    assert said.startswith(f"{look[0]}: made of another set than {other.folder}: ")
    digests = [dataset.about["digest"][:12] for dataset in (planted, other)]
    assert f"{digests[0]} and images such as s000, not {digests[1]} and s000;" in said


def test_a_choice_of_nothing_says_what_to_change_and_a_choice_of_all_is_no_approval():
    def decided(*keep, rule="clusters at distance 2"):
        return Decisions(tuple(Decision(f"s{i}", k, rule) for i, k in enumerate(keep)))

    with pytest.raises(DataError) as told:
        check_some_kept(decided(False, False), Path("look"))
    said = str(told.value)
    for word in ("look/clusters.csv: ", "none of 2 images", "larger clusters.most", "index.png"):
        assert word in said
    check_some_kept(decided(False, True), Path("look"))
    assert nothing_dropped(decided(True, True))
    assert not nothing_dropped(decided(True, False))
    assert not nothing_dropped(decided(True, True, rule="person"))


# --- what is measured --------------------------------------------------------------------------


def test_a_distance_is_that_to_other_patients_over_what_is_honest():
    """On a line: two patients, each with two images; by hand."""
    points = np.array([[0.0], [1.0], [10.0], [12.0]], np.float32)
    manifold = Manifold.of(points, ["a", "a", "b", "b"], 1)
    assert manifold.honest == pytest.approx((10 + 9 + 9 + 11) / 4)
    far = manifold.distance(np.array([[-5.0], [11.0]], np.float32))
    assert far.tolist() == pytest.approx([5 / 9.75, 1 / 9.75])
    assert nearest(torch.zeros(1, 1), torch.from_numpy(points), 3).item() == 10
    with pytest.raises(DataError, match="needs 3 images of other patients"):
        Manifold.of(points, ["a", "a", "b", "b"], 3)
    with pytest.raises(DataError, match="all real images are the same"):
        Manifold.of(points * 0, ["a", "a", "b", "b"], 1)


def test_brightness_is_no_distance_but_direction_is(tmp_path, brains):
    """Vectors have length 1; the pixel values of an empty image are in none."""
    images = np.stack([np.full((1, 32, 32), v, np.uint8) for v in (0, 20, 200)])
    made = write_vectors(
        write_drawn(tmp_path / "grey", images),
        thumbnails,
        tmp_path / "vectors",
        stored_px=32,
        look=TINY,
        device=CPU,
    )
    assert np.linalg.norm(made, axis=1).tolist() == pytest.approx([0, 1, 1])
    np.testing.assert_allclose(made[1], made[2], atol=1e-6)


def test_resolution_tells_nothing(brains, tmp_path):
    """The same slices at twice the side look the same: both are brought to the smaller side."""
    fine = [c.image.values for c in brains.split("train")][:8]
    large = write_drawn(tmp_path / "large", [v.repeat(2, 1).repeat(2, 2) for v in fine])
    small = write_drawn(tmp_path / "small", fine)
    assert common_side(large, small) == 64
    made = [
        write_vectors(
            s, thumbnails, tmp_path / s.folder.name / "v", stored_px=64, look=TINY, device=CPU
        )
        for s in (large, small)
    ]
    np.testing.assert_array_equal(made[0], made[1])


def test_groups_that_lie_apart_become_clusters():
    chance = np.random.default_rng(0)
    vectors = chance.normal(0, 0.1, (400, 5)).astype(np.float32)
    vectors[:150] += 3
    vectors[390:] -= 3  # few are a cluster too
    label, centres = divide(vectors, 3, seed=0)
    assert [len(set(label[part])) for part in (slice(150), slice(150, 390), slice(390, 400))] == [
        1,
        1,
        1,
    ]
    assert len(set(label.tolist())) == 3
    _, off = distances(vectors, Manifold.of(vectors, ["a", "b"] * 200, 5), label, centres)
    assert off.max() < 1
    again, _ = divide(vectors, 3, seed=0)
    assert (again == label).all()


def test_images_that_are_all_alike_are_one_cluster():
    label, _ = divide(np.ones((30, 4), np.float32), 3, seed=0)
    named, found = farthest_first(label, np.full(30, 5, np.float32), most=2)
    assert set(named.tolist()) == {0}
    assert [(own.images, own.keep) for own in found] == [(30, False)]


# --- bounds and refusals -----------------------------------------------------------------------


def test_memory_does_not_grow_with_the_set(tmp_path, monkeypatch):
    """20,000 vectors of 512 numbers are 41 MB in the file; a tenth is ever in memory."""
    monkeypatch.setattr(clustering, "CHUNK", 256)
    monkeypatch.setattr(clustering, "SEEN", 128)
    n, d = 20_000, 512
    chance = np.random.default_rng(0)
    vectors = np.memmap(tmp_path / "vectors", np.float32, "w+", shape=(n, d))
    for k in range(0, n, 1000):
        vectors[k : k + 1000] = chance.normal(size=(1000, d))
    manifold = Manifold.of(np.array(vectors[:200]), ["a", "b"] * 100, 3)
    divide(vectors[:500], 3, seed=0)  # the imports
    tracemalloc.start()
    try:
        label, centres = divide(vectors, 20, seed=0)
        distances(vectors, manifold, label, centres)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(label) == n
    assert peak < vectors.nbytes / 10


def test_images_are_looked_at_a_batch_at_a_time(tmp_path):
    seen = []

    def extract(image):
        seen.append(len(image))
        return thumbnails(image)

    images = np.random.default_rng(0).integers(0, 256, (37, 1, 32, 32), dtype=np.uint8)
    drawn = write_drawn(tmp_path / "drawn", images)
    told = []
    made = write_vectors(
        drawn,
        extract,
        tmp_path / "vectors",
        stored_px=32,
        look=TINY,
        device=CPU,
        progress=lambda done, n: told.append((done, n)),
    )
    assert seen == [16, 16, 5]
    assert told == [(16, 37), (32, 37), (37, 37)]
    assert isinstance(made, np.memmap)
    assert made.shape == (37, 64)


def test_what_cannot_be_compared_is_refused(brains, planted, tmp_path):
    train, out = brains.split("train"), tmp_path / "look"
    with pytest.raises(DataError, match="only synthetic ones are curated"):
        cluster(train, train, out, ClusterSettings())
    with pytest.raises(DataError, match="the real ones are needed"):
        cluster(planted, planted, out, ClusterSettings())
    with pytest.raises(DataError, match="91 images for 92 clusters"):
        cluster(planted, train, out, ClusterSettings(number=92))
    coloured = write_drawn(tmp_path / "rgb", np.zeros((20, 3, 32, 32), np.uint8))
    with pytest.raises(DataError, match="3 and 1 channels cannot be compared"):
        cluster(coloured, train, out, ClusterSettings())
    with pytest.raises(DataError, match="no image to look at"):
        common_side(train.take(np.zeros(0, np.int64)))
    few = train.of_patients(train.patients[:1])
    with pytest.raises(DataError, match="3 real images of 1 patients"):
        cluster(planted, few, out, ClusterSettings(), extract=thumbnails)
    with pytest.raises(DataError, match="s000: its features are not finite"):
        cluster(planted, train, out, ClusterSettings(), extract=nan_of_drawn(train))
    assert not out.exists()
    out.mkdir()
    with pytest.raises(SettingsError, match="nothing is overwritten"):
        cluster(planted, train, out, ClusterSettings())


def nan_of_drawn(real):
    """Looks well at as many images as are real."""
    left = [len(real)]

    def extract(image):
        found = thumbnails(image)
        left[0] -= len(image)
        return found if left[0] >= 0 else found * torch.nan

    return extract


def test_weights_that_are_not_there_are_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ResourceError, match=r"densenet169: no .*downloads nothing by itself"):
        extractor(Look(backbone="densenet169"), 1, CPU)
    with pytest.raises(SettingsError, match="backbone 'densenet1'; allowed"):
        extractor(Look(backbone="densenet1"), 1, CPU)
    with pytest.raises(ValueError, match="no ImageNet weights of resnet18_3x3"):
        Look(backbone=backbones.SMALL_RESNET)
    with pytest.raises(DataError, match="4 channels"):
        extractor(Look(), 4, CPU)


def test_a_file_of_weights_is_looked_through(tmp_path):
    torch.manual_seed(0)
    before, network, d = backbones.make("resnet18", channels=1, width=64)
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    look = Look(backbone="resnet18", weights=tmp_path / "own.safetensors")
    image = torch.rand(2, 1, 32, 32) * 2 - 1
    made = extractor(look, 1, CPU)(image)
    assert made.shape == (2, d)
    assert not made.requires_grad
    torch.testing.assert_close(made, network.eval()(before(image)))


def test_few_images_have_few_clusters(brains, planted, tmp_path):
    assert [number_for(n) for n in (2, 19, 20, 39, 1999, 2000, 10**6)] == [
        2,
        2,
        2,
        3,
        199,
        200,
        200,
    ]
    few = planted.take(np.arange(12))
    made = cluster(
        few, brains.split("train"), tmp_path / "few", ClusterSettings(), extract=thumbnails
    )
    assert len(made.rows) == 12
    assert len(table(tmp_path / "few" / "clusters.csv")) == 2


def test_more_real_images_than_fit_are_drawn_from(brains, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(clustering, "REFERENCE", 40)
    settings = ClusterSettings(neighbours=2)
    for name in ("one", "two"):
        cluster(planted, brains.split("train"), tmp_path / name, settings, extract=thumbnails)
    facts = json.loads((tmp_path / "one" / "clusters.json").read_text())
    assert facts["real_images"] == 40
    for name in ("clusters.csv", "images.csv", "index.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    other = cluster(
        planted,
        brains.split("train"),
        tmp_path / "other",
        settings.model_copy(update={"seed": 1}),
        extract=thumbnails,
    )
    assert other.rows
    assert replace(other, saw=()) != read_clusters(tmp_path / "one", planted)
