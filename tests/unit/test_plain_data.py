"""Plain data of untrusted files to dataclasses."""

from dataclasses import dataclass
from typing import Any

import pytest

from dfer_deploy.errors import SettingError
from dfer_deploy.plain_data import spec_from_dict


@dataclass(frozen=True)
class Shape:
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Shapes:
    by_name: dict[str, Shape]
    anything: dict[str, Any]


def test_the_values_of_a_table_are_checked_where_their_type_is_known() -> None:
    shapes = spec_from_dict(Shapes, {"by_name": {"frames": {"sizes": [1, 2]}}, "anything": {"x": [None]}})
    assert shapes == Shapes({"frames": Shape((1, 2))}, {"x": [None]})
    with pytest.raises(SettingError, match=r"by_name.frames.sizes\[1\] is 'two', expected int"):
        spec_from_dict(Shapes, {"by_name": {"frames": {"sizes": [1, "two"]}}, "anything": {}})
    with pytest.raises(SettingError, match=r"by_name.frames is 3, expected a table of settings"):
        spec_from_dict(Shapes, {"by_name": {"frames": 3}, "anything": {}})
