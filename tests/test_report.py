"""What a report may claim, and what its one page may hold."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from PIL import Image as Pil

from synthoma.errors import DataError
from synthoma.report.claims import answers, corrected, verdict
from synthoma.report.content import SmallTable, flat, summary
from synthoma.report.figures import (
    PICTURE_BYTES,
    Curve,
    Detected,
    Froc,
    Picture,
    Series,
    TrainingRun,
    froc_chart,
    side_limit,
    tile,
)
from synthoma.report.markdown import markdown_results, markdown_table
from synthoma.report.page import Grid, Report, to_html, to_markdown, write_report
from synthoma.report.scatter import Scatter, scatter_chart
from synthoma.report.table import (
    Adherence,
    Difference,
    Estimate,
    PublishedRow,
    Refused,
    Row,
    Table,
    display,
    number,
    read_table,
)
from synthoma.report.training import training_charts

HOSTILE = """<script>alert(1)</script>" onload='x' | $\\frac{1}{2}$ _a_ `b` & {{ 7*7 }} 脑 ](http://e.vil)"""
ALL = ("sensitivity_iou25", "sensitivity_iou50", "fp_per_slice_iou25", "ap_iou50")


def estimate(value: float, half: float = 0.05, n: int = 36) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def row(setup: str, value: float = 0.7, **changes: object) -> Row:
    metrics = {name: estimate(value + i) for i, name in enumerate(ALL)}
    given = {"n_real": 2813, "n_synthetic": 0, "seeds": 3, "metrics": metrics} | changes
    return Row(setup=setup, **given)


def table(baseline: str = "real + classic", added: str = "+ synthetic 1:1") -> Table:
    undefined = {name: estimate(0.72) for name in ALL[:3]}
    return Table(
        study="augment",
        task="detect",
        patients_from="blocks of 13 ids",
        primary=ALL[0],
        rows=(
            row(baseline, draws=3),
            row(
                added,
                n_synthetic=2813,
                draws=3,
                metrics=undefined,
                undefined={"ap_iou50": "one seed found nothing"},
                differences=(
                    Difference(
                        to=baseline,
                        metrics={
                            ALL[0]: Estimate(value=0.03, low=-0.01, high=0.07, n=36, p=0.12),
                            ALL[2]: Estimate(value=1.1, low=0.4, high=1.8, n=36, p=0.004),
                        },
                        p_holm=0.24,
                        each=(0.08, 0.02, -0.01),
                    ),
                ),
            ),
        ),
        refused=(Refused(setup=f"refused {added}", reason=f"2 of 100 slices copied: {added}"),),
        adherence=Adherence(ordered=estimate(0.6), shuffled=estimate(0.06), real=estimate(0.8)),
        published=(PublishedRow(setup=baseline, metrics={"ap_iou50": None, ALL[0]: 0.83}),),
    )


def picture(name: str = "case", side: int = 32, channels: int = 1) -> Picture:
    values = np.random.default_rng(side).integers(0, 255, (channels, side, side), np.uint8)
    return Picture(values, np.array([[2.0, 3, 10, 12]]), name)


def report(name: str = "+ synthetic 1:1") -> Report:
    """A report with every part; `name` is everything that a stranger may name."""
    curve = Curve(name, np.array([0, 0, 0.5, 9]), np.array([0, 0.4, 0.6, 0.8]))
    banded = replace(
        curve,
        setup="real + classic",
        low=curve.sensitivity - 0.1,
        high=curve.sensitivity + 0.1,
        operating_point=(0.5, 0.6),
    )
    steps = [
        {"step": i, "seconds": 0.1 * i, "critic/real": i % 7, "critic/_" + name: -1.0 * i**3,
         "generator/adversarial": 0.0, "generator/broken": float("nan")}
        for i in range(1, 400)
    ]  # fmt: skip
    found = {name: (np.array([[2.0, 3, 9, 9], [20, 20, 30, 30]]), np.array([0.3, 0.9]))}
    return Report(
        title=name,
        question=name,
        table=table(added=name),
        warnings=[f"24 patients: below 30. {name}"],
        notes=[name],
        froc=[Froc(f"IoU 0.25 {name}", [banded, curve], per=name)],
        grids=[Grid(name, [picture(name), picture(name, 40, 3)], True, name),
               Grid("real", [picture()], False)],
        small_tables=[SmallTable(name, [name, "passed"], [[name, "9 of 10"]], name)],
        scatters=[Scatter(name, np.random.default_rng(0).normal(size=(60, 2)),
                          [name, "real"] * 30, name)],
        detections=[Detected(*picture(name)[:2], found, name)] * 2,
        training=[TrainingRun(name, [*steps, {"step": 399, "validation": {name: 0.5}}])],
        settings={name: {name: [name, 1], "empty": {}}},
        versions={name: name},
        command=name,
        seeds=[0, 1, 2],
        seconds={name: 61.0},
        data={name: {"train": 126}},
    )  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile_html() -> str:
    return to_html(report(HOSTILE))


