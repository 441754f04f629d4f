"""What a batch is worth in its optimiser step."""

import pytorch_lightning as pl

from classifier.data.loader import ResumableLoader


def step_share(trainer: pl.Trainer, batch_idx: int, images: int) -> float:
    """What a batch's mean loss is multiplied by, so that a step's gradient is the mean over all of its images.

    Lightning takes the mean over processes and divides by `accumulate_grad_batches`: right where all batches of a step
    are of one size and the step has its full number of them, which the end of an epoch need not give.

    Args:
        batch_idx: Of the batch in its epoch.
        images: In this process's batch.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, ResumableLoader):
        return 1.0
    accumulate = trainer.accumulate_grad_batches
    first = batch_idx - batch_idx % accumulate
    last = min(first + accumulate, int(trainer.num_training_batches))
    bounds = loader.epoch_sampler.bounds
    return images * trainer.world_size * accumulate / (bounds[last] - bounds[first])
