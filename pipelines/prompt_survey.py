"""The first pass over prompt files: what the rows of all of them decide together."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.prompt_rows import content_of, read_again, read_prompts
from rgtg.errors import UserError
from rgtg.input_files import InputFile, Unreadable
from rgtg.input_rows import is_unicode
from rgtg.passed_through import CommonType
from rgtg.schemas import COMPLETION_COLUMNS, MESSAGES, prompts_schema

DIGEST = pa.binary(16)
KEPT, DUPLICATE, RENAMED = range(3)


class Survey:
    """What the first pass keeps of the files: ids and contents of their rows in short, and types of their columns."""

    def __init__(self) -> None:
        self.files: list[InputFile] = []
        self.unreadable: dict[str, str] = {}
        self.num_rows = 0
        self.lengths: list[int] = []
        self.ids: list[pa.Array] = []  # 16 bytes a row; null for a bad row without one
        self.contents: list[pa.Array] = []  # 16 bytes a row; null for a bad one
        self.kinds: dict[bool, str] = {}  # where text (False) and messages (True) stand first
        self.types: dict[str, CommonType] = {}  # of the other columns

    def add(self, file: InputFile) -> None:
        try:
            of = read_prompts(file)
        except Unreadable as error:
            self.unreadable[file.path] = str(error)
            return
        self.files.append(file)
        self.lengths.append(len(of.rows))
        self.num_rows += len(of.rows)
        ids = [None if row["prompt_id"] is None else content_of(row["prompt_id"]) for row in of.rows]
        self.ids.append(pa.array(ids, DIGEST))
        contents = [None if row["error"] else content_of(row["prompt"]) for row in of.rows]
        self.contents.append(pa.array(contents, DIGEST))
        for number, row in enumerate(of.rows, 1):
            if row["error"] is None:
                self.kinds.setdefault(isinstance(row["prompt"], list), f"row {number} of {file.path!r}")
        for name, column in of.others.items():
            self.types.setdefault(name, CommonType()).add(column)

    def schema(self) -> pa.Schema:
        """Of the table of prompts. Raises UserError for columns that clash, and for text and messages in one run."""
        for name in self.types:
            if name in COMPLETION_COLUMNS:
                raise UserError(f"the prompts have a column {name!r}, which completions/ also has; rename it")
            if not is_unicode(name):
                raise UserError(f"the prompts have a column {name!r}, whose name is not valid Unicode; rename it")
        fields = [pa.field(name, common.type) for name, common in self.types.items()]
        return prompts_schema(MESSAGES if is_messages(self.kinds) else pa.string(), fields)

    def fates(self) -> list[np.ndarray]:
        """Of each file what becomes of its rows: KEPT, DUPLICATE, or a bad one that is RENAMED.

        Raises UserError where two prompts have one id. A bad row keeps its id unless another row has it; bad rows are
        never duplicates of each other.
        """
        ids, contents = (pa.chunked_array(column, DIGEST) for column in (self.ids, self.contents))
        is_bad = contents.is_null().to_numpy()
        fates = np.full(self.num_rows, KEPT, np.uint8)
        good, bad = np.flatnonzero(~is_bad), np.flatnonzero(is_bad & ids.is_valid().to_numpy())
        first = _first_of_each(ids.take(good))
        said = _codes(contents.take(good))
        if len(differing := np.flatnonzero(said != said[first])):
            raise self._conflict(int(good[differing[0]]))
        fates[good[first != np.arange(len(good))]] = DUPLICATE
        of_bad = ids.take(bad)
        again = _first_of_each(of_bad) != np.arange(len(bad))
        fates[bad[again | pc.is_in(of_bad, ids.take(good)).to_numpy()]] = RENAMED
        return np.split(fates, np.cumsum(self.lengths)[:-1])

    def _conflict(self, row: int) -> UserError:
        """The error for a row whose id another prompt has."""
        ends = np.cumsum([0, *self.lengths])
        number = int(np.searchsorted(ends, row, "right")) - 1
        of = read_again(self.files[number])
        at = row - int(ends[number])
        return UserError(
            f"the prompt_id {of.rows[at]['prompt_id']!r} stands for two different prompts (the second is row {at + 1} "
            f"of {of.path!r}); make the ids unique"
        )


def is_messages(kinds: dict[bool, str]) -> bool:
    """Whether prompts are messages. Raises UserError for a mixture with text: one column cannot hold both."""
    if len(kinds) == 2:
        raise UserError(
            f"a run takes one kind of prompts, and {kinds[False]} is text, {kinds[True]} is messages; "
            'write text as [{"role": "user", "content": ...}], or start two runs'
        )
    return True in kinds


def _codes(values: pa.ChunkedArray) -> np.ndarray:
    """A number for each value, the same for the same ones, in the order in which they come."""
    return values.combine_chunks().dictionary_encode().indices.to_numpy()


def _first_of_each(values: pa.ChunkedArray) -> np.ndarray:
    """For each value where it stands first."""
    codes = _codes(values)
    is_new = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
    return np.flatnonzero(is_new)[codes]
