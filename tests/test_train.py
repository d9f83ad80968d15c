"""The one loop: what it does between steps, and that stopping changes nothing."""

import json
import os
import signal
import threading

import pytest
import torch
from torch import nn

from synthoma.engine.run import Run
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Losses, Player, Request, System, Turn
from synthoma.engine.train import Watch, generator_for, train
from synthoma.errors import DataError, DivergedError, SettingsError


class Tug(System):
    """Two players, dropout, a buffer, a stage and an average: all that a checkpoint must hold."""

    def __init__(self, *, poison_at: int = 0) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.right = nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(()))
        self.poison_at = poison_at

    def stage(self, step):
        return step > 4

    def request(self, step):
        return Request(size=4, side_px=1, parts=2)

    def players(self, step):
        def adam(net):
            return torch.optim.Adam(net.parameters(), lr=0.05)

        return (
            Player("left", (self.left,), adam(self.left), moves=2, average=lambda step: 0.9),
            Player("right", (self.right,), adam(self.right), rate=lambda step, steps: 1 / step),
        )

    def losses(self, player: str, batch, turn: Turn) -> Losses:
        chance = torch.randn(2, 3, generator=turn.generator)
        pull = self.left(batch["image"] + chance) - self.right(batch["image"])
        if turn.step == self.poison_at:
            pull = pull * float("nan")
        turn.shared["log/pull"] = pull.detach().mean()
        return {"pull": pull.square().mean() if player == "left" else (pull - 1).square().mean()}

    def after_move(self, player, batch, turn):
        self.seen += batch["image"].sum()


