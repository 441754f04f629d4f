"""What TensorBoard's own server shows of a run."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.verbs.command import metrics


@pytest.fixture
def address(workplace: Path, trained: Path, tmp_path: Path) -> Iterator[str]:
    """Where `tensorboard --logdir logs` answers, once it shows the run."""
    tool, log = Path(sys.executable).with_name("tensorboard"), tmp_path / "server.log"
    command = [str(tool), "--logdir", "logs", "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=workplace, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 300  # for a server that hangs
        found = None
        while not (found and read(f"{found[0]}/data/runs")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            found = re.search(r"http://127.0.0.1:\d+", log.read_text())
            time.sleep(0.1)
        yield f"{found[0]}/data"
    finally:
        process.terminate()
        process.wait()


def read(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_a_run_is_shown(address: str, trained: Path) -> None:
    name, reached = f"{trained.parent.name}/{trained.name}", pytest.approx(metrics(trained)["test/acc"], abs=1e-5)
    tags = read(f"{address}/plugin/scalars/tags")[name]
    expected = {"train/loss", "train/acc", "val/loss", "val/acc", "val/f1", "test/acc", "train/images_per_second"}
    assert expected <= set(tags)
    assert any(tag.startswith("lr-") for tag in tags)
    assert {tag.partition("/")[0] for tag in sorted(tags)[-2:]} == {"with_best"}  # charts of one point
    assert read(f"{address}/plugin/scalars/scalars?tag=test/acc&run={name}")[-1][2] == reached
    assert len(read(f"{address}/plugin/scalars/scalars?tag=val/acc&run={name}")) == 4
    assert set(read(f"{address}/plugin/images/tags")[name]) == {"images/first_batch", "images/confusion_matrix"}

    body = {"allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"], "sliceSize": 10,
            "startIndex": 0, "colParams": [{"metric": {"tag": "val/acc", "group": ""}}]}  # fmt: skip
    [group] = read(f"{address}/plugin/hparams/session_groups", {"experimentName": "", **body})["sessionGroups"]
    assert group["hparams"]["optimizer.lr"] == 0.001
    assert {group["hparams"][name] for name in ("model", "optimizer", "augment")} == {"SimpleCNN", "AdamW", "crop flip"}
    values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
    assert values["test/acc"] == values["with_best/test/acc"] == reached
    assert values["with_best/val/acc"] == pytest.approx(metrics(trained)["val/acc"], abs=1e-5)
    assert values["val/acc"] >= 0
