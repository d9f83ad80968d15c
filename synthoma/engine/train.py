"""The one training loop: GANs, refiners, classifiers and detectors are all trained here."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from synthoma.engine.run import Run, State
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Batch, Player, Request, System, Turn
from synthoma.errors import DivergedError, SettingsError

SHOWN_EVERY_SECONDS = 0.5


@runtime_checkable
class Serve(Protocol):
    """Gives the batch for (request, step, move, part); a pure function, so that a resumed run
    sees what an uninterrupted one would have seen. May also have `prefetch` of the same form."""

    def __call__(self, request: Request, step: int, move: int, part: int = 0) -> Batch: ...


@dataclass(frozen=True)
class Watch:
    """What the loop tells while it runs; each is optional."""

    progress: Callable[[int, int, float, dict[str, float]], None] | None = None
    """(step, steps, images per second, newest losses), a few times a second."""
    validate: Callable[[System], dict[str, float]] | None = None
    """Judges the (averaged) weights; called in evaluation mode without gradients."""
    picture: Callable[[System, int], None] | None = None
    """Writes a sample grid for a step; called with the averaged weights in evaluation mode."""


@dataclass
class Outcome:
    """How a call of `train` ended."""

    step: int
    """The last step that was made."""
    stopped: str
    """"finished", "minutes", "signal" or "patience"."""
    best_step: int = 0
    best_value: float = float("-inf")
    seconds: float = 0.0
    """Of this call."""
    validations: list[dict[str, float]] = field(default_factory=list)


def train(
    system: System,
    serve: Serve,
    settings: TrainSettings,
    *,
    seed: int,
    run: Run | None = None,
    minutes: float | None = None,
    watch: Watch | None = None,
    device: torch.device | str = "cpu",
) -> Outcome:
    """Play `system`'s game for `settings.steps` steps, or go on where `run` stopped.

    At the end the system carries the weights to use: the best ones where `keep_best` is set,
    averaged where a player averages.

    Args:
        seed: Fixes every random choice of the game (the weights' first values are the caller's).
        run: Where to checkpoint, log and resume; None trains in memory.
        minutes: Stop at a checkpoint after this long; the run can be resumed.

    Raises:
        DivergedError: A loss stopped being finite.
    """
    watch = watch or Watch()
    system.to(device).train()
    with threads(settings.threads), stop_signals() as stopped:
        game = Game(system, settings, seed, torch.device(device))
        if run is not None:
            state = run.load_newest()
            if state is not None:
                game.load(state)
            run.cut_log(game.step)
        outcome = play(game, serve, run, minutes, watch, stopped)
    game.to_use(run)
    return outcome


class Game:
    """Everything that a step depends on: weights, optimisers, averages, the step."""

    def __init__(
        self, system: System, settings: TrainSettings, seed: int, device: torch.device
    ) -> None:
        self.system, self.settings, self.seed, self.device = system, settings, seed, device
        self.step = 0
        self.best_step, self.best_value, self.unimproved = 0, float("-inf"), 0
        self.best_state: dict[str, Tensor] | None = None
        self.deal(1)
        self.averages: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in self.averaged_tensors().items()
        }

    def deal(self, step: int) -> None:
        """The players of a step, with fresh optimisers."""
        self.players = self.system.players(step)
        self.base_rates = [
            [group["lr"] for group in player.optimizer.param_groups] for player in self.players
        ]

    @property
    def patience_ended(self) -> bool:
        """Whether validations have not improved for as often as the settings bear."""
        return 0 < self.settings.patience <= self.unimproved

    def averaged_tensors(self) -> dict[str, Tensor]:
        """Parameters of players that average, by their name in the system's state."""
        wanted = {
            id(tensor)
            for player in self.players
            if player.average is not None
            for module in player.modules
            for tensor in module.parameters()
        }
        return {name: t for name, t in self.system.named_parameters() if id(t) in wanted}

    def make_step(self, serve: Serve) -> tuple[dict[str, float], int]:
        """One step: every player makes its moves. Returns the losses by name, and the step's
        images."""
        step = self.step + 1
        if self.system.stage(step) != self.system.stage(self.step or 1):
            self.deal(step)
        request = self.system.request(step)
        shared: dict[str, Tensor] = {}
        terms: dict[str, float] = {}
        for player, rates in zip(self.players, self.base_rates, strict=True):
            for group, rate in zip(player.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * player.rate(step, self.settings.steps)
            for move in range(player.moves):
                terms |= self.make_move(player, serve, request, step, move, shared)
            average(self.averages, self.averaged_tensors(), player, step)
        terms |= {n.removeprefix("log/"): t.item() for n, t in shared.items() if n[:4] == "log/"}
        self.step = step
        return terms, request.size

    def make_move(
        self,
        player: Player,
        serve: Serve,
        request: Request,
        step: int,
        move: int,
        shared: dict[str, Tensor],
    ) -> dict[str, float]:
        weights = [p for module in player.modules for p in module.parameters()]
        player.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for part in range(request.parts):
            batch = {k: v.to(self.device) for k, v in serve(request, step, move, part).items()}
            key = (self.seed, step, player.name, move, part)
            torch.manual_seed(seed_of(*key))  # for nn.Dropout, which takes no generator
            turn = Turn(step, move, generator_for(*key), shared)
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"
            ):
                losses = self.system.losses(player.name, batch, turn)
            total = torch.stack([term.float() for term in losses.values()]).sum()
            values = {f"{player.name}/{name}": term.item() for name, term in losses.items()}
            if not torch.isfinite(total):
                raise DivergedError(
                    f"step {step}, player {player.name}: a loss is not finite: {values}. A smaller "
                    "learning rate or float32 may help"
                )
            # only the moving player's weights: graphs that reach further cost nothing there
            (total / request.parts).backward(inputs=weights)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / request.parts
        player.optimizer.step()
        self.system.after_move(player.name, batch, turn)
        return sums

    @contextlib.contextmanager
    def averaged(self) -> Iterator[System]:
        """The system in evaluation mode with averaged weights in place, for the block."""
        own = {name: tensor.detach().clone() for name, tensor in self.averaged_tensors().items()}
        put(self.system, self.averages)
        self.system.eval()
        try:
            with torch.no_grad():
                yield self.system
        finally:
            put(self.system, own)
            self.system.train()

    def state(self) -> State:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "system": self.system.state_dict(),
            "optimizers": {p.name: p.optimizer.state_dict() for p in self.players},
            "averages": self.averages,
            "best": [self.best_step, self.best_value, self.unimproved],
        }

    def load(self, state: State) -> None:
        """Go on from a checkpoint."""
        self.step = state["step"]
        self.system.load_state_dict(state["system"])
        self.deal(self.step)
        for player in self.players:
            player.optimizer.load_state_dict(state["optimizers"][player.name])
        self.averages = {name: t.to(self.device) for name, t in state["averages"].items()}
        self.best_step, self.best_value, self.unimproved = state["best"]

    def to_use(self, run: Run | None) -> None:
        """Put the weights to use in place: the best where one was kept, averaged otherwise."""
        if self.settings.keep_best and self.best_step:
            best = self.best_state if run is None else run.load("best")
            if best is None:
                raise AssertionError("a best step without its weights")
            self.system.load_state_dict(best)
        else:
            put(self.system, self.averages)
        self.system.eval()


