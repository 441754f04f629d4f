"""Any network of timm, by name.

Source: R. Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from classifier.errors import UserError, did_you_mean


def timm_model(
    name: str,
    *,
    num_classes: int,
    in_chans: int = 3,
    image_size: Sequence[int] = (224, 224),
    pretrained: bool = True,
    weights: str | None = None,
    checkpoint_path: str | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float | None = None,
) -> nn.Module:
    """Create a timm network with a new head.

    Args:
        name: As in `timm.list_models()`, with an optional tag of the weights: `resnet50.a1_in1k`.
        num_classes: Width of the new head.
        in_chans: Channels of the input; pretrained first layers are adapted.
        image_size: Height and width in pixels, passed on to networks that are built for one size (ViT, Swin, ...).
        pretrained: Load the published weights, from the hub or from `weights`.
        weights: A local file with the published weights (.safetensors, .pth), for machines without a hub.
        checkpoint_path: A local file with weights for this very network and `num_classes`, loaded as they are.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth, for networks that have it; None for the network's default.

    Raises:
        UserError: No such network, a missing file, or a hub that cannot be reached.
    """
    if not timm.is_model(name.partition(".")[0]):
        hint = did_you_mean(name, timm.list_models())
        raise UserError(f"model.name={name} is no network of timm: {hint}")
    for key, path in (("weights", weights), ("checkpoint_path", checkpoint_path)):
        if path is not None and not Path(path).is_file():
            raise UserError(f"model.{key}={path} does not exist")
    options: dict[str, Any] = {"drop_rate": drop_rate}
    if drop_path_rate is not None:
        options["drop_path_rate"] = drop_path_rate
    published = timm.get_pretrained_cfg(name)
    if published is not None and published.fixed_input_size:
        options["img_size"] = tuple(image_size)
    try:
        network: nn.Module = timm.create_model(
            name,
            pretrained=pretrained,
            pretrained_cfg_overlay=None if weights is None else {"file": weights},
            checkpoint_path=checkpoint_path,
            num_classes=num_classes,
            in_chans=in_chans,
            **options,
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot load weights for model.name={name} ({str(error).splitlines()[0]}): use model.weights=FILE for a "
            "local copy, or model.pretrained=false to start without"
        ) from error
    except TypeError as error:
        raise UserError(
            f"model.name={name} does not take one of {', '.join(options)} ({error}): set it to null"
        ) from error
    return network