def test_what_is_written_is_read_back_the_same(tmp_path):
    write_report(tmp_path / "out", report())
    assert read_table(tmp_path / "out" / "table.json") == table()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html", "report.md", "table.json",
    ]  # fmt: skip


def test_table_json_has_the_promised_keys_and_fractions(tmp_path):
    write_report(tmp_path, report())
    content = json.loads((tmp_path / "table.json").read_text())
    assert list(content) == [
        "study", "task", "patients_from", "primary", "rows", "refused", "adherence", "published",
    ]  # fmt: skip
    first, second = content["rows"]
    assert list(first) == [
        "setup", "n_real", "n_synthetic", "draws", "seeds", "metrics", "differences", "undefined",
    ]  # fmt: skip
    assert first["metrics"]["sensitivity_iou25"] == {
        "value": 0.7, "low": 0.7 - 0.05, "high": 0.7 + 0.05, "n": 36, "p": None,
    }  # fmt: skip
    assert first["differences"] == []
    (difference,) = second["differences"]
    assert difference["to"] == "real + classic"
    assert difference["metrics"]["sensitivity_iou25"]["value"] == 0.03
    assert difference["metrics"]["sensitivity_iou25"]["p"] == 0.12
    assert (difference["p_holm"], difference["each"]) == (0.24, [0.08, 0.02, -0.01])
    assert content["refused"][0]["setup"] == "refused + synthetic 1:1"
    assert second["undefined"] == {"ap_iou50": "one seed found nothing"}
    assert content["adherence"]["shuffled"]["value"] == 0.06


