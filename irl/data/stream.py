"""Raw files as one stream of record batches, in memory that does not grow with them.

The rows, columns and types are those of :func:`irl.data.read.read_table`: CSV columns are typed as a whole over all
files, in a pass of their own. What a sort cannot carry is written plainly: dictionaries as their values, instants with
a time zone as the clock there. Limit: a column that is text in one Parquet file and a number in another is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from irl.config import InputError
from irl.data.read import Typing, as_text, format_of, of_each

ROWS = 65_536
"""Rows of a batch of Parquet; batches of CSV hold a megabyte of text."""


class Stream:
    """The columns of files, all of one format, as record batches of one schema.

    Raises
    ------
    InputError
        If a file cannot be read or the files' types cannot be put together; while streaming, see ``failure``.
    """

    def __init__(self, files: list[Path], columns: list[str]) -> None:
        self.files, self.columns = files, columns
        self.failure: InputError | None = None
        """What a file that could not be read to its end raised: a reader of the stream may not pass it on."""
        self._csv = format_of(files[0]) == "csv"
        self._types = self._csv_types() if self._csv else self._parquet_types()
        self.schema = pa.schema([(name, _plain(kind)) for name, kind in self._types.items()])

    @property
    def n_rows(self) -> int | None:
        """Rows of all files; None where only reading them tells."""
        if self._csv:
            return None
        return sum(of_each(self.files, lambda file: int(pyarrow.parquet.read_metadata(file).num_rows)))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in the files' order."""
        for file in self.files:
            try:
                for batch in self._of(file):
                    columns = [_cast(batch.column(name), kind) for name, kind in self._types.items()]
                    yield pa.record_batch(columns, schema=self.schema)
            except (pa.ArrowException, OSError) as error:
                self.failure = InputError(
                    f"{file}: cannot be read to its end ({' '.join(str(error).split())[:200]}); is it whole?"
                )
                raise self.failure from None

    def _of(self, file: Path) -> Iterator[pa.RecordBatch]:
        if self._csv:
            with pyarrow.csv.open_csv(file, convert_options=as_text(self.columns)) as reader:
                yield from reader
            return
        with pyarrow.parquet.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(batch_size=ROWS, columns=self.columns)

    def _csv_types(self) -> dict[str, pa.DataType]:
        typing = {name: Typing() for name in self.columns}

        def read(file: Path) -> None:
            for batch in self._of(file):
                for name, own in typing.items():
                    own.add(batch.column(name))

        of_each(self.files, read)
        return {name: own.kind for name, own in typing.items()}

    def _parquet_types(self) -> dict[str, pa.DataType]:
        schemas = of_each(self.files, lambda file: pyarrow.parquet.read_schema(file).remove_metadata())
        fields = [pa.schema([schema.field(name) for name in self.columns]) for schema in schemas]
        try:
            schema = pa.unify_schemas([_valued(each) for each in fields], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"the types of the files' columns do not go together ({' '.join(str(error).split())[:200]}): write "
                "every column as the same type in all files"
            ) from None
        return {field.name: field.type for field in schema}


def _valued(schema: pa.Schema) -> pa.Schema:
    """Dictionaries as what they hold."""
    return pa.schema([(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit)
    if pa.types.is_null(kind):
        return pa.string()
    return pa.float32() if pa.types.is_float16(kind) else kind


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values as the plain form of a type."""
    values = values.cast(kind)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pc.local_timestamp(values)
    return values.cast(_plain(kind))
