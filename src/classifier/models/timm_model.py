"""Any network of timm, by name.

Source: R. Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models
"""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn

from classifier.errors import UserError, as_typed, require_choice, require_number
from classifier.untrusted import report_no_weights

log = logging.getLogger(__name__)


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
        checkpoint_path: A local file with weights for this very network and `num_classes`, loaded as they are; then no
            others are fetched.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth, for networks that have it; None for the network's default.

    Raises:
        UserError: No such network, a missing file, a rate out of its range, or a hub that cannot be reached.
    """
    for library in ("huggingface_hub", "httpx", "timm"):
        logging.getLogger(library).setLevel(logging.ERROR)  # they log each retry; the error below says it once
    require_choice("model.name", name.partition(".")[0], timm.list_models())
    if weights is not None and not pretrained:
        raise UserError(f"model.weights={weights} is loaded with model.pretrained=true only")
    pretrained = pretrained and checkpoint_path is None  # which brings them all, the head too
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
    for key, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if rate is not None:
            require_number(f"model.{key}", rate, least=0, most=1)
            options[key] = rate
    try:
        published_as = timm.get_pretrained_cfg(name)
        if published_as is not None and published_as.fixed_input_size:
            options["img_size"] = tuple(image_size)
        if weights is not None:
            network = _with_weights(name, weights, options)
        else:
            if pretrained and published_as is not None and published_as.hf_hub_id:
                _require_hub(published_as.hf_hub_id)
            network = timm.create_model(name, pretrained=pretrained, **options)
        if checkpoint_path is not None:
            network.load_state_dict(_read("model.checkpoint_path", checkpoint_path, next(iter(_matrices(network)))))
    except UserError:
        raise
    except Exception as error:  # of many kinds, as the file, the arguments or the hub may be at fault
        files = {"model.weights": weights, "model.checkpoint_path": checkpoint_path}
        named = "".join(f"{key}={path} " for key, path in files.items() if path)
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise UserError(
            f"model.name={name} {named}data.image_size={as_typed(image_size)} cannot be built ({reason}): use "
            "model.weights=FILE or model.pretrained=false for other weights, and null for what it does not take"
        ) from error
    head = network.get_classifier()  # type: ignore[operator]
    is_new = pretrained and published_as is not None and published_as.num_classes != num_classes
    if is_new and isinstance(head, (nn.Linear, nn.Conv2d)):
        # near zero, so that its first gradients do not spoil the features: some networks draw it with 0.2
        nn.init.normal_(head.weight, std=0.01)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    return network


def _require_hub(repository: str) -> None:
    """Ask the hub once, where its weights are not on this machine. (timm asks for three files, six times each.)

    Raises:
        UserError: It does not answer, or has no such weights.
    """
    # to connect to one of its addresses, and for its answer
    timeout: Any = constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else (3, 10)
    with suppress(LocalEntryNotFoundError):
        snapshot_download(repository, local_files_only=True)
        return
    try:
        with suppress(EntryNotFoundError):  # it has answered
            get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=timeout)
    except Exception as error:  # of many kinds: of the network, of the proxy, of the hub
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UserError(
            f"the weights {repository} cannot be fetched from the hub ({reason}): use model.pretrained=false to begin "
            "without, model.weights=FILE or model.checkpoint_path=FILE for a file of them, or the variable "
            "HF_HOME=FOLDER for a cache that was filled elsewhere; a slow hub gets HF_HUB_ETAG_TIMEOUT=60 seconds"
        ) from error


def _with_weights(name: str, weights: str, options: dict[str, Any]) -> nn.Module:
    """The network with the weights of a file. (timm loads a file of which half or nothing fits without an error.)

    Raises:
        UserError: They are those of another network.
    """
    with torch.random.fork_rng(devices=[]):
        drawn = _matrices(timm.create_model(name, pretrained=False, **options))
    source: dict[str, Any] = {"file": weights}
    stored: set[str] = set()
    if not weights.endswith(".npz"):
        source = {"state_dict": _read("model.weights", weights, next(iter(drawn)))}
        stored = set(_matrices(source["state_dict"]))
    network: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **options)
    network.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]
    loaded = {key for key, value in _matrices(network).items() if not torch.equal(drawn[key], value)}
    unused = stored - set(drawn) if loaded <= stored else set()  # else timm has renamed them
    matched = f"{len(loaded)} of {len(drawn)} layers matched"
    if max(len(drawn) - len(loaded), len(unused)) > 2 + 0.1 * len(drawn):  # a new head may have two, or the file
        raise UserError(f"model.weights={weights} is of another network than model.name={name}: {matched}")
    log.info("%s: %s", weights, matched)
    return network


def _read(key: str, path: str, first: str) -> dict[str, torch.Tensor]:
    """The weights of a file, without what most of their names begin with, such as Lightning's `model.`.

    Args:
        key: The setting that named the file.
        first: The name that the network itself has for one of them.

    Raises:
        UserError: There are none in it.
    """
    if not Path(path).is_file():
        raise UserError(f"{key}={path} does not exist: name a .safetensors or .pth file")
    otherwise = f"is cut off, or holds more than tensors, such as code: fetch it again, or use {key}=null"
    with report_no_weights(Path(path), key, otherwise):
        state: dict[str, torch.Tensor] = timm.models.load_state_dict(path)
        names = [name for name in state if f".{name}".endswith(f".{first}")]
    prefix = min(names, key=len, default=first).removesuffix(first)
    bare = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return bare if 2 * len(bare) > len(state) else state


def _matrices(network: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = network.state_dict() if isinstance(network, nn.Module) else network
    return {key: value for key, value in state.items() if value.dim() > 1}
