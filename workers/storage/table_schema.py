"""Schemas of tables: typed columns with unit and meaning, written as parquet, read in older versions too.

Files carry the schema's version and, with each column, its unit and meaning (parquet metadata). Files of an older
version open too: columns that they lack are null, and what the table's `upgrade` knows of that version is mended.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .files import read_bytes

VERSION = 3
"""Version of the schema, raised when a column changes its name or meaning, not when one is added. 1 wrote none; up to
2 steps.parquet has 0 for what was not measured."""
VERSION_KEY = b"layersweep.schema_version"

TEXT, REASON, NUMBER, COUNT, INDEX, FLAG, LIST = "str", "string", "float64", "Int64", "int64", "boolean", "object"
"""Types of columns, as pandas names them: all but INDEX can be null."""


class UnknownColumn(ValueError):
    """A name that a table has no column for."""


@dataclass(frozen=True)
class Column:
    """Column of a table."""

    name: str
    type: str
    meaning: str
    unit: str = ""
    """Empty for shares, names and other plain numbers."""
    required: bool = False
    """Whether a file without it is not this table."""


@dataclass(frozen=True)
class TableSchema:
    """The columns of one parquet file, in order."""

    name: str
    columns: tuple[Column, ...]
    further: Column | None = None
    """Columns that only some sweeps have, after all others: each name begins with this one's."""
    upgrade: Callable[[pd.DataFrame, int], pd.DataFrame] | None = None
    """Mends what an older version wrote otherwise: called with the rows and the version of each file that is read."""

    @cached_property
    def types(self) -> dict[str, str]:
        """Type by column, as pandas names it, in the order of the file."""
        return {column.name: column.type for column in self.columns}

    def has(self, name: str) -> bool:
        """Return whether the table may have a column of this name."""
        return name in self.types or (self.further is not None and name.startswith(self.further.name))

    def check(self, names: Iterable[str]) -> None:
        """Refuse names that the table has no column for.

        Raises:
            UnknownColumn: with all such names.
        """
        if unknown := [name for name in names if not self.has(name)]:
            raise UnknownColumn(
                f"{self.name}.parquet has no column {', '.join(unknown)}; a new one needs a line in "
                "workers/storage/tables.py"
            )

    def frame(self, rows: pd.DataFrame | list[dict[str, Any]]) -> pd.DataFrame:
        """Return rows as the table has them: all columns, in order and typed; what rows lack is null.

        Raises:
            UnknownColumn: rows have a name that the table has no column for.
            ValueError: a value that its column's type cannot hold.
        """
        frame = pd.DataFrame(rows)
        self.check(frame.columns)
        types = self.types | {name: self.further.type for name in sorted(set(frame.columns) - self.types.keys())}
        frame = frame.reindex(columns=list(types))
        for name, wanted in types.items():
            if frame[name].dtype != wanted:
                try:
                    frame[name] = frame[name].astype(wanted)
                except (ValueError, TypeError, OverflowError) as error:
                    raise ValueError(f"column {name}: {error}") from error
        return frame

    def write(self, frame: pd.DataFrame, file: BinaryIO) -> None:
        """Write a frame made by `frame` as parquet, with version, units and meanings in its metadata."""
        table = pa.Table.from_pandas(frame, preserve_index=False)
        columns = {column.name: column for column in self.columns}
        of_field = [(field, columns.get(field.name) or self.further) for field in table.schema]
        fields = [field.with_metadata({"meaning": column.meaning, "unit": column.unit}) for field, column in of_field]
        metadata = table.schema.metadata | {VERSION_KEY: str(VERSION).encode()}
        pq.write_table(pa.Table.from_arrays(table.columns, schema=pa.schema(fields, metadata)), file)

    def read(self, target: str) -> pd.DataFrame:
        """Read a file at a path or URI.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
            ValueError: as `parse`.
        """
        if (content := read_bytes(target)) is None:
            raise FileNotFoundError(f"{target}: no such file")
        return self.parse(content)

    def parse(self, content: bytes) -> pd.DataFrame:
        """Return rows of a file of this or an older version; columns that are not the table's are left out.

        Raises:
            ValueError: it is not parquet, not this table, or of a newer version.
        """
        try:
            table = pq.read_table(BytesIO(content))
            found = table.to_pandas(ignore_metadata=True)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"cannot be read as parquet: {error}") from error
        version = int((table.schema.metadata or {}).get(VERSION_KEY, 1))
        if version > VERSION:
            raise ValueError(f"written by a newer layersweep: schema version {version}, this one reads up to {VERSION}")
        if absent := [column.name for column in self.columns if column.required and column.name not in found]:
            raise ValueError(f"not a {self.name} table of layersweep: it lacks {', '.join(absent)}")
        frame = self.frame(found[[name for name in found if self.has(name)]])
        for column in self.columns:
            if column.required and column.type == TEXT and frame[column.name].isna().any():
                raise ValueError(f"column {column.name}: a row has none")
        return self.upgrade(frame, version) if self.upgrade else frame
