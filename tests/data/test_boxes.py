from typing import Any

import pytest

from classifier.data.samples import require_margin
from classifier.errors import UserError


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf"), "wide", None])
def test_no_margin(margin: Any) -> None:
    with pytest.raises(UserError, match=rf"^data\.margin={margin} must "):
        require_margin(margin)