def play(
    game: Game,
    serve: Serve,
    run: Run | None,
    minutes: float | None,
    watch: Watch,
    stopped: Callable[[], bool],
) -> Outcome:
    """Step after step, with checkpoints, logs, pictures and validations where they are due."""
    settings = game.settings
    began, shown, seen = time.monotonic(), 0.0, 0
    outcome = Outcome(game.step, "finished", game.best_step, game.best_value)
    # beside a GPU the next batch is made ahead; on a CPU it would only take cores from the step
    # (measured on two: 89 ms a CPGGAN step at 64 px without, 120 with)
    ahead = getattr(serve, "prefetch", None) if game.device.type != "cpu" else None
    with contextlib.closing(tensorboard(run, game.step)) as writer:
        while game.step < settings.steps and not game.patience_ended:
            terms, images = game.make_step(serve)
            step, seen, last = game.step, seen + images, game.step == settings.steps
            if ahead is not None and not last:
                ahead(game.system.request(step + 1), step + 1, 0)
            now = time.monotonic()
            if watch.progress is not None and (now - shown >= SHOWN_EVERY_SECONDS or last):
                watch.progress(step, settings.steps, seen / (now - began), terms)
                shown = now
            if run is not None and (step % settings.log_every == 0 or last):
                run.log({"step": step, "seconds": round(now - began, 1)} | terms)
                for name, value in terms.items():
                    writer.add_scalar(name, value, step)
            if due(step, settings.validate_every, last) and watch.validate is not None:
                judged = validate(game, run, watch.validate)
                outcome.validations.append({"step": step, **judged})
            if due(step, settings.sample_every, last) and watch.picture is not None:
                with game.averaged() as system:
                    watch.picture(system, step)
            last = last or game.patience_ended
            if stopped() and not last:
                outcome.stopped = "signal"
            elif minutes is not None and now - began >= 60 * minutes and not last:
                outcome.stopped = "minutes"
            ending = outcome.stopped != "finished"
            if run is not None and (step % settings.checkpoint_every == 0 or last or ending):
                run.save_step(step, game.state(), keep=settings.keep_checkpoints)
            if ending:
                break
    if outcome.stopped == "finished" and game.step < settings.steps:
        outcome.stopped = "patience"
    outcome.step, outcome.seconds = game.step, time.monotonic() - began
    outcome.best_step, outcome.best_value = game.best_step, game.best_value
    return outcome