def serve(request, step, move, part=0):
    chance = torch.Generator().manual_seed(1000 * step + 10 * move + part)
    return {"image": torch.randn(request.size // request.parts, 3, generator=chance)}


def settings(**changes):
    return TrainSettings(
        **{"steps": 9, "checkpoint_every": 2, "log_every": 1, "keep_checkpoints": 99} | changes
    )


def fresh(**kwargs):
    torch.manual_seed(0)
    return Tug(**kwargs)


def new_run(folder):
    return Run.create(folder, {"name": "tug", "seed": 0})


def bytes_of(run):
    return {path.name: path.read_bytes() for path in sorted(run.checkpoints.glob("*.safetensors"))}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop catches it."""


def die_at(step):
    def progress(now, *_):
        if now == step:
            raise Killed

    return Watch(progress=progress)


@pytest.mark.parametrize("killed_at", range(1, 9))
def test_a_run_killed_after_any_step_and_resumed_ends_in_the_same_bytes(
    tmp_path, killed_at, monkeypatch
):
    monkeypatch.setattr("synthoma.engine.train.SHOWN_EVERY_SECONDS", 0.0)
    whole, broken = new_run(tmp_path / "whole"), new_run(tmp_path / "broken")
    train(fresh(), serve, settings(), seed=3, run=whole)
    with pytest.raises(Killed):
        train(fresh(), serve, settings(), seed=3, run=broken, watch=die_at(killed_at))
    outcome = train(fresh(), serve, settings(), seed=3, run=Run.open(broken.folder))
    assert outcome.step == 9
    assert bytes_of(whole) == bytes_of(broken)

    def without_seconds(run):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in run.read_log()]

    assert without_seconds(whole) == without_seconds(broken)


def test_a_new_stage_has_fresh_optimisers(tmp_path):
    run = new_run(tmp_path / "run")
    train(fresh(), serve, settings(), seed=0, run=run)
    moves = {
        step: int(run.load(f"step-{step:08}")["optimizers"]["left"]["state"][0]["step"])
        for step in (4, 6, 8)
    }
    assert moves == {4: 8, 6: 4, 8: 8}  # two moves a step; the stage changes at step 5


def test_another_seed_ends_elsewhere(tmp_path):
    ends = []
    for seed in (0, 1):
        system = fresh()
        train(system, serve, settings(), seed=seed)
        ends.append(system.right.weight.detach().clone())
    assert not torch.equal(*ends)


def test_the_system_ends_with_averaged_weights_of_those_who_average():
    averaged, plain = fresh(), fresh()
    train(averaged, serve, settings(steps=1), seed=0)
    players = plain.players(1)
    moved = fresh()
    del players
    # right does not average: its weights are those that Adam left; left stays near its start
    assert not torch.equal(averaged.right.weight, moved.right.weight)
    start = (averaged.left[0].weight - moved.left[0].weight).abs().max()
    # two Adam moves of 0.05 would be up to 0.1; a tenth of that remains after averaging
    assert 0 < start < 0.011


def test_a_loss_that_is_not_finite_names_step_and_player():
    with pytest.raises(DivergedError, match=r"step 3, player left.*pull"):
        train(fresh(poison_at=3), serve, settings(), seed=0)


def test_time_that_is_up_leaves_a_checkpoint_to_resume_from(tmp_path):
    run = new_run(tmp_path / "run")
    outcome = train(fresh(), serve, settings(checkpoint_every=100), seed=0, run=run, minutes=0)
    assert outcome.stopped == "minutes"
    assert outcome.step == 1
    assert run.steps_saved() == [1]
    assert train(fresh(), serve, settings(), seed=0, run=run).step == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_under_way_with_a_checkpoint(tmp_path, number):
    run = new_run(tmp_path / "run")
    before = signal.getsignal(number)

    def ask(request, step, move, part=0):
        if (step, move, part) == (3, 1, 0):  # once: a second one would end the process
            os.kill(os.getpid(), number)
        return serve(request, step, move, part)

    # signals reach the main thread; pytest runs tests there
    assert threading.current_thread() is threading.main_thread()
    outcome = train(fresh(), ask, settings(checkpoint_every=100), seed=0, run=run)
    assert (outcome.stopped, outcome.step, run.steps_saved()) == ("signal", 3, [3])
    assert signal.getsignal(number) is before


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run = new_run(tmp_path / "run")
    train(fresh(), serve, settings(checkpoint_every=1, keep_checkpoints=3), seed=0, run=run)
    assert run.steps_saved() == [7, 8, 9]


def judge_by_step():
    judged = iter([0.2, 0.9, 0.5, 0.4, 0.3, 0.1, 0.1, 0.1, 0.1])
    return Watch(validate=lambda system: {"score": next(judged)})


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_weights_to_use_are_those_that_validated_best(tmp_path, in_memory):
    run = None if in_memory else new_run(tmp_path / "run")
    system = fresh()
    choosing = settings(validate_every=1, keep_best="score")
    outcome = train(system, serve, choosing, seed=0, run=run, watch=judge_by_step())
    assert (outcome.best_step, outcome.best_value) == (2, 0.9)
    two_steps = fresh()
    train(two_steps, serve, settings(steps=2), seed=0)
    assert torch.equal(system.right.weight, two_steps.right.weight)
    assert torch.equal(system.left[0].weight, two_steps.left[0].weight)


def test_patience_ends_a_run_that_no_longer_improves():
    outcome = train(
        fresh(),
        serve,
        settings(validate_every=1, keep_best="score", patience=3),
        seed=0,
        watch=judge_by_step(),
    )
    assert (outcome.stopped, outcome.step) == ("patience", 5)


def test_validation_from_a_later_step_ignores_earlier_ones():
    outcome = train(
        fresh(),
        serve,
        settings(validate_every=1, validate_from=4, keep_best="score"),
        seed=0,
        watch=judge_by_step(),
    )
    assert outcome.best_step == 4


def test_parts_add_up_to_the_gradient_of_the_whole_batch():
    class Mean(System):
        def __init__(self, parts):
            super().__init__()
            self.line, self.parts = nn.Linear(3, 1, bias=False), parts

        def request(self, step):
            return Request(size=6, side_px=1, parts=self.parts)

        def players(self, step):
            return (Player("p", (self.line,), torch.optim.SGD(self.line.parameters(), lr=0.1)),)

        def losses(self, player, batch, turn):
            return {"mean": self.line(batch["image"]).mean()}

    whole = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))

    def in_parts(request, step, move, part=0):
        n = request.size // request.parts
        return {"image": whole[part * n : (part + 1) * n]}

    weights = []
    for parts in (1, 3):
        torch.manual_seed(0)
        system = Mean(parts)
        train(system, in_parts, settings(steps=1), seed=0)
        weights.append(system.line.weight)
    assert torch.allclose(*weights, atol=1e-7)


def test_shared_values_named_log_are_logged_and_not_minimised(tmp_path):
    run = new_run(tmp_path / "run")
    train(fresh(), serve, settings(steps=2), seed=0, run=run)
    row = run.read_log()[-1]
    assert {"step", "seconds", "left/pull", "right/pull", "pull"} == set(row)


def test_an_existing_folder_is_never_taken_for_a_new_run(tmp_path):
    new_run(tmp_path / "run")
    with pytest.raises(SettingsError, match="train --resume"):
        new_run(tmp_path / "run")


def test_an_older_checkpoint_serves_where_the_newest_was_cut_short(tmp_path):
    run = new_run(tmp_path / "run")
    train(fresh(), serve, settings(), seed=0, run=run)
    whole = bytes_of(run)
    newest = run.checkpoints / "step-00000009.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    train(fresh(), serve, settings(), seed=0, run=run)
    assert bytes_of(run) == whole
    for path in run.checkpoints.iterdir():
        path.write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match=r"step-00000009\.safetensors"):
        train(fresh(), serve, settings(), seed=0, run=run)


def test_a_metric_that_validation_does_not_give_is_refused():
    choosing = settings(validate_every=1, keep_best="sensitivity")
    with pytest.raises(SettingsError, match=r"keep_best=sensitivity.*score"):
        train(fresh(), serve, choosing, seed=0, watch=judge_by_step())


def test_a_run_that_patience_ended_makes_no_further_step_when_resumed(tmp_path):
    run = new_run(tmp_path / "run")
    patient = settings(validate_every=1, keep_best="score", patience=3)
    first = train(fresh(), serve, patient, seed=0, run=run, watch=judge_by_step())
    kept = bytes_of(run)
    again = train(fresh(), serve, patient, seed=0, run=run, watch=judge_by_step())
    assert (first.stopped, first.step) == (again.stopped, again.step) == ("patience", 5)
    assert bytes_of(run) == kept


def test_two_processes_do_not_train_one_run(tmp_path):
    run = new_run(tmp_path / "run")
    with run.locked(), pytest.raises(SettingsError, match="another process"), run.locked():
        pass


def test_looking_at_a_run_changes_nothing_in_it(tmp_path):
    run = new_run(tmp_path / "run")
    draft = run.checkpoints / ".step-00000001.safetensors.partial"
    draft.write_bytes(b"being written")
    Run.open(run.folder)
    assert draft.exists()
    run.clean()
    assert not draft.exists()


def test_a_shared_model_that_was_changed_is_refused(tmp_path):
    run = new_run(tmp_path / "run")
    run.finish({"w": torch.ones(2)}, {"name": "tug"})
    facts, weights = run.read_model()
    assert facts["name"] == "tug"
    assert torch.equal(weights["w"], torch.ones(2))
    path = run.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DataError, match="SHA-256"):
        run.read_model()


def test_a_half_written_last_row_of_the_log_is_forgotten(tmp_path):
    run = new_run(tmp_path / "run")
    run.log({"step": 1})
    with run.log_path.open("a") as file:
        file.write(json.dumps({"step": 2})[:5])
    assert run.read_log() == [{"step": 1}]


def test_chance_depends_on_every_one_of_its_five_numbers():
    base = (0, 1, "critic", 0, 0)
    others = [(1, *base[1:]), (0, 2, *base[2:]), (0, 1, "generator", 0, 0), (0, 1, "critic", 1, 0)]
    first = torch.rand(1, generator=generator_for(*base)).item()
    assert torch.rand(1, generator=generator_for(*base)).item() == first
    for other in [*others, (0, 1, "critic", 0, 1)]:
        assert torch.rand(1, generator=generator_for(*other)).item() != first
