"""Answers as pandas tables. pandas is imported only when a table is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dfer_deploy.errors import MissingExtraError

if TYPE_CHECKING:
    from pandas import DataFrame


def dataframe(rows: Iterable[Mapping[str, Any]]) -> DataFrame:
    """Build a table with a row for each answer: its attributes, then the probability of each class.

    Args:
        rows: answers or windows, as their ``to_dict`` returns them. Logits are omitted.

    Raises:
        DferDeployError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("to_pandas needs the package 'pandas'; install it with: pip install pandas") from error
    spread = ("probabilities", "logits")
    flat = [{key: row[key] for key in row if key not in spread} | dict(row["probabilities"]) for row in rows]
    return pandas.DataFrame(flat)
