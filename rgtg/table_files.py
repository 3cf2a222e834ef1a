"""The tables of a run: directories of Parquet files, read file by file and written atomically."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rgtg import s3_filesystem
from rgtg.errors import UserError
from rgtg.parquet import open_parquet, plain_footer, read_footer
from rgtg.storage import READERS, list_files, resolve, write_bytes
from rgtg.storage_errors import translate_errors


def read_tables(
    uri: str, columns: list[str] | None = None, keep: Callable[[str], bool] = lambda path: True
) -> Iterator[pa.Table]:
    """The Parquet files at `uri` that `keep` accepts by path, one table each, sorted; some are read in advance."""
    filesystem, _ = resolve(uri)

    def read(file: pafs.FileInfo) -> pa.Table:
        def whole() -> pa.Table:
            with filesystem.open_input_file(file.path) as stream:
                return open_parquet(stream).read(columns=columns)

        return s3_filesystem.retry_read(whole)

    files = [file for file in list_files(uri, (".parquet",)) if keep(file.path)]
    with ThreadPoolExecutor(READERS) as pool, translate_errors(f"cannot read {uri!r}"):
        for start in range(0, len(files), READERS):
            yield from pool.map(read, files[start : start + READERS])


def schema_of(uri: str) -> pa.Schema:
    """The schema of the first of the Parquet files at `uri`. Raises UserError where there is none."""
    filesystem, _ = resolve(uri)
    files = list_files(uri, (".parquet",))
    if not files:
        raise UserError(f"{uri!r} holds no Parquet file")

    def schema() -> pa.Schema:
        with filesystem.open_input_file(files[0].path) as stream:
            return open_parquet(stream).schema_arrow

    with translate_errors(f"cannot read {uri!r}"):
        return s3_filesystem.retry_read(schema)


def check_tables(uri: str) -> list[str]:
    """The paths of the Parquet files at `uri`, safe for other readers than ours, such as Ray's.

    Raises UserError where a file names extension types, whose code such a reader may run. No table of a run has any.
    """
    filesystem, _ = resolve(uri)

    def is_safe(file: pafs.FileInfo) -> bool:
        def footer_is_plain() -> bool:
            with filesystem.open_input_file(file.path) as stream:
                footer = read_footer(stream)
                return plain_footer(footer) == footer

        return s3_filesystem.retry_read(footer_is_plain)

    files = list_files(uri, (".parquet",))
    with ThreadPoolExecutor(READERS) as pool, translate_errors(f"cannot read {uri!r}"):
        for file, safe in zip(files, pool.map(is_safe, files), strict=True):
            if not safe:
                raise UserError(
                    f"{file.path!r} has columns of extension types, which no run writes; remove the file, or give "
                    "another run.id"
                )
    return [file.path for file in files]


def check_lists(uri: str) -> None:
    """`check_tables` for a reader that lists the directory at `uri` itself.

    Raises UserError also where the directory holds anything else, which that reader might take for a table.
    """
    filesystem, path = resolve(uri)
    with translate_errors(f"cannot read {uri!r}"):
        for found in filesystem.get_file_info(pafs.FileSelector(path)):
            is_table = found.type == pafs.FileType.File and found.base_name.endswith(".parquet")
            if not is_table and not found.base_name.startswith((".", "_")):
                raise UserError(f"{found.path!r} is no file of the run; move it out of this directory")
    check_tables(uri)


def write_table(uri: str, table: pa.Table) -> None:
    """Write a Parquet file atomically: a reader sees it whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(uri, sink.getvalue())
