"""The files of preferences/ and exports/: a few per split, the same bytes in whatever portions the rows come."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rgtg import storage
from rgtg.methods import EXPORTS
from rgtg.preferences.exports import dataset_info, json_line, rows_of, schema_of

SPLITS = ("train", "test")
FILE_ROWS, FILE_BYTES = 100_000, 1 << 26  # of a file, which is in memory until it is whole
GROUP_ROWS = 1_000  # of a row group, as `datasets` writes them


class Files:
    """The rows of one split, in files of at most FILE_ROWS; a file is encoded as it grows, and written when full."""

    def __init__(self, prefix: str, suffix: str, schema: pa.Schema) -> None:
        self.prefix, self.suffix, self.schema = prefix, suffix, schema
        self.waiting = schema.empty_table()  # fewer than GROUP_ROWS
        self.sink: pa.BufferOutputStream | None = None  # of the file that is growing, of num_rows so far
        self.parquet: pq.ParquetWriter | None = None
        self.num_rows = self.num_files = self.total = 0

    def add(self, table: pa.Table) -> None:
        self.total += table.num_rows
        rows = pa.concat_tables([self.waiting, table])
        whole = rows.num_rows - rows.num_rows % GROUP_ROWS
        for start in range(0, whole, GROUP_ROWS):
            self._encode(rows[start : start + GROUP_ROWS])
        self.waiting = rows[whole:]

    def close(self) -> None:
        if self.waiting.num_rows:
            self._encode(self.waiting)
        if self.num_rows:
            self._write()

    def _encode(self, group: pa.Table) -> None:
        if self.sink is None:
            self.sink = pa.BufferOutputStream()
            self.parquet = pq.ParquetWriter(self.sink, self.schema) if self.suffix == "parquet" else None
        if self.parquet:
            self.parquet.write_table(group.combine_chunks())
        else:
            self.sink.write(b"".join(json_line(row) for row in group.to_pylist()))
        self.num_rows += group.num_rows
        if self.num_rows >= FILE_ROWS or self.sink.tell() >= FILE_BYTES:
            self._write()

    def _write(self) -> None:
        assert self.sink
        if self.parquet:
            self.parquet.close()
        storage.write_bytes(f"{self.prefix}{self.num_files:05d}.{self.suffix}", self.sink.getvalue())
        self.sink, self.num_rows, self.num_files = None, 0, self.num_files + 1


class ExportFiles:
    """The exports of a run, each in a folder of its own with one folder a split. What stood there before is gone."""

    def __init__(self, target: str, names: list[str], prompt: pa.DataType) -> None:
        storage.remove(target)
        self.target = target
        self.files = {
            name: {
                split: Files(storage.join(target, name, split, ""), EXPORTS[name].suffix, schema_of(name, prompt))
                for split in SPLITS
            }
            for name in names
        }

    def add(self, split: str, rows: list[dict[str, Any]]) -> None:
        """Add what rows of preferences/ become."""
        for name, files in self.files.items():
            made = [exported for row in rows for exported in rows_of(name, row)]
            files[split].add(pa.Table.from_pylist(made, files[split].schema))

    def close(self) -> dict[str, dict[str, int]]:
        """Write what is not written yet, and return the number of rows by export and split."""
        for of_splits in self.files.values():
            for files in of_splits.values():
                files.close()
        counts = {name: {split: files.total for split, files in of.items()} for name, of in self.files.items()}
        if pairs := counts.get("chat-pairs"):
            info = dataset_info([split for split in SPLITS if pairs[split]])
            storage.write_json(storage.join(self.target, "chat-pairs", "dataset_info.json"), info)
        return counts
