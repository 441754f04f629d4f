import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from classifier.data.image_folder import ImageFolderDataModule
from tests.training import runs

SGD: dict[str, Any] = {"_target_": "torch.optim.SGD", "lr": 0.5}
EXACT = {**runs.CNN, "batch_norm": False, "drop_rate": 0.0}


def photos(folder: Path) -> ImageFolderDataModule:
    """42 training images in batches of 8, 8, 8, 8, 5 and 5."""
    return ImageFolderDataModule(folder, image_size=8, channels=1, batch_size=8, num_workers=0)


@pytest.mark.parametrize(("accumulate", "limit"), [(1, None), (4, None), (4, 5)])
def test_a_step_has_the_mean_gradient_of_its_images(
    accumulate: int, limit: int | None, folder: Path, tmp_path: Path
) -> None:
    model = runs.make_classifier(model=EXACT, optimizer=SGD)
    reference = copy.deepcopy(model)
    settings: dict[str, Any] = {"accumulate_grad_batches": accumulate, "limit_train_batches": limit}
    trainer = runs.trainer(tmp_path, max_epochs=1, limit_val_batches=0, **settings)
    trainer.fit(model, datamodule=photos(folder))

    data = photos(folder)
    data.setup()
    batches = list(data.train_dataloader())[:limit]
    assert [len(batch["label"]) for batch in batches] == [8, 8, 8, 8, 5, 5][:limit]
    optimizer = torch.optim.SGD(reference.parameters(), SGD["lr"])
    for start in range(0, len(batches), accumulate):
        images = torch.cat([batch["image"] for batch in batches[start : start + accumulate]])
        labels = torch.cat([batch["label"] for batch in batches[start : start + accumulate]])
        optimizer.zero_grad()
        functional.cross_entropy(reference(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert trainer.global_step == -(-len(batches) // accumulate)
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), atol=1e-6, rtol=1e-5)
