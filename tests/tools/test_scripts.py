"""What all scripts have in common."""

import sys

import pytest

from tests.tools.parts import script
from tests.verbs.command import REPOSITORY

SCRIPTS = sorted(path.stem for path in (REPOSITORY / "scripts").glob("*.py"))
COMPOSED = [name for name in SCRIPTS if (REPOSITORY / "configs" / f"{name}.yaml").is_file()]  # by Hydra


def test_no_script_hides_a_module() -> None:
    """Python looks for modules beside the script first: statistics.py there would be everyone's."""
    assert not set(SCRIPTS) & sys.stdlib_module_names


@pytest.mark.parametrize("name", COMPOSED)
def test_help(name: str) -> None:
    result = script(name, "--help", cwd=REPOSITORY)
    assert result.out.startswith(f"# python scripts/{name}.py ")
    assert "GROUPS" in result.out
