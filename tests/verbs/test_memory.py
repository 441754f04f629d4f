"""A sweep may be long: what a job holds is let go before the next."""

import sys
import time
from pathlib import Path

import pytest

from tests.verbs.command import QUICK, finish, start

JOBS = 50
# each job holds 8 MB of weights, as many of gradients, twice as many of optimiser state; and 6 MB of images
HEAVY = ("model.widths=[4,8]", "model.head=avg", "model.hidden=[2000,1000]", "data.cache=ram", "data.cache_size=64")
SHORT = ("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1")
MB = 1 << 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_from_job_to_job(tmp_path: Path) -> None:
    sweep = ("hydra.sweep.dir=sweep", f"seed=range({JOBS})")
    process = start("train", "-m", *QUICK, *HEAVY, *SHORT, *sweep, cwd=tmp_path)
    held = {}
    for job in (9, JOBS - 2):
        while process.poll() is None and not (tmp_path / "sweep" / str(job) / "metrics.json").exists():
            time.sleep(0.05)
        assert process.poll() is None
        pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
        held[job] = int(pages) * 4096
    finish(process)
    assert held[JOBS - 2] - held[9] < 80 * MB, held
