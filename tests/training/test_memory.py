"""What happens when memory runs out: here a hook that refuses large batches; real limits are in tests/verbs."""

import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from classifier.errors import UserError
from classifier.training.checkpoints import RunCheckpoint
from classifier.training.memory import is_out_of_memory, same_effective_batch, smaller_batch
from classifier.training.module import MICRO_BATCHES, ImageClassifier
from tests.training import runs

EXACT: dict[str, Any] = {**runs.CNN, "batch_norm": False, "drop_rate": 0.0}  # whose batches can be divided
SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}


class LittleMemory(pl.Callback):
    """Refuses more than `images` at a time, in the network's forward or in mid-backward, from batch `first` on.

    Args:
        rank: The process that has little memory; None for all.
    """

    def __init__(self, images: int, where: str = "forward", first: int = 0, rank: int | None = None) -> None:
        self.images, self.where, self.first, self.rank = images, where, first, rank
        self.on = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        layers = [layer for layer in pl_module.modules() if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d))]
        layers[-1].register_forward_hook(self.hook)  # behind BatchNorm, and amid the layers for the backward

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.on = trainer.fit_loop.total_batch_idx >= self.first and self.rank in (None, trainer.global_rank)

    def on_validation_start(self, *arguments: Any) -> None:
        self.on = False

    def hook(self, layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self.where == "forward":
            self.refuse(output)
        elif output.requires_grad:
            output.register_hook(self.refuse)  # type: ignore[no-untyped-call]

    def refuse(self, tensor: torch.Tensor) -> None:
        if self.on and len(tensor) > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def fit(
    run_dir: Path, memory: LittleMemory | None = None, model: dict[str, Any] | None = None, **trainer: Any
) -> tuple[ImageClassifier, pl.Trainer]:
    network = runs.make_classifier(**{"model": EXACT, "optimizer": SGD, "on_oom": "accumulate", **(model or {})})
    callbacks = [memory] if memory is not None else []
    made = runs.trainer(run_dir, callbacks, **{"max_epochs": 2, **trainer})
    made.fit(network, runs.loader(count=21, batch_size=8), runs.loader())
    return network, made


def assert_same(first: nn.Module, second: nn.Module, rtol: float = 0, atol: float = 0) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    "trainer",
    [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.05}, {"precision": "bf16-mixed"}],
    ids=["plain", "accumulated", "clipped", "bf16"],
)
def test_parts_have_the_gradient_of_the_whole(where: str, trainer: dict[str, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "loss": {"label_smoothing": 0.1, "class_weight": [0.5, 1.0, 3.0]},
        "mix": {"mixup": 0.4, "cutmix": 1.0},
    }
    whole, run = fit(tmp_path, model={**settings, "on_oom": "raise"}, **trainer)
    parts, divided = fit(tmp_path, LittleMemory(3, where), model=settings, **trainer)
    assert parts.micro_batches is not None
    assert parts.micro_batches.size == 2
    assert divided.global_step == run.global_step
    tolerance = 2e-3 if trainer.get("precision") else 1e-5
    assert_same(whole, parts, rtol=tolerance, atol=tolerance)
    for name in ("train/loss", "train/acc", "val/loss"):
        torch.testing.assert_close(
            divided.callback_metrics[name], run.callback_metrics[name], rtol=tolerance, atol=tolerance
        )


def test_scale_of_fp16_reaches_the_parts(tmp_path: Path) -> None:
    def scaled() -> Any:
        return {"precision": None, "plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}

    config: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
              "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    models: list[ImageClassifier] = []
    for limit, on_oom in ((None, "raise"), (3, "accumulate")):
        model = runs.make_classifier(model=EXACT, optimizer=SGD, on_oom=on_oom)
        trainer = pl.Trainer(**config, **scaled(), callbacks=[LittleMemory(limit)] if limit else [])
        trainer.fit(model, runs.loader(count=16, batch_size=8))
        models.append(model)
    assert_same(models[0], models[1], rtol=2e-3, atol=2e-3)


def test_without_need_nothing_changes(tmp_path: Path) -> None:
    """The same bits, with dropout, BatchNorm and mixup."""
    settings: dict[str, Any] = {"model": runs.CNN, "mix": {"mixup": 0.4}}
    assert_same(fit(tmp_path, model={**settings, "on_oom": "raise"})[0], fit(tmp_path, model=settings)[0])


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_failed_attempt_leaves_no_trace(where: str, tmp_path: Path) -> None:
    """Of a network with dropout and BatchNorm: its first step is that of a run that never tried the whole batch."""
    settings: dict[str, Any] = {"model": runs.CNN, "mix": {"mixup": 0.4}}
    tried, _ = fit(tmp_path, LittleMemory(4, where), model=settings)
    model = runs.make_classifier(**{"optimizer": SGD, "on_oom": "accumulate", **settings})
    assert model.micro_batches is not None
    model.micro_batches.size = 4
    runs.trainer(tmp_path, max_epochs=2).fit(model, runs.loader(count=21, batch_size=8), runs.loader())
    assert_same(tried, model)


def test_memory_that_shrinks_during_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "classifier"):
        model, trainer = fit(tmp_path, LittleMemory(3, first=4))
    assert trainer.global_step == 6
    assert [record.getMessage() for record in caplog.records if record.name.startswith("classifier")] == [
        "out of memory with 8 images at a time: going on with 4, and the same effective batch",
        "out of memory with 4 images at a time: going on with 2, and the same effective batch",
    ]
    assert_same(fit(tmp_path)[0], model, rtol=1e-5, atol=1e-5)


def test_parts_are_resumed(tmp_path: Path) -> None:
    """A run that was interrupted goes on with the parts it had, though by then a whole batch would fit."""
    settings: dict[str, Any] = {"model": runs.CNN, "mix": {"mixup": 0.4}}
    last = RunCheckpoint(dirpath=tmp_path, filename="last", enable_version_counter=False)
    whole, _ = fit(tmp_path, LittleMemory(4), model=settings)
    model = runs.make_classifier(**{"optimizer": SGD, "on_oom": "accumulate", **settings})
    data = runs.loader(count=21, batch_size=8)
    runs.trainer(tmp_path, [LittleMemory(4), last], max_epochs=1).fit(model, data, runs.loader())
    assert torch.load(tmp_path / "last.ckpt")[MICRO_BATCHES] == [4]
    resumed = runs.make_classifier(**{"optimizer": SGD, "on_oom": "accumulate", **settings})
    runs.trainer(tmp_path, max_epochs=2).fit(
        resumed, data, runs.loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert_same(whole, resumed)


def test_one_image_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a single image: use a smaller data\.image_size"):
        fit(tmp_path, LittleMemory(0))


def test_other_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    class Bug(LittleMemory):
        def refuse(self, tensor: torch.Tensor) -> None:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fit(tmp_path, Bug(0))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_process_of_two_divides_its_batches(where: str, accumulate: int, tmp_path: Path) -> None:
    two: dict[str, Any] = {
        "strategy": "ddp_fork",
        "devices": 2,
        "accumulate_grad_batches": accumulate,
        "use_distributed_sampler": True,
    }
    whole, _ = fit(tmp_path, model={"on_oom": "raise"}, **two)
    parts, _ = fit(tmp_path, LittleMemory(3, where, rank=1), **two)
    assert_same(whole, parts, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError, match="not close"):  # both came back from their processes
        assert_same(runs.make_classifier(model=EXACT), parts, rtol=1e-3, atol=1e-3)


class Sharded(DDPStrategy):
    """Stands for those, such as DeepSpeed's, that inherit from Lightning's."""


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Sharded(start_method="fork"), "Sharded: use"),
        ("ddp_fork_find_unused_parameters_true", "DDPStrategy of this kind: use"),
    ],
    ids=["sharded", "unused"],
)
def test_strategy_under_which_a_process_cannot_divide_alone(strategy: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProcessRaisedException, match=message):
        fit(tmp_path, strategy=strategy, devices=2)


def test_batchnorm_that_is_shared_by_processes_is_refused(tmp_path: Path) -> None:
    model = runs.make_classifier(on_oom="accumulate")
    model.network = nn.SyncBatchNorm.convert_sync_batchnorm(model.network)  # type: ignore[no-untyped-call]
    with pytest.raises(UserError, match=r"trainer\.sync_batchnorm=false"):
        runs.trainer(tmp_path, max_epochs=1).fit(model, runs.loader(), runs.loader())


def test_what_to_type() -> None:
    assert same_effective_batch(64, at_most=32) == (32, 2)
    assert same_effective_batch(48, at_most=32) == (24, 2)
    assert same_effective_batch(37, at_most=32) == (1, 37)
    assert same_effective_batch(8, at_most=100) == (8, 1)
    assert smaller_batch(64, 1).startswith("use data.batch_size=32 trainer.accumulate_grad_batches=2 ")
    assert smaller_batch(6, 3).startswith("use data.batch_size=3 trainer.accumulate_grad_batches=6 ")
    assert "not even one image" in smaller_batch(1, 4)


def test_its_signs() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("MPS backend out of memory"))
