"""Curation: what is kept is what the detector finds, recorded and replayable, and no leak."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.data.subset import subset
from synthoma.engine.evaluate import Findings, top_hits, truths_of
from synthoma.errors import DataError, LeakError, SettingsError
from synthoma.metrics.matching import Detections
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.synthesis.curate import (
    NOTHING,
    Decision,
    Decisions,
    curate,
    decide,
    gate,
    judge,
    pass_rate,
    read_decisions,
    write_decisions,
)
from synthoma.synthesis.fit import fit
from synthoma.synthesis.mixture import Mixed, TrainingData, open_pools

BOX = [10.0, 10, 20, 20]
NEAR = [10.0, 10, 20, 22]
AWAY = [30.0, 30, 40, 40]
OWN = [2.0, 30, 8, 36]


#: A detector of seconds, which finds nothing.
TINY = {
    "system": {
        "side_px": 32,
        "test_side_px": 32,
        "batch_size": 2,
        "width": 0.0625,
        "blocks": [0, 0, 0, 0, 0],
    },
    "train": {"steps": 2, "precision": "float32"},
}


def everyone(patients):
    return {"train": patients, "validation": [], "test": []}


def write(folder, cases, *, painted=None, saw=("p1",)):
    """A synthetic set: for each case its boxes and what was painted, or None."""
    with DatasetWriter(
        folder, patients_from="made", value_range=(0, 255), splits=everyone
    ) as writer:
        for i, (boxes, told) in enumerate(cases):
            conditions = {} if told is None else {"painted": told}
            writer.add(
                Case(
                    f"s{i}",
                    f"s{i}",
                    Image(np.full((1, 48, 48), i % 256, np.uint8)),
                    label="tumour" if boxes else "normal",
                    boxes=np.array(boxes, np.float32).reshape(-1, 4),
                    origin=Synthetic("some-run", 0, conditions, saw),
                )
            )
    return Dataset.open(folder)


def findings(dataset, *found):
    """For each case, boxes from the surest to the least sure."""
    boxes = [box for own in found for box in own]
    scores = [0.9 - 0.1 * k for own in found for k in range(len(own))]
    case = [i for i, own in enumerate(found) for _ in own]
    detections = Detections(
        np.array(boxes, np.float64).reshape(-1, 4), np.array(scores), np.array(case, np.int64)
    )
    return Findings(detections, truths_of(dataset), dataset.patient_ids)


def test_the_surest_detection_must_meet_an_ordered_box(tmp_path):
    ordered = write(tmp_path / "s", [([BOX], None)] * 4 + [([BOX, AWAY], None)])
    seen = findings(ordered, [NEAR], [AWAY, BOX], [], [AWAY], [AWAY])
    made = decide(seen, ordered)
    assert list(made.keep.values()) == [True, False, False, False, True]
    hits = top_hits(seen.detections, seen.truths, 0.25)
    assert hits.astype(bool).tolist() == list(made.keep.values())  # the report's adherence
    assert made.rows[0].score == 0.9
    assert made.rows[0].iou == pytest.approx(100 / 120, abs=1e-4)
    assert (made.rows[2].score, made.rows[2].iou) == (None, 0)


def test_every_painted_box_must_be_met_by_a_detection_as_sure_as_there_are_lesions(tmp_path):
    painted = write(
        tmp_path / "s",
        [([OWN, BOX], [BOX])] * 4 + [([OWN, BOX, AWAY], [BOX, AWAY])] * 2,
    )
    seen = findings(
        painted,
        [OWN, BOX],  # the background's own lesion is the clearer one
        [OWN, AWAY, BOX],  # a false alarm is clearer than what was painted
        [OWN],
        [NEAR],
        [OWN, BOX, AWAY],
        [OWN, BOX],  # one of two is missing
    )
    assert list(decide(seen, painted).keep.values()) == [True, False, False, True, True, False]


def test_images_in_which_nothing_was_ordered_are_kept_and_not_counted(tmp_path):
    mixed = write(tmp_path / "s", [([], None), ([BOX], None), ([BOX], None)])
    made = decide(findings(mixed, [BOX], [BOX], []), mixed)
    assert made.rows[0] == Decision("s0", True, NOTHING)
    assert pass_rate(made) == 0.5
    with pytest.raises(DataError, match="no pass rate"):
        pass_rate(Decisions(made.rows[:1]))


def test_what_is_kept_is_the_same_case_by_case_and_what_is_dropped_is_counted(tmp_path):
    ordered = write(tmp_path / "s", [([BOX], None)] * 9 + [([], None)])
    made = decide(findings(ordered, *[[BOX], []] * 5), ordered, rule="detector x")
    kept = curate(ordered, made, tmp_path / "kept")
    assert [case.case_id for case in kept] == ["s0", "s2", "s4", "s6", "s8", "s9"]
    for case in kept:
        before = ordered[int(case.case_id[1:])]
        assert np.array_equal(case.image.values, before.image.values)
        assert np.array_equal(case.boxes, before.boxes)
        assert case.origin == before.origin
    assert kept.about["dropped"] == {
        "refused by detector x": {"n": 4, "for_example": ["s1", "s3", "s5", "s7"]}
    }
    assert kept.about["curated"] == {
        "judged": 10,
        "rules": {"detector x": 9, NOTHING: 1},
    }
    assert (kept.about["n_cases"], kept.about["n_synthetic"], kept.about["n_patients"]) == (6, 6, 6)
    assert kept.splits == everyone(["s0", "s2", "s4", "s6", "s8", "s9"])
    assert kept.about["from"]["digest"] == ordered.about["digest"]
    shard = "shards/00000.npy"
    assert (kept.folder / shard).samefile(ordered.folder / shard)


def test_the_decisions_replayed_from_their_file_give_the_same_bytes(tmp_path):
    ordered = write(tmp_path / "s", [([BOX], None)] * 6)
    made = decide(findings(ordered, *[[BOX], []] * 3), ordered, saw=("p2", "p1, the first"))
    write_decisions(made, tmp_path / "made.csv")
    again = read_decisions(tmp_path / "made.csv")
    assert again == made
    one = curate(ordered, made, tmp_path / "one").folder
    two = curate(ordered, again, tmp_path / "two").folder
    for name in ("cases.jsonl", "dataset.json", "splits.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    with pytest.raises(SettingsError, match="nothing is overwritten"):
        write_decisions(made, tmp_path / "made.csv")


def test_a_table_of_decisions_begins_with_its_header_and_ends_with_whom_the_choice_saw(tmp_path):
    """Spreadsheets take the first row for the header, and other readers want rows of one length."""
    names = ("p2", "p1, the first", " p 3", 'the "fourth"')
    made = Decisions(
        tuple(Decision(f"s{i}", bool(i), "clusters at distance 2") for i in (0, 1)), names
    )
    path = tmp_path / "made.csv"
    write_decisions(made, path)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["case_id", "keep", "rule", "score", "iou"]
    assert {len(row) for row in rows} == {5}
    assert [row[0] for row in rows[1:3]] == ["s0", "s1"]
    assert [row[0] for row in rows[3:]] == [f"# the choice depends on patient {n}" for n in names]
    assert "detector" not in path.read_text()
    with path.open("w", newline="") as file:  # sorted by a person, and padded by a spreadsheet
        csv.writer(file).writerows([[*row, ""] for row in [rows[0], *rows[:0:-1]]])
    again = read_decisions(path)
    assert again.keep == made.keep
    assert set(again.saw) == set(names)


def test_whom_the_choice_saw_is_read_of_older_files_too(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text('# the detector saw,p2,"p1, the first"\ncase_id,keep,rule\ns0,yes,detector a\n')
    assert read_decisions(path) == Decisions(
        (Decision("s0", True, "detector a"),), ("p2", "p1, the first")
    )


def test_a_person_may_overrule_the_detector(tmp_path):
    ordered = write(tmp_path / "s", [([BOX], None)] * 3)
    write_decisions(decide(findings(ordered, [BOX], [], []), ordered), tmp_path / "made.csv")
    text = (tmp_path / "made.csv").read_text()
    assert "s1,no,detector," in text
    (tmp_path / "changed.csv").write_text(text.replace("s1,no,detector,", "s1,Yes,person,"))
    changed = read_decisions(tmp_path / "changed.csv")
    assert len(curate(ordered, changed, tmp_path / "kept")) == 2
    bare = tmp_path / "bare.csv"
    bare.write_text("keep;case_id\n".replace(";", ",") + "no,s0\nyes,s1\nno,s2\n")
    kept = curate(ordered, read_decisions(bare), tmp_path / "by-hand")
    assert [case.case_id for case in kept] == ["s1"]
    assert kept.about["dropped"]["refused by person"]["n"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,kept\ns0,yes\n", "column 'keep' must be there once"),
        ("case_id,keep,keep\ns0,yes,no\n", "column 'keep' must be there once"),
        ("case_id,keep\ns0,maybe\n", "row 2: keep is 'maybe'; allowed: yes, no"),
        ("case_id,keep\ns0,yes\n\ns0,no\n", "row 4: case_id 's0' is there twice"),
        ("case_id,keep\n,yes\n", "row 2: case_id is empty"),
        ("case_id,keep\ns0\n", "row 2: 1 cells; needed: 2"),
        ("case_id,keep,iou\ns0,yes,half\n", "row 2: iou is 'half'; allowed: a number"),
        ("case_id,keep\n", "holds no decision"),
        ("", "holds no decision"),
        ('case_id,keep\n"s0,yes\n', "not a table"),
        ("case_id,keep\n\xff,yes\n", "not a table"),
    ],
)
def test_a_damaged_file_is_refused_by_name_and_row(tmp_path, text, message):
    path = tmp_path / "person.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message) as told:
        read_decisions(path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


def test_decisions_must_be_on_these_images(tmp_path):
    ordered = write(tmp_path / "s", [([BOX], None)] * 3)
    rows = tuple(Decision(f"s{i}", True, "person") for i in range(3))
    with pytest.raises(DataError, match="1 of 3 images have no decision, for example s2"):
        curate(ordered, Decisions(rows[:2]), tmp_path / "out")
    unknown = Decisions((*rows, Decision("t9", True, "person")))
    with pytest.raises(DataError, match="not in it, for example t9"):
        curate(ordered, unknown, tmp_path / "out")
    nothing = Decisions(tuple(replace(row, keep=False) for row in rows))
    with pytest.raises(DataError, match="no case was left"):
        curate(ordered, nothing, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def decisions(kept, of):
    return Decisions(tuple(Decision(f"s{i}", i < kept, "detector") for i in range(of)))


def test_the_gate_compares_with_real_images():
    refused = gate(decisions(16, 100), decisions(7, 10))
    assert not refused.admitted
    assert refused.reason.startswith(
        "refused: the detector finds the ordered lesion in 16% of these images, and in 70% of "
        "real ones"
    )
    assert (refused.rate, refused.real_rate) == (0.16, 0.7)
    assert gate(decisions(35, 100), decisions(7, 10)).admitted
    assert not gate(decisions(34, 100), decisions(7, 10)).admitted
    assert gate(decisions(16, 100), decisions(7, 10), least=0.2).admitted
    with pytest.raises(SettingsError, match="least"):
        gate(decisions(1, 2), decisions(1, 2), least=2)


def test_a_set_curated_by_a_detector_that_saw_held_out_patients_is_not_trained_on(tmp_path):
    brains = write_brains(
        tmp_path / "brains", BrainConfig(side_px=32, patients=10, slices_per_patient=4), seed=0
    )
    saw = tuple(brains.splits["train"])
    ordered = write(tmp_path / "s", [([BOX], None)] * 60, saw=saw)
    rows = tuple(Decision(f"s{i}", i != 3, "detector") for i in range(60))
    honest = curate(ordered, Decisions(rows, saw), tmp_path / "honest")
    open_pools(TrainingData(data=brains.folder, synthetic=(Mixed(folder=honest.folder),)))
    leaky = curate(ordered, Decisions(rows, (brains.splits["test"][0],)), tmp_path / "leaky")
    with pytest.raises(LeakError, match="test patient"):
        open_pools(TrainingData(data=brains.folder, synthetic=(Mixed(folder=leaky.folder),)))


def test_a_subset_of_a_selection_keeps_its_classes_and_patients(tmp_path):
    brains = write_brains(
        tmp_path / "brains", BrainConfig(side_px=32, patients=6, slices_per_patient=3), seed=0
    )
    part = brains.split("train")
    kept = subset(part, tmp_path / "part", np.arange(0, len(part), 2), dropped={}, about={"why": 1})
    assert [case.case_id for case in kept] == [part[i].case_id for i in range(0, len(part), 2)]
    assert set(kept.splits["train"]) == set(kept.patients) <= set(part.patients)
    assert kept.splits["test"] == []
    assert kept.about["why"] == 1
    again = subset(kept, tmp_path / "again", np.arange(2), dropped={}, about={})
    assert again.about["from"]["from"]["digest"] == brains.about["digest"]
    assert len(again) == len(Dataset.open(again.folder)) == 2


def test_a_trained_detector_judges(tmp_path):
    brains = write_brains(
        tmp_path / "brains", BrainConfig(side_px=32, patients=8, slices_per_patient=3), seed=0
    )
    fit(
        "yolov3",
        tmp_path / "run",
        TrainingData(data=brains.folder),
        preset="smoke",
        overrides=TINY,
        device="cpu",
    )
    ordered = write(tmp_path / "s", [([BOX], None)] * 3)
    made = judge(tmp_path / "run", ordered, device="cpu")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert made.saw == tuple(facts["trained_on"])
    assert {row.rule for row in made.rows} == {f"detector {facts['id']} at IoU 0.25"}
    assert made == judge(tmp_path / "run", ordered, device="cpu")
    real = judge(tmp_path / "run", brains.split("validation"), device="cpu")
    assert len(real.rows) == len(brains.split("validation"))
    assert 0 <= pass_rate(real) <= 1
    with pytest.raises(LeakError, match=r"trained on \d patients of these"):
        judge(tmp_path / "run", brains.split("train"), device="cpu")
    with pytest.raises(DataError, match="real images"):
        curate(brains.split("validation"), real, tmp_path / "out")
