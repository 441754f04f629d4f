"""A limit on the memory of this process, where the kernel would end it without a word."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMITS_OF_CONTAINERS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
SHARE = 0.9  # of what is free; the rest is for others


def can_be_limited() -> bool:
    """Whether this is Linux."""
    return Path("/proc/meminfo").exists()


@contextmanager
def limited_to_free_memory() -> Iterator[None]:
    """Refuse this process more memory than the machine, or the container, has free: torch then raises an error."""
    import resource  # Unix alone has it

    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _of("/proc/self/status", "VmData") + int(SHARE * _free())
    resource.setrlimit(resource.RLIMIT_DATA, (min((limit, *(old for old in before if old >= 0))), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _free() -> int:
    free = _of("/proc/meminfo", "MemAvailable")
    for path in map(Path, LIMITS_OF_CONTAINERS):
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            free = min(free, int(text) - _of("/proc/self/status", "VmRSS"))
    return free


def _of(path: str, key: str) -> int:
    """Bytes of a line such as `VmData:  1234 kB`."""
    [value] = [line.split()[1] for line in Path(path).read_text().splitlines() if line.startswith(f"{key}:")]
    return int(value) * 1024
