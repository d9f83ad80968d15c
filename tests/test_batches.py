"""A batch is a function of (seed, request, step, move, part) and of nothing else."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthoma.data.batches import Batch, Pool, Request, Server, resize, signed_unit
from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.classic import Classic, augment
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError, SettingsError

SIDE = 16
FIELDS = ("image", "boxes", "label")


def dataset(
    out: Path,
    n: int,
    *,
    first: int = 1,
    box_labels: tuple[str, ...] = ("cyst", "solid"),
    shape: tuple[int, ...] = (1, SIDE, SIDE),
    **fields: Any,
) -> Dataset:
    """Case i is an image of value i, with i % 3 boxes; the box's corner says whose it is."""
    about = {"value_range": (0.0, 255.0)} | {k: v for k, v in fields.items() if k == "value_range"}
    own = {k: v for k, v in fields.items() if k != "value_range"}
    with DatasetWriter(out, patients_from="a test", **about) as writer:
        for i in range(first, first + n):
            values = np.full(shape, i, np.uint8)
            values[0, 0, 0] = 0 if i else 1
            boxes = np.array([[i / 8, j, i / 8 + 1, j + 2] for j in range(i % 3)], np.float32)
            case = {
                "case_id": f"c{i}",
                "patient_id": f"p{i}",
                "image": Image(values),
                "label": ("x", "y")[i % 2],
                "boxes": boxes.reshape(-1, 4),
                "box_labels": tuple((box_labels * 3)[: i % 3]),
            }
            writer.add(Case(**(case | own)))
    return Dataset.open(out)


@pytest.fixture
def pool(tmp_path) -> Pool:
    return Pool([dataset(tmp_path / "d", 10)])


def equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def numbers(batch: Batch) -> list[int]:
    """Which case each image is of."""
    return ((batch["image"][:, 0, 4, 4] + 1) * 127.5).round().int().tolist()


MOVED = Request(size=6, side_px=12, fields=FIELDS, augment=Classic(noise=0.1, least_visible=0))


def test_workers_call_order_and_prefetching_change_no_byte(pool):
    plain = Server({"real": pool}, seed=3, workers=1)
    calls = [(step, move) for step in (1, 2, 3, 50) for move in (0, 1)]
    wanted = {call: plain(MOVED, *call) for call in calls}
    busy = Server({"real": pool}, seed=3, workers=4)
    for call in reversed(calls):
        busy.prefetch(MOVED, *call)
        busy.prefetch(MOVED, *call)
    for call in calls:
        assert equal(busy(MOVED, *call), wanted[call])
        assert equal(busy(MOVED, *call), wanted[call])  # asked again, when nothing is prefetched
    assert not equal(wanted[1, 0], wanted[2, 0])
    assert not equal(wanted[1, 0], wanted[1, 1])
    assert not equal(Server({"real": pool}, seed=4)(MOVED, 1, 0), wanted[1, 0])


def test_a_caller_that_never_collects_does_not_fill_the_memory(pool):
    server = Server({"real": pool}, seed=0)
    for step in range(1, 100):
        server.prefetch(MOVED, step, 0)
    assert len(server.ahead) <= 8
    assert equal(server(MOVED, 99, 0), Server({"real": pool}, seed=0)(MOVED, 99, 0))


def test_an_error_while_prefetching_is_raised_when_the_batch_is_asked_for(pool):
    server = Server({"real": pool}, seed=0)
    wrong = Request(size=2, side_px=8, domains=("real", "source"))
    server.prefetch(wrong, 1, 0)
    with pytest.raises(
        DataError, match=r"'source' was asked for, but there is only real; .*--source"
    ):
        server(wrong, 1, 0)


