"""Which run `resume=...` goes on with, and what may change when it does. Imports no torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from classifier.config import find_runs, read_starts
from classifier.errors import UserError
from classifier.overrides import argument

SHARDED = "sharded"  # the trainer.strategy that training.sharding adds
# what acts on the rest of a run: where and for how long it trains, and what it shows; a part ending in . is a section
CHANGEABLE = ("resume", "run_dir", "log_dir", "name", "test", "trainer.", "callbacks.", "logger.", "speed.",
              "finetune.", "loss.", "mix.", "ema", "data.train_size",
              "data.root", "data.table", "data.images", "data.annotations", "data.image_sets", "data.batch_size",
              "data.num_workers", "data.on_error", "data.check", "data.cache", "data.cache_size", "data.cache_dir",
              "data.augment.", "data.split_file")  # fmt: skip
# but these would disagree with what the checkpoint holds: the length of an epoch, the scores of the best, and in memory
# the order of the optimiser's state, which fused optimisers on a CPU do not look at
FIXED = ("trainer.accumulate_grad_batches", "trainer.limit_train_batches", "trainer.overfit_batches",
         "speed.channels_last", "callbacks.best.monitor", "callbacks.best.mode",
         "callbacks.best.save_top_k")  # fmt: skip


def require_changeable(stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse changes to a run's config that would have no effect, or a wrong one, on the rest of the run.

    Args:
        stored: The run's own.
        config: That to go on with.

    Raises:
        UserError: With the first such key.
    """
    begun, goes_on = (str(config["trainer"]["strategy"]) for config in (stored, config))
    if (begun == SHARDED) != (goes_on == SHARDED):
        # Lightning finds the parameters of an optimiser's state by their order, which groups of them change
        raise UserError(
            f"trainer.strategy={goes_on}: this run began with {begun}, and its optimiser goes on with that alone; for "
            "a new run from its weights, use init_from=... instead of resume"
        )
    before, now = dict(_leaves(stored)), dict(_leaves(config))
    for key in {**now, **before}:
        may_change = key.startswith(CHANGEABLE) and not (key in now and key.startswith(FIXED))
        if now.get(key) != before.get(key) and not may_change:
            raise UserError(
                f"{key}={now.get(key)} has no effect on a run that goes on, which began with {before.get(key)}: what "
                "can change is trainer.max_epochs, devices and other keys of trainer, data.root, data.num_workers, "
                "callbacks, logger. For a new run from these weights, use init_from=... instead of resume"
            )


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if prefix == "" and key == "augment" and not isinstance(value, str):
            continue  # it is in data.augment too, and there alone in a run that goes on
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def run_of_the_same_command(typed: list[str], log_dir: Path) -> tuple[Path | None, list[str]]:
    """The run that `resume=auto` goes on with, None to begin one; and those overrides that it did not begin with.

    It is the one in `run_dir`, where that is typed, or else the latest below `log_dir` that was begun with the same
    overrides.

    Args:
        typed: The overrides, as they are for a new run.

    Raises:
        UserError: The run in `run_dir` was begun with other keys.
    """
    typed = [text for text in typed if not text.startswith(("-", "hydra."))]
    if (named := argument("run_dir")) is None:
        same = [run for run in find_runs(log_dir, debug=True) if sorted(_begun_with(run)) == sorted(typed)]
        return (same[-1] if same else None), []
    run = Path(named)
    if not (run / "config.yaml").is_file():
        return None, []
    begun_with = _begun_with(run)
    keys = {text.partition("=")[0] for text in typed}
    if missing := [text for text in begun_with if text.partition("=")[0] not in keys]:
        raise UserError(
            f"run_dir={run} holds a run that was begun with {' '.join(missing)}: type that too, or name another run_dir"
        )
    return run, [text for text in typed if text not in begun_with]


def is_finished(run: Path) -> bool:
    """Whether the run has trained and tested to its end."""
    return (run / "metrics.json").is_file()


def _begun_with(run: Path) -> list[str]:
    starts = read_starts(run)
    return list(starts[0]["overrides"]) if starts else []