def validate(
    game: Game, run: Run | None, judge: Callable[[System], dict[str, float]]
) -> dict[str, float]:
    """Judge the averaged weights and keep them where they are the best so far."""
    settings = game.settings
    with game.averaged() as system:
        judged = judge(system)
        if settings.keep_best and settings.keep_best not in judged:
            raise SettingsError(
                f"train.keep_best={settings.keep_best}: validation gives {', '.join(judged)}"
            )
        if settings.keep_best and game.step >= settings.validate_from:
            value = judged[settings.keep_best]
            if value > game.best_value or not game.best_step:
                game.best_step, game.best_value, game.unimproved = game.step, value, 0
                weights = {n: t.detach().clone() for n, t in system.state_dict().items()}
                if run is None:
                    game.best_state = weights
                else:
                    run.save("best", weights)
            else:
                game.unimproved += 1
    if run is not None:
        run.log({"step": game.step, "validation": judged})
    return judged


def due(step: int, every: int, last: bool) -> bool:
    """Whether something that happens `every` so many steps, and at the end, happens now."""
    return last or (every > 0 and step % every == 0)


@torch.no_grad()
def average(
    averages: Mapping[str, Tensor], tensors: Mapping[str, Tensor], player: Player, step: int
) -> None:
    """Move the averages of a player's weights towards them."""
    if player.average is None:
        return
    own = {id(t) for module in player.modules for t in module.parameters()}
    names = [name for name, tensor in tensors.items() if id(tensor) in own]
    torch._foreach_lerp_(
        [averages[name] for name in names],
        [tensors[name].detach() for name in names],
        1 - player.average(step),
    )


@torch.no_grad()
def put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the parameters of these names."""
    parameters = dict(module.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def seed_of(seed: int, step: int, player: str, move: int, part: int = 0) -> int:
    """A seed that depends on these and nothing else."""
    digest = sha256(f"{seed}/{step}/{player}/{move}/{part}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63


def generator_for(seed: int, step: int, player: str, move: int, part: int = 0) -> torch.Generator:
    """A CPU generator that depends on these and nothing else."""
    return torch.Generator().manual_seed(seed_of(seed, step, player, move, part))


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Torch's threads for the block; 0 leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT ask the loop to stop after the step under way; a second one kills."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(130)
        received.append(number)

    before: Sequence[tuple[signal.Signals, Any]] = []
    with contextlib.suppress(ValueError):  # not in the main thread: nothing to catch
        before = [(s, signal.signal(s, note)) for s in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before:
            signal.signal(number, handler)


class _NoWriter:
    """Stands in for TensorBoard where there is no run folder."""

    def add_scalar(self, name: str, value: float, step: int) -> None: ...

    def close(self) -> None: ...


def tensorboard(run: Run | None, step: int) -> Any:
    """TensorBoard's writer for a run; earlier events after `step` are purged when shown."""
    if run is None:
        return _NoWriter()
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (a second of imports)

    return SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1)
