from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule

from classifier.errors import UserError
from classifier.training.trainer import shard


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """Of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_blocks_of_a_million_parameters_are_gathered_on_their_own(mesh: DeviceMesh) -> None:
    network = timm.create_model("vit_small_patch16_224", num_classes=3, depth=2, img_size=32)
    images = torch.randn(2, 3, 32, 32)
    before = network.eval()(images)
    shard(network, mesh)
    shard(network, mesh)  # as before the test that follows a fit
    sharded = [name for name, module in network.named_modules() if isinstance(module, FSDPModule)]
    assert sharded == ["", "blocks.0", "blocks.1"]
    torch.testing.assert_close(network(images), before)


def test_list_of_blocks_is_no_block_and_batch_norm_is_refused(mesh: DeviceMesh) -> None:
    network = nn.Identity()
    network.stages = nn.ModuleList([nn.ModuleList([nn.Linear(1000, 1000), nn.Linear(3, 3)])])
    shard(network, mesh)
    assert [name for name, part in network.named_modules() if isinstance(part, FSDPModule)] == ["", "stages.0.0"]
    with pytest.raises(UserError, match=r"ResNet.*trainer=ddp"):
        shard(timm.create_model("resnet18", num_classes=3), mesh)