ONE = {"value": 1, "low": 0, "high": 2, "n": 9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {}}, "has no sensitivity_iou25"),
        ({"undefined": {"ap_iou50": "why"}}, "undefined too"),
        ({"differences": [{"to": "nobody", "metrics": {}}]}, "compared with 'nobody'"),
        ({"differences": [{"to": "b", "metrics": {}}]}, "compared with 'b'"),
        ({"differences": [{"to": "a", "metrics": {}}] * 2}, "compared twice"),
        ({"setup": "a"}, "two rows"),
        ({"differences": [{"to": "a", "metrics": {"cpm": ONE}}]}, "cpm"),
        ({"metrics": {"cpm": {"value": 1, "low": 2, "high": 0, "n": 9}}}, "upside down"),
        ({"seeds": 0}, "greater than or equal to 1"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused_by_name(tmp_path, change, message):
    one, other = row("a").model_dump(), row("b").model_dump()
    path = tmp_path / "table.json"
    named = {"study": "", "task": "", "patients_from": "", "primary": ALL[0]}
    path.write_text(json.dumps({**named, "rows": [one, other | change]}))
    with pytest.raises(DataError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)


def test_a_table_claims_things_of_a_metric_it_has_and_refuses_what_it_did_not_run():
    rows = (row("a"),)
    with pytest.raises(ValueError, match="primary metric 'cpm'"):
        Table(study="", task="", patients_from="", primary="cpm", rows=rows)
    content = one_row("a").model_dump() | {"refused": [{"setup": "a", "reason": "copies"}]}
    with pytest.raises(ValueError, match="were refused too"):
        Table.model_validate(content)


def one_row(setup: str) -> Table:
    return Table(study="", task="", patients_from="", primary=ALL[0], rows=(row(setup),))


@given(
    st.sampled_from(["sensitivity_iou25", "fp_per_slice_iou25", "fid", "strange_score", "odd"]),
    st.floats(-1, 1), st.floats(-1, 1), st.integers(0, 50), st.none() | st.floats(0, 1),
)  # fmt: skip
def test_a_gain_is_claimed_only_when_the_interval_excludes_zero_and_holm_agrees(
    metric, one, other, n, p
):
    low, high = sorted([one, other])
    shown = verdict(metric, Estimate(value=(low + high) / 2, low=low, high=high, n=n), p)
    if low <= 0 <= high or n < 6:  # fewer patients: simulated intervals do not cover
        assert shown == "no difference shown"
    elif p is None or p >= 0.05:
        assert shown == "not after Holm's correction"
    elif metric in ("fp_per_slice_iou25", "fid"):
        assert shown == ("gain" if high < 0 else "worse")
    elif metric == "odd":
        assert shown == "difference"
    else:
        assert shown == ("gain" if low > 0 else "worse")


def compared(setup: str, **p_of: float) -> Row:
    """A row that differs from others in the primary metric, with these p-values."""
    differences = [
        Difference(to=to, metrics={ALL[0]: estimate(0.1).model_copy(update={"p": p})})
        for to, p in p_of.items()
    ]
    return row(setup, differences=tuple(differences))


def test_comparisons_are_corrected_with_those_of_the_same_baseline_alone():
    rows = [row("a"), compared("b", a=0.03), compared("c", a=0.02, b=0.04), compared("d", a=0.3)]
    table = Table(study="", task="", patients_from="", primary=ALL[0], rows=corrected(rows, ALL[0]))
    after = {(one.setup, other.to): other.p_holm for one, other in table.comparisons}
    assert after == pytest.approx(
        {("b", "a"): 0.06, ("c", "a"): 0.06, ("c", "b"): 0.04, ("d", "a"): 0.3}
    )
    assert [answer.verdict for answer in answers(table)] == [
        "not after Holm's correction", "not after Holm's correction", "gain",
        "not after Holm's correction",
    ]  # fmt: skip
    html, markdown = Page(to_html(Report("", "", table))), to_markdown(Report("", "", table))
    for text in (html.text, markdown):
        assert "1 of 4 comparisons shows a gain" in text
        assert text.count("not after Holm's correction") == 3


def test_what_synthetic_images_gain_is_counted_apart_from_what_rivals_gain():
    rows = [row("a"), compared("b", a=0.001), compared("c", a=0.5), compared("d", a=0.6)]
    drawn = [one.model_copy(update={"n_synthetic": 9}) for one in rows[2:]]
    shown = corrected([*rows[:2], *drawn], ALL[0])
    table = Table(study="", task="", patients_from="", primary=ALL[0], rows=shown)
    said = summary(Report("", "", table))
    assert said.startswith("None of 2 comparisons of set-ups with synthetic images shows a gain")
    assert said.endswith("; 1 of the 1 without.")


def test_a_difference_without_a_p_value_is_claimed_of_nothing():
    bare = row("b", differences=(Difference(to="a", metrics={ALL[0]: estimate(0.1)}),))
    assert corrected([row("a"), bare], ALL[0])[1].differences[0].p_holm is None
    table = one_row("a").model_copy(update={"rows": (row("a"), bare)})
    assert answers(table)[0].verdict == "not after Holm's correction"


def test_an_answer_names_both_set_ups_the_interval_and_what_became_worse():
    (answer,) = answers(table())
    assert answer.sentence == (
        "+ synthetic 1:1 vs real + classic: sensitivity at IoU 0.25 +0.03 [−0.01, 0.07], "
        "p = 0.12, after Holm 0.24: no difference shown"
    )
    assert answer.asides == ("worse in false positives per slice at IoU 0.25",)
    (undefined,) = answers(table().model_copy(update={"primary": "ap_iou50"}))
    assert undefined.verdict == "undefined"
    assert "one seed found nothing" in undefined.sentence


def test_the_spread_over_draws_is_told_where_the_interval_does_not_hold_it():
    html, markdown = Page(to_html(report())).text, to_markdown(report())
    for text in (html, markdown):
        assert "+0.08, +0.02, −0.01" in text
        assert "3 draws of patients, 3 trainings" in text
        assert "nor that of which patients were trained on" in text


def test_set_ups_that_were_refused_are_told_with_their_reason():
    html, markdown = Page(to_html(report())).text, to_markdown(report())
    for text in (html, markdown):
        assert "refused + synthetic 1:1" in text
        assert "2 of 100 slices copied" in text


def test_the_primary_metric_is_the_first_column_even_where_a_row_lacks_it():
    metrics = {name: estimate(0.5) for name in ALL[:3]}
    lacking = row("a", metrics=metrics, undefined={"ap_iou50": "no truths"})
    assert one_row("a").metrics == list(ALL)
    other = Table(study="", task="", patients_from="", primary="ap_iou50", rows=(lacking, row("b")))
    assert other.metrics[0] == "ap_iou50"


def test_metrics_at_a_number_of_false_positives_are_named_in_words():
    assert display("sensitivity_matched_iou25").label == (
        "sensitivity at the baseline's false positives, IoU 0.25"
    )
    assert display("sensitivity_1fp_iou25").better == "higher"


def test_a_small_table_with_a_cell_too_few_is_refused_by_name():
    with pytest.raises(DataError, match=r"'costs'.*1 cells for 2 columns"):
        SmallTable("costs", ["part", "time"], [["training"]])


@given(st.floats(-3, 3), st.booleans())
def test_a_difference_never_rounds_across_zero(value, percent):
    text = number(value, percent=percent, signed=True).replace("−", "-")
    assert (float(text) > 0, float(text) < 0) == (value > 0, value < 0)


def test_undefined_metrics_are_a_dash_and_their_reason():
    html, markdown = Page(to_html(report())), to_markdown(report())
    assert "one seed found nothing" in html.text
    assert "| – (1) |" in markdown
    assert "1. one seed found nothing" in markdown
    notes = [attrs["href"] for tag, attrs in html.tags if tag == "a"]
    ids = {attrs.get("id") for _, attrs in html.tags}
    assert notes
    assert {note.removeprefix("#") for note in notes} <= ids


def test_every_value_has_its_interval_patients_and_seeds():
    html = Page(to_html(report()))
    assert re.search(r"0\.70\s+\[0\.65, 0\.75\]", html.text)
    assert "3 trainings, n = 36 patients" in html.text
    assert "3 seeds, n = 36 patients" in Page(to_html(Report("", "", one_row("a")))).text
    assert "0.70 [0.65, 0.75], n = 36" in markdown_results(table())


def test_hostile_names_are_text_and_nothing_else(hostile_html):
    page = Page(hostile_html)
    assert "script" not in [tag for tag, _ in page.tags]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert page.text.count("{{ 7*7 }}") > 15  # shown as it is, nowhere evaluated
    assert page.text.count("alert(1)") > 15


def test_the_page_loads_nothing(hostile_html):
    loading = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"}
    for html in (hostile_html, to_html(report())):
        page = Page(html)
        found = [(t, n, v) for t, attrs in page.tags for n, v in attrs.items() if n in loading]
        assert len(found) > 8
        for tag, name, target in found:
            assert (target or "").startswith(("data:image/", "#")), (tag, name)
        assert not re.search(r"url\(|@import|<link|<script|<iframe", html)
        policy = [attrs for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs]
        assert policy[0]["content"].startswith("default-src 'none'")
    for chart in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", hostile_html):
        drawn = base64.b64decode(chart).decode()
        assert "<script" not in drawn
        assert not re.search(r"href=\"(?!#|data:image/png)|url\((?!#)", drawn)


def test_the_page_can_be_read_without_seeing_it(hostile_html):
    page = Page(hostile_html)
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all("aria-label" in attrs or attrs.get("aria-hidden") for attrs in drawings)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_every_picture_says_whether_it_is_synthetic():
    page = Page(to_html(report("drawn")))
    labels = [attrs.get("aria-label", "") for tag, attrs in page.tags if tag == "svg"]
    assert sum((label or "").startswith("synthetic image") for label in labels) == 2
    assert sum((label or "").startswith("real image") for label in labels) == 1
    png = base64.b64decode(tile(picture(), limit=64, synthetic=True).uri.split(",")[1])
    assert "Synthetic" in Pil.open(io.BytesIO(png)).text
    png = base64.b64decode(tile(picture(), limit=64).uri.split(",")[1])
    assert Pil.open(io.BytesIO(png)).text == {}


def test_boxes_lie_over_the_pixels_and_leave_them_alone():
    shown = tile(picture(), limit=64)
    pixels = np.asarray(Pil.open(io.BytesIO(base64.b64decode(shown.uri.split(",")[1]))))
    assert np.array_equal(pixels, picture().image[0])
    (mark,) = shown.marks
    assert (mark.x, mark.y, mark.width, mark.height) == (3, 2, 9, 8)


def test_shrunken_pictures_keep_their_boxes_in_the_coordinates_of_the_case():
    shown = tile(picture(side=64), limit=16)
    assert (shown.width, shown.height, shown.marks) == (64, 64, tile(picture(), limit=64).marks)
    assert Pil.open(io.BytesIO(base64.b64decode(shown.uri.split(",")[1]))).size == (16, 16)


def test_only_detections_at_or_above_the_threshold_are_drawn():
    def scores(threshold: float) -> list[str]:
        html = to_html(
            replace(report("real"), detection_threshold=threshold, table=one_row("real"))
        )
        return re.findall(r'class="score"[^>]*>([\d.]+)<', html)

    assert scores(0.3) == ["0.90", "0.30"] * 2
    assert scores(0.31) == ["0.90"] * 2
    assert scores(0.91) == []


def test_a_page_of_noise_stays_below_three_megabytes():
    grid = Grid("noise", [picture(side=256)] * 60, True)
    assert side_limit([(1, 256, 256)] * 60) ** 2 * 60 <= PICTURE_BYTES
    html = to_html(replace(report(), grids=[grid]))
    assert len(html.encode()) < 3_000_000


@pytest.mark.parametrize("name", ["+ synthetic 1:1", HOSTILE])
def test_the_same_report_gives_the_same_bytes(name):
    assert to_html(report(name)) == to_html(report(name))
    assert to_markdown(report(name)) == to_markdown(report(name))


def test_figures_ignore_a_persons_own_matplotlib_settings():
    import matplotlib

    froc = Froc("IoU 0.5", [Curve("real", np.array([0.0, 2]), np.array([0.0, 0.5]))])
    plain = froc_chart(froc, {"real": Series(0)})
    with matplotlib.rc_context({"xtick.direction": "in", "svg.fonttype": "path"}):
        assert froc_chart(froc, {"real": Series(0)}) == plain
        assert matplotlib.rcParams["xtick.direction"] == "in"


def test_many_set_ups_are_told_apart_without_colour():
    looks = [(Series(i).dashes, Series(i).mark) for i in range(40)]
    assert len(set(looks)) == 40


def test_points_of_many_kinds_differ_in_mark_or_colour():
    looks = [(Series(i).mark, Series(i).colour) for i in range(64)]
    assert len(set(looks)) == 64


def test_a_curve_that_only_says_nothing_and_one_of_a_hundred_thousand_points_are_drawn():
    rate = np.concatenate([[0], np.cumsum(np.full(100_000, 1e-3))])
    curves = [
        Curve("silent", np.array([0.0]), np.array([0.0])),
        Curve("loud", rate, np.linspace(0, 1, 100_001)),
    ]
    chart = froc_chart(Froc("IoU 0.5", curves), {"silent": Series(0), "loud": Series(1)})
    assert len(chart.light) < 60_000
    assert "loud ends at sensitivity 1.00 with 100.00 false positives per slice" in chart.alt


def test_a_curve_with_columns_of_two_lengths_is_refused():
    with pytest.raises((DataError, TypeCheckError), match="real"):  # whichever check comes first
        Curve("real", np.zeros(3), np.zeros(2))


def test_training_charts_are_one_a_player_and_one_a_validated_metric():
    rows = [{"step": 1, "seconds": 2.0, "critic/a": 1.0, "critic/b": 2.0, "generator/c": 3.0}]
    rows += [{"step": 1, "validation": {"sensitivity_iou50": 0.5, "fp_per_slice": None}}]
    charts = training_charts(TrainingRun("gan", rows))
    assert [chart.title for chart in charts] == [
        "critic", "generator", "validation, sensitivity at IoU 0.5",
    ]  # fmt: skip
    assert [name for name, _ in charts[0].legend] == ["a", "b"]
    assert training_charts(TrainingRun("not begun", [])) == []


def test_the_spread_of_drawn_images_is_drawn_beside_the_real_sets():
    rows = [{"step": i, "critic/a": 1.0} for i in range(9)]
    rows += [
        {"step": i, "diversity": {"pixels": 0.1 * i, "real pixels": 1.5, "features": None}}
        for i in (4, 8)
    ]
    charts = training_charts(TrainingRun("gan", rows))
    assert [chart.title for chart in charts] == ["critic", "spread of pixels"]
    assert [name for name, _ in charts[1].legend] == ["synthetic", "real"]
    assert "synthetic ends at 0.8; real ends at 1.5" in charts[1].alt


def test_kinds_of_points_differ_in_mark_and_colour_and_are_counted():
    points = np.concatenate([np.zeros((30, 2)), np.ones((10, 2))])
    points += np.random.default_rng(0).normal(0, 0.01, points.shape)
    chart = scatter_chart(Scatter("32 px boxes", points, ["real"] * 30 + ["synthetic"] * 10))
    assert [name for name, _ in chart.legend] == ["real", "synthetic"]
    looks = [look for _, look in chart.legend]
    assert len({look.mark for look in looks}) == len({look.colour for look in looks}) == 2
    assert "real, 30 points; synthetic, 10 points" in chart.alt
    assert "same kind for 100%" in chart.alt
    mixed = scatter_chart(Scatter("mixed", points, ["real", "synthetic"] * 20))
    assert "same kind for 100%" not in mixed.alt


def test_a_scatter_of_thousands_of_points_is_a_picture_of_bounded_size():
    points = np.random.default_rng(0).normal(size=(6000, 2))
    chart = scatter_chart(Scatter("many", points, ["real", "synthetic"] * 3000))
    assert len(chart.light) < 500_000
    assert scatter_chart(Scatter("many", points, ["real", "synthetic"] * 3000)) == chart


def test_points_that_are_not_what_they_are_said_to_be_are_refused():
    with pytest.raises(DataError, match="3 points, 2 categories"):
        Scatter("", np.zeros((3, 2)), ["real", "real"])
    with pytest.raises(DataError, match="not finite"):
        Scatter("", np.full((1, 2), np.nan), ["real"])


def test_pictures_of_the_wrong_kind_are_refused_by_name():
    with pytest.raises(DataError, match=r"'bad'.*float64"):
        tile(Picture(np.zeros((1, 4, 4)), np.zeros((0, 4)), "bad"), limit=64)  # type: ignore[arg-type]
    shown = report("real")
    broken = {"real": (np.zeros((2, 4)), np.zeros(3))}
    with pytest.raises(DataError, match="for 3 scores"):
        to_html(replace(shown, detections=[shown.detections[0]._replace(found=broken)]))


def test_a_report_of_a_table_alone_is_whole(tmp_path):
    write_report(tmp_path, Report("Title", "Question?", one_row("real")))
    assert "no gain can be claimed" in (tmp_path / "report.html").read_text()


def test_other_tasks_bring_their_own_metrics():
    metrics = {"accuracy": estimate(0.931, 0.01), "lesion_volume_error": estimate(2.0)}
    gain = {"accuracy": estimate(0.021, 0.01), "lesion_volume_error": estimate(-1, 0.5)}
    found = Difference(to="a", metrics=gain, p_holm=0.01)
    rows = (row("a", metrics=metrics), row("b", metrics=metrics, differences=(found,)))
    (answer,) = answers(
        Table(study="", task="classify", patients_from="", primary="accuracy", rows=rows)
    )
    assert answer.sentence == "b vs a: accuracy +2.1 points [1.1, 3.1], after Holm 0.010: gain"
    assert answer.asides == ("better in lesion volume error",)


@given(st.lists(st.lists(st.text(), min_size=3, max_size=3), max_size=4))
def test_markdown_tables_have_as_many_cells_in_each_row(rows):
    lines = markdown_table(["a", "b", "c"], rows).split("\n")
    assert len(lines) == len(rows) + 2
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 4


def test_hostile_names_make_no_markdown_of_their_own():
    markdown = to_markdown(report(HOSTILE))
    assert "\\<script" in markdown
    assert not re.search(r"(?<!\\)<script", markdown)
    tables = [line for line in markdown.split("\n") if line.startswith("| ")]
    assert len(tables) > 10


def test_settings_are_rows_of_dotted_names():
    assert flat({"a": {"b": None, "c": True}, "d": []}) == [
        ("a.b", "null"), ("a.c", "true"), ("d", "none"),
    ]  # fmt: skip