@pytest.mark.parametrize("size", [1, 3, 10, 25])
def test_every_case_comes_once_a_round(pool, size):
    server = Server({"real": pool}, seed=0)
    request = Request(size=size, side_px=SIDE)
    steps = 20 if size < 10 else 4
    dealt = [n for step in range(1, steps + 1) for n in numbers(server(request, step, 0))]
    rounds = [dealt[k : k + 10] for k in range(0, len(dealt) - 9, 10)]
    assert all(sorted(cases) == list(range(1, 11)) for cases in rounds)
    assert len({tuple(cases) for cases in rounds}) == len(rounds)  # in another order each time


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_the_parts_of_a_batch_are_the_batch(pool, parts):
    """Gradient accumulation is a matter of memory alone: not even augmentation changes."""
    server = Server({"real": pool}, seed=0)
    whole = server(MOVED, 7, 1)
    split = Request(6, 12, FIELDS, MOVED.augment, parts=parts)
    pieces = [server(split, 7, 1, part) for part in range(parts)]
    for name in ("image", "label", "boxes", "box_class"):
        assert torch.equal(torch.cat([piece[name] for piece in pieces]), whole[name])
    cases = [piece["box_case"] + k * 6 // parts for k, piece in enumerate(pieces)]
    assert torch.equal(torch.cat(cases), whole["box_case"])


def test_the_order_and_the_augmentation_of_real_cases_stay_what_they_were(pool):
    """Published results depend on these seeds."""
    batch = Server({"real": pool}, seed=3)(MOVED, 2, 1)
    order = np.random.default_rng([3, 10, 1, 0]).permutation(10)[6:]  # the second batch of six
    order = [*order, *np.random.default_rng([3, 10, 1, 1]).permutation(10)[:2]]
    for k, i in enumerate(map(int, order)):
        values = signed_unit(pool.datasets[0].values(i), (0, 255))
        chance = np.random.default_rng([3, 2, 1, k, 1])
        image, boxes, _ = augment(
            values, pool.datasets[0].boxes(i), MOVED.augment, chance, side_px=12
        )
        np.testing.assert_array_equal(batch["image"][k].numpy(), image)
        np.testing.assert_array_equal(batch["boxes"][batch["box_case"] == k].numpy(), boxes)


def of(batch: Batch, domain: str) -> Batch:
    """One domain's fields, by their plain names."""
    start = f"{domain}/"
    return {k.removeprefix(start): v for k, v in batch.items() if k.startswith(start)}


@pytest.fixture
def both(pool, tmp_path) -> dict[str, Pool]:
    """Two domains of ten cases each."""
    return {"real": pool, "source": Pool([dataset(tmp_path / "s", 10, first=11)])}


BOTH = replace(MOVED, domains=("real", "source"))


def test_two_domains_are_dealt_each_in_full_under_their_names(both):
    batch = Server(both, seed=0)(replace(BOTH, augment=None), 1, 0)
    names = ("image", "boxes", "box_case", "box_class", "label")
    assert batch.keys() == {f"{d}/{name}" for d in both for name in names}
    for domain, cases in (("real", range(1, 11)), ("source", range(11, 21))):
        assert of(batch, domain)["image"].shape == (6, 1, 12, 12)
        assert len(set(numbers(of(batch, domain))) & set(cases)) == 6


@pytest.mark.parametrize("domain", ["real", "source"])
def test_a_domain_is_dealt_alike_alone_and_beside_another(both, tmp_path, domain):
    plain = Server({domain: both[domain]}, seed=3)
    other = {d: Pool([dataset(tmp_path / d, 4, first=31)]) for d in both}
    for pools in (both, other | {domain: both[domain]}):
        for order in (("real", "source"), ("source", "real")):
            served = Server(pools, seed=3)(replace(BOTH, domains=order), 5, 1)
            assert equal(of(served, domain), plain(replace(MOVED, domains=(domain,)), 5, 1))


def test_domains_of_equal_size_are_paired_anew_each_round(both):
    server = Server(both, seed=0)
    request = Request(10, SIDE, domains=("real", "source"))
    pairs = []
    for step in range(1, 21):  # each step is a round
        batch = server(request, step, 0)
        pairs.append([numbers(of(batch, d)) for d in both])
    assert all(sorted(own) == [*range(11, 21)] for _, own in pairs)
    same = sum(b - a == 10 for real, own in pairs for a, b in zip(real, own, strict=True))
    assert same < 50  # 20 by chance; 200 if they were dealt alike
    assert len({tuple(sorted(zip(real, own, strict=True))) for real, own in pairs}) == 20


def test_one_case_in_two_domains_is_augmented_apart(tmp_path):
    only = Pool([dataset(tmp_path / "d", 1)])
    batch = Server({"real": only, "source": only}, seed=0)(BOTH, 1, 0)
    for real, own in zip(batch["real/image"], batch["source/image"], strict=True):
        assert not torch.equal(real, own)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_the_parts_of_two_domains_are_their_batch_prefetched_or_not(both, parts):
    server = Server(both, seed=0)
    whole = server(BOTH, 7, 1)
    split = replace(BOTH, parts=parts)
    for part in range(parts):
        server.prefetch(split, 7, 1, part)
    assert len(server.ahead) == parts
    pieces = [server(split, 7, 1, part) for part in range(parts)]
    for domain in both:
        for name in ("image", "label", "boxes", "box_class"):
            key = f"{domain}/{name}"
            assert torch.equal(torch.cat([piece[key] for piece in pieces]), whole[key])
        key = f"{domain}/box_case"
        cases = [piece[key] + k * 6 // parts for k, piece in enumerate(pieces)]
        assert torch.equal(torch.cat(cases), whole[key])


def test_boxes_labels_and_classes_stay_with_their_image(pool):
    batch = Server({"real": pool}, seed=0)(Request(10, 2 * SIDE, FIELDS), 1, 0)
    cases = numbers(batch)
    assert batch["image"].shape == (10, 1, 32, 32)
    assert batch["image"].dtype == batch["boxes"].dtype == torch.float32
    assert [pool.labels[i] for i in batch["label"]] == [("x", "y")[n % 2] for n in cases]
    counts = Counter(batch["box_case"].tolist())
    assert [counts[k] for k in range(10)] == [n % 3 for n in cases]
    for box, k in zip(batch["boxes"], batch["box_case"].tolist(), strict=True):
        assert box[0].item() == pytest.approx(cases[k] / 8 * 2)  # at twice the side
    second = batch["boxes"][:, 1] == 2  # the second box of a case is the solid one
    assert [pool.box_labels[k] for k in batch["box_class"]] == [
        "solid" if is_second else "cyst" for is_second in second
    ]


def test_a_batch_without_any_box_has_empty_boxes_of_the_right_width(tmp_path):
    pool = Pool([dataset(tmp_path / "d", 1, first=3)])
    batch = Server({"real": pool}, seed=0)(Request(2, SIDE, FIELDS), 1, 0)
    assert batch["boxes"].shape == (0, 4)
    assert batch["box_case"].dtype == batch["box_class"].dtype == torch.int64


def test_datasets_with_other_classes_share_one_list_of_them(tmp_path):
    first = dataset(tmp_path / "a", 5, box_labels=("b", "d"))
    second = dataset(tmp_path / "b", 5, first=11, box_labels=("c", "a"))
    plain = dataset(tmp_path / "c", 1, first=21, boxes=None, box_labels=())
    pool = Pool([first, second, plain])
    assert pool.box_labels == ["a", "b", "c", "d"]
    batch = Server({"real": pool}, seed=0)(Request(len(pool), SIDE, FIELDS), 1, 0)
    cases = numbers(batch)
    assert sorted(cases) == [*range(1, 6), *range(11, 16), 21]
    for k, box, kind in zip(
        batch["box_case"].tolist(), batch["boxes"], batch["box_class"].tolist(), strict=True
    ):
        j = int(box[1].item())
        assert pool.box_labels[kind] == (("b", "d") if cases[k] < 11 else ("c", "a"))[j]


def test_the_class_of_a_box_goes_with_it_when_another_is_moved_out_of_the_image(tmp_path):
    boxes = np.array([[0, 0, 16, 1], [7, 7, 9, 9]], np.float32)
    data = dataset(tmp_path / "d", 1, first=2, boxes=boxes, box_labels=("a", "b"))
    shifts = Classic(
        flip_x=False, flip_y=False, rotate_degrees=0, shear=0, zoom=0, shift=0.3, least_visible=0.9
    )
    server = Server({"real": Pool([data])}, seed=0)
    batch = server(Request(40, SIDE, FIELDS, shifts), 1, 0)
    height = batch["boxes"][:, 2] - batch["boxes"][:, 0]
    assert torch.equal(batch["box_class"], (height < 5).long())
    assert 40 < len(height) < 80  # the box at the edge was dropped from some
    assert torch.equal(batch["box_case"][batch["box_class"] == 1], torch.arange(40))


def test_a_dataset_given_twice_is_dealt_twice_as_often(tmp_path):
    a, b = dataset(tmp_path / "a", 4), dataset(tmp_path / "b", 4, first=11)
    server = Server({"real": Pool([a, b, b])}, seed=0)
    dealt = [n for step in range(1, 5) for n in numbers(server(Request(6, SIDE), step, 0))]
    assert Counter(n > 10 for n in dealt) == {True: 16, False: 8}


def test_a_pool_knows_every_patient_that_was_seen_directly_or_by_a_generator(tmp_path):
    drawn = Synthetic("run", 0, {}, ("q1", "q2"))
    with DatasetWriter(tmp_path / "m", patients_from="", value_range=(0, 1)) as writer:
        writer.add(Case("r", "real-1", Image(np.eye(4, dtype=np.uint8)[None])))
        writer.add(Case("s", "made-1", Image(np.eye(4, dtype=np.uint8)[None]), origin=drawn))
    real = dataset(tmp_path / "d", 2)
    assert Pool([Dataset.open(tmp_path / "m"), real]).patients == {"real-1", "q1", "q2", "p1", "p2"}


def test_requests_that_cannot_be_met_say_what_to_do(tmp_path):
    with pytest.raises(SettingsError, match="a batch of 10 images in 3 parts"):
        Request(10, 8, parts=3)
    for domains in ((), ("real", "real")):
        with pytest.raises(SettingsError, match="allowed: one or several, each once"):
            Request(10, 8, domains=domains)
    unlabelled = Pool([dataset(tmp_path / "a", 2, label=None)])
    with pytest.raises(DataError, match=r"case 'c[12]' has no label; import"):
        Server({"real": unlabelled}, seed=0)(Request(2, SIDE, ("image", "label")), 1, 0)
    oblong = Pool([dataset(tmp_path / "b", 2, shape=(1, 4, 8))])
    with pytest.raises(DataError, match="4 x 8 is not square; run `synthoma data prepare`"):
        Server({"real": oblong}, seed=0)(Request(2, SIDE), 1, 0)
    colour = dataset(tmp_path / "c", 2, first=30, shape=(3, SIDE, SIDE))
    mixed = Pool([dataset(tmp_path / "e", 2), colour])
    with pytest.raises(DataError, match=r"images of \[1, 3\] channels"):
        Server({"real": mixed}, seed=0)(Request(4, SIDE), 1, 0)


def test_datasets_that_cannot_be_dealt_from_say_what_to_do(tmp_path):
    raw = dataset(tmp_path / "raw", 2, value_range=None)
    with pytest.raises(DataError, match="no known range; run `synthoma data prepare`"):
        Pool([raw])
    ready = dataset(tmp_path / "ready", 4)
    with pytest.raises(DataError, match="none of its cases were selected"):
        Pool([ready, ready.of_patients(["nobody"])])
    with pytest.raises(DataError, match="no dataset was given"):
        Pool([])
    with pytest.raises(DataError, match="2D and 3D"):
        Pool([ready, dataset(tmp_path / "deep", 1, shape=(1, 8, 8, 8), boxes=None, box_labels=())])
    unnamed = dataset(tmp_path / "unnamed", 2, box_labels=())
    assert Pool([unnamed]).box_labels == ["lesion"]
    with pytest.raises(DataError, match="its boxes have no labels, but others have cyst, solid"):
        Pool([ready, unnamed])


def test_volumes_are_served_as_they_are(tmp_path):
    box = np.array([[1, 2, 3, 4, 5, 6]], np.float32)
    deep = dataset(tmp_path / "d", 3, shape=(1, 8, 8, 8), boxes=box, box_labels=())
    server = Server({"real": Pool([deep])}, seed=0)
    batch = server(Request(3, 8, FIELDS), 1, 0)
    assert batch["image"].shape == (3, 1, 8, 8, 8)
    np.testing.assert_array_equal(batch["boxes"].numpy(), np.repeat(box, 3, axis=0))
    with pytest.raises(DataError, match="volumes of side 8, not 16"):
        server(Request(3, 16), 1, 0)


def test_the_value_range_becomes_minus_one_to_one_and_the_rest_is_cut():
    values = np.array([[[-2000, -1000, -300, 400, 3000]]], np.int16)
    np.testing.assert_allclose(signed_unit(values, (-1000, 400)), [[[-1, -1, 0, 1, 1]]], atol=1e-6)
    assert signed_unit(np.array([[[0]]], np.uint8), (0, 255)).item() == -1
    assert signed_unit(np.array([[[255]]], np.uint8), (0, 255)).item() == 1


def test_resizing_keeps_the_mean_of_an_image():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32)).astype(np.float32)
    assert resize(image, 8).mean() == pytest.approx(image.mean(), abs=1e-6)
    assert resize(image, 64).mean() == pytest.approx(image.mean(), abs=0.02)
    np.testing.assert_array_equal(resize(image, 32), image)
