"""Where a run writes, and which processes take part in it."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from torch.distributed import TCPStore, destroy_process_group, is_initialized

from classifier.cli import override
from classifier.errors import UserError
from classifier.files import alone
from classifier.runs import new_run_dir, on_main_process, set_variable

LAUNCH_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


@contextmanager
def run_directory(config: DictConfig, kept_for: str = "config.yaml") -> Iterator[Path]:
    """Make the run's directory and write it into the config; remove it again where the run never started.

    Args:
        kept_for: The file that shows that it did.

    Raises:
        UserError: Another process runs there, or the directory of a new run holds one.
    """
    given, parent = config.run_dir is not None, Path(config.log_dir, config.name)
    made_here = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    if given:
        run_dir = Path(config.run_dir)
    elif HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        if started := _started_beside_others():
            raise UserError(f"{started} and -m: leave out {started}, as each job then starts its own processes")
        run_dir = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    else:
        run_dir = _agree_on(parent, config.trainer.num_nodes)
    run_dir.mkdir(parents=True, exist_ok=True)
    config.run_dir = str(run_dir)
    busy = f"runs in run_dir={run_dir}: wait until it ends, or use another run_dir"
    with alone(run_dir / ".lock", busy) if on_main_process() else nullcontext():
        try:
            # of several processes, all look before the first one writes it: that is when all have joined
            if config.resume is None and (run_dir / "config.yaml").exists():
                raise UserError(f"run_dir={run_dir} holds a run already: use resume={run_dir}, or another run_dir")
            yield run_dir
        finally:
            if on_main_process() and not given and not (run_dir / kept_for).exists():
                shutil.rmtree(run_dir, ignore_errors=True)
                for folder in made_here:
                    with suppress(OSError):  # not empty
                        folder.rmdir()


def _started_beside_others() -> str | None:
    """What started this process and others to take part in one run: torchrun or srun."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # wins over SLURM's variables, as it may run within a job
        return "torchrun" if os.environ["WORLD_SIZE"] != "1" else None
    return "srun" if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ else None


def _agree_on(parent: Path, num_nodes: int) -> Path:
    """One new directory for all processes that were started beside each other.

    Those of torchrun learn it from torchrun's own store, those of SLURM by the number of the job and its step. Those
    that Lightning starts get it from `own_processes`.
    """
    started = _started_beside_others()
    if started is None and num_nodes > 1:
        raise UserError(f"trainer.num_nodes={num_nodes} needs processes on each node: start them with torchrun or srun")
    if started is None:
        return new_run_dir(parent)
    if started == "srun":
        return parent / f"slurm_{os.environ['SLURM_JOB_ID']}_{os.environ.get('SLURM_STEP_ID', '0')}"
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = f"run_dir of attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if on_main_process():
        store.set(key, str(new_run_dir(parent)))
    return Path(store.get(key).decode())


@contextmanager
def own_processes(config: DictConfig) -> Iterator[None]:
    """Let processes that Lightning starts run this job alone, in this directory, and leave no trace of them.

    They repeat sys.argv: in each, a multirun would run all its jobs again, and `latest` could mean another run. And
    what the first job of a multirun leaves in the environment would keep the second from starting its own.
    """
    arguments, environment = list(sys.argv), {key: os.environ.get(key) for key in LAUNCH_VARIABLES}
    if HydraConfig.initialized() and config.resume is None:
        sys.argv[1:] = [*HydraConfig.get().overrides.task, override("run_dir", config.run_dir)]
    started_here = not is_initialized()
    try:
        yield
    finally:
        sys.argv[:] = arguments
        if started_here and is_initialized():
            destroy_process_group()
            for key, value in environment.items():
                set_variable(key, value)
