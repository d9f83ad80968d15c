"""What a log file shows of a long run."""

import pytest

from synthoma import console


def test_the_time_left_of_a_resumed_run_counts_what_was_done_today(monkeypatch, capsys):
    clock = iter([0.0, 0.0, 20.0, 40.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: False, raising=False)
    with console.progress("train") as tell:
        tell(901, 1000, "")  # resumed at 900
        tell(920, 1000, "")  # 20 steps in 20 s: 80 s left
        tell(1000, 1000, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 920/1000, 1 min 20 s left"
    assert lines[-1] == "train: 1000/1000 in 40 s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3599.7, "1 h 00 min")]
)
def test_durations_round_up_into_the_next_unit(seconds, text):
    assert console.duration(seconds) == text
