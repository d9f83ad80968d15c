"""report.md: the words and numbers of a report, without its pictures."""

import re

from synthoma.report.claims import answers, each_training, p_values, why_undefined
from synthoma.report.content import (
    Beside,
    Report,
    adherence_lines,
    flat,
    published_lines,
    summary,
    times,
)
from synthoma.report.table import (
    Estimate,
    Footnotes,
    Table,
    display,
    interval,
    value,
)


def to_markdown(report: Report) -> str:
    """What the page says in words and numbers; its pictures are in report.html."""
    table, plain = report.table, escape_markdown
    parts = [f"# {plain(report.title)}", plain(report.question), f"**{plain(summary(report))}**"]
    said = []
    for answer in answers(table):
        asides = f" Also, not corrected: {'; '.join(answer.asides)}." if answer.asides else ""
        said.append(f"- {plain(f'{answer.sentence}.{asides}')}")
    parts.append("\n".join(said))
    parts.append("\n".join(f"> **Warning:** {plain(line)}\n>" for line in report.warnings))
    parts.append("\n".join(f"- {plain(line)}" for line in report.notes))
    where = f"Study {table.study}, task {table.task}. Patients: {table.patients_from}."
    parts += ["## Results", plain(f"{where} {report.intervals}"), markdown_results(table)]
    if lines := adherence_lines(table):
        cells = [
            [name, value("adherence", e), interval("adherence", e), str(e.n)] for name, e in lines
        ]
        parts += ["## Adherence", markdown_table(["Images", "Share", "Interval", "n"], cells)]
    if table.published:
        metrics, lines_said = published_lines(table)
        header = ["Set-up", *(display(metric).heading for metric in metrics), "Source"]
        cells = [[row.setup, *map(_beside, found), row.source] for row, found in lines_said]
        parts += ["## Published", markdown_table(header, cells)]
    for small in report.small_tables:
        rows = [list(row) for row in small.rows]
        parts += [f"## {plain(small.title)}", markdown_table(list(small.columns), rows)]
        parts.append(plain(small.note))
    facts = (
        ("Data", flat(report.data, joint=": ")),
        ("Time", times(report.seconds)),
        ("Settings", flat(report.settings)),
        ("Versions", list(report.versions.items())),
    )
    for title, pairs in facts:
        if pairs:
            cells = [[name, text] for name, text in pairs]
            parts += [f"## {title}", markdown_table([title, ""], cells)]
    seeds = ", ".join(str(seed) for seed in report.seeds)
    parts.append(plain(f"Seeds: {seeds}") if seeds else "")
    parts.append(plain(f"Command: {report.command}") if report.command else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def _beside(cell: Beside) -> str:
    if cell.ours is None:
        return cell.published
    ours = f"{value(cell.metric, cell.ours)} {interval(cell.metric, cell.ours)}"
    return f"{cell.published} (ours {ours})"


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line, in a table's cell too."""
    text = " ".join(text.split())
    return re.sub(r"([\\`*|<>~#]|!(?=\[)|\[(?=[^\]]*\]\()|(?<=\])\()", r"\\\1", text).replace(
        "&", "&amp;"
    )


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table; the cells are escaped here."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    cells = [
        line if i == 1 else [escape_markdown(cell) for cell in line] for i, line in enumerate(lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def markdown_results(table: Table) -> str:
    """The results, the differences and the reasons of what is undefined."""
    notes, names = Footnotes(), table.metrics
    headings = [display(name).heading for name in names]
    results = [
        [row.setup, f"{row.n_real:,}", f"{row.n_synthetic:,}", row.basis]
        + [_cell(row.metrics.get(m), m, notes, row.undefined.get(m, "")) for m in names]
        for row in table.rows
    ]
    header = ["Set-up", "Real images", "Synthetic images", "Mean of"]
    parts = [markdown_table(header + headings, results)]
    compared = []
    for row, difference in table.comparisons:
        cells = []
        for m in names:
            found = difference.metrics.get(m)
            reason = "" if found else why_undefined(table, row, difference, m)
            p = p_values(table, m, difference) if found else ""
            cells.append(_cell(found, m, notes, reason, signed=True) + f"{', ' * bool(p)}{p}")
        each = each_training(table, difference) or "–"
        compared.append([row.setup, difference.to, row.basis, cells[0], each, *cells[1:]])
    if compared:
        header = ["Set-up", "minus", "Mean of", headings[0], "of each training", *headings[1:]]
        parts += ["Paired differences:", markdown_table(header, compared)]
    parts += [f"{i}. {escape_markdown(reason)}" for i, reason in enumerate(notes.reasons, 1)]
    if table.refused:
        refused = [[refusal.setup, refusal.reason] for refusal in table.refused]
        parts += ["Not run:", markdown_table(["Set-up", "Reason"], refused)]
    return "\n\n".join(parts)


def _cell(
    found: Estimate | None, metric: str, notes: Footnotes, reason: str, *, signed: bool = False
) -> str:
    if found is None:
        return f"– ({notes.mark(reason)})"
    text = f"{value(metric, found, signed=signed)} {interval(metric, found, signed=signed)}"
    return f"{text}, n = {found.n}"
