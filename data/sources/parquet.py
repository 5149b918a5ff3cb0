"""Records of a Parquet table, read a batch at a time with pyarrow, and only the columns that rows are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from data.sources.records import BadLine, NumberText, Record, Unreadable, missing_columns

BATCH_ROWS = 1024


def parquet_rows(path: Path, wanted: frozenset[str], needed: tuple[frozenset[str], ...]) -> Iterator[Record]:
    """Rows in the table's order, as column -> value. Numbers become text; a line is the row's number from 1.

    | value | text |
    |---|---|
    | whole number, decimal | its digits: 7, 5.10 |
    | floating point | the shortest text that means the same number in its own width: 1.0, 5.1 |
    | NaN, null | a missing value |
    | infinity | none: the row is refused, as in JSON |

    Raises Unreadable where the file is no Parquet table or lacks columns.
    """
    try:
        import pyarrow as arrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise Unreadable("Parquet files need pyarrow: pip install 'fedfinlora[train]', or write JSON Lines") from error
    try:
        with ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            if not any(have <= set(names) for have in needed):
                raise Unreadable(missing_columns(names, needed[0]))
            columns = [name for name in names if name in wanted]
            if twice := [name for name in columns if columns.count(name) > 1]:
                raise Unreadable(f"two columns are called {twice[0]}")
            single = {
                name for name in columns if file.schema_arrow.field(name).type in (arrow.float16(), arrow.float32())
            }
            position = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                for record in batch.to_pylist():
                    endless = next((name for name, value in record.items() if value in (math.inf, -math.inf)), None)
                    texts = {name: _text(value, name in single) for name, value in record.items()}
                    fault = BadLine(f"{endless} is infinite, which is no number")
                    yield Record(position, position + 1, texts if endless is None else fault)
                    position += 1
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise Unreadable(
            f"not a Parquet table that can be read ({type(error).__name__}); no row of it is read"
        ) from error


def _text(value: Any, is_single: bool) -> Any:
    """Numbers as text, what is missing as "", everything else as it is."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        if is_single:
            import numpy as np

            return NumberText(np.float32(value))
        return NumberText(repr(value))
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return NumberText(value)
    return value
