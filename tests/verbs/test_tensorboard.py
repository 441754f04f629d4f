"""What TensorBoard's own server shows of a run."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.verbs.command import QUICK, metrics, run, runs


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of `tensorboard --logdir logs`, and the run directory that it shows."""
    cwd = tmp_path_factory.mktemp("tensorboard")
    arguments = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, f"data.root={folder}", "trainer.max_epochs=2")
    assert run("train", *arguments, cwd=cwd).code == 0
    (run_dir,) = runs(cwd / "logs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tool = Path(sys.executable).with_name("tensorboard")
    with (cwd / "server.log").open("w") as log:
        process = subprocess.Popen(
            [tool, "--logdir", "logs", "--port", str(port), "--load_fast", "false"], cwd=cwd, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}/data"
    try:
        for _ in range(240):
            try:
                if read(f"{address}/runs"):
                    break
            except urllib.error.URLError:
                pass
            time.sleep(0.25)
        yield address, run_dir
    finally:
        process.terminate()
        process.wait()


def read(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_scalars(server: tuple[str, Path]) -> None:
    address, run_dir = server
    name = f"{run_dir.parent.name}/{run_dir.name}"
    tags = read(f"{address}/plugin/scalars/tags")[name]
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "val/f1", "test/acc", "train/images_per_second"} <= set(
        tags
    )
    assert any(re.match("lr-", tag) for tag in tags)
    points = read(f"{address}/plugin/scalars/scalars?tag=test/acc&run={name}")
    assert round(points[-1][2], 5) == round(metrics(run_dir)["test/acc"], 5)
    assert len(read(f"{address}/plugin/scalars/scalars?tag=val/acc&run={name}")) == 2


def test_images_and_graph(server: tuple[str, Path]) -> None:
    address, run_dir = server
    name = f"{run_dir.parent.name}/{run_dir.name}"
    assert set(read(f"{address}/plugin/images/tags")[name]) == {"images/first_batch", "images/confusion_matrix"}
    assert read(f"{address}/plugin/graphs/info")[name]["run_graph"]


def test_hparams_show_the_real_metric(server: tuple[str, Path]) -> None:
    address, run_dir = server
    body = {"allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"], "sliceSize": 10,
            "startIndex": 0, "colParams": [{"metric": {"tag": "val/acc", "group": ""}}]}  # fmt: skip
    groups = read(f"{address}/plugin/hparams/session_groups", {"experimentName": "", **body})["sessionGroups"]
    (group,) = groups
    assert group["hparams"]["optimizer.lr"] == 0.001
    values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
    assert round(values["test/acc"], 5) == round(metrics(run_dir)["test/acc"], 5)
    assert values["val/acc"] >= 0
