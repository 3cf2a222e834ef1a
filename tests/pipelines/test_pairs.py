"""What the stage `pairs` finds in files before Ray starts, and what it keeps of a pair that cannot be used."""

import json
from datetime import date

import pyarrow as pa
import pytest

from pipelines import pairs, pairs_worker
from rgtg.errors import UserError
from rgtg.input_files import find
from rgtg.report import warnings

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
BLANK = {"prompt": "p", "chosen": " ", "rejected": "b"}
TIED = {"prompt": "p", "chosen": "a", "rejected": "a"}


@pytest.fixture
def tokenize(language_dir):
    return pairs_worker.Tokenize(language_dir, False, 64, "truncate", date(2026, 1, 1))


@pytest.fixture
def write(tmp_path):
    """Rows as JSON lines, one file an argument; the files found."""

    def make(*files):
        for number, rows in enumerate(files):
            (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return find([str(tmp_path)]).files

    return make


def read(file, tokenize):
    return [row for raw in pairs_worker.raw_rows(file) for row in pairs_worker.rows_of(raw, file.path, 0.0, tokenize)]


def test_an_unused_pair_says_where_it_stands(write, write_parquet, tokenize):
    rows = [GOOD] * 299 + [BLANK]  # in the second chunk
    columns = {name: [row[name] for row in rows] for name in GOOD}
    for file in (*write(rows), *find([write_parquet("in/a.parquet", **columns)]).files):
        *used, last = read(file, tokenize)
        assert {row["split"] for row in used} == {"train"}
        assert (last["split"], last["path"], last["row"]) == ("unused", file.path, 300)
        assert json.loads(last["text"]) == BLANK
        assert last["reason"] == "chosen is empty or white space"


def test_the_text_of_an_unused_pair_is_short_and_printable(write, tokenize):
    (row,) = read(write([{"prompt": "p", "chosen": "\udfff" + "x" * 10_000, "rejected": "b"}])[0], tokenize)
    assert len(row["text"]) <= 300
    assert pa.array([row["text"]]).validate(full=True) is None


def test_a_prompt_that_is_guessed_is_counted(write, tokenize):
    rows = read(write([{"chosen": "it is good", "rejected": "it is bad"}, GOOD])[0], tokenize)
    assert [row["guessed"] for row in rows] == [True, False]


def test_files_without_a_usable_pair_are_refused_with_all_reasons(write, tokenize):
    files = write([BLANK, TIED], [BLANK])
    with pytest.raises(UserError) as caught:
        pairs.look(files, tokenize)
    assert str(caught.value) == (
        f"none of the 3 rows of {files[0].path!r}, {files[1].path!r} is a pair that can be used:   "
        "2 unused: chosen is empty or white space   1 unused: chosen equals rejected"
    )


def test_first_rows_without_a_usable_pair_are_no_proof(write, tokenize):
    """A file may be sorted, and others may follow."""
    looked = pairs.look(write([BLANK] * 300), tokenize)
    assert (looked.rows, looked.usable, looked.unused) == (256, 0, {"chosen is empty or white space": 256})
    assert pairs.look(write(*[[BLANK]] * 4), tokenize).usable == 0
    assert pairs.look(write([BLANK, GOOD]), tokenize)[:2] == (4, 1)  # of three of the four files


def test_messages_for_a_tokenizer_without_a_chat_template_are_one_sentence(write, make_language, make_tokenizer):
    plain = pairs_worker.Tokenize(make_language(make_tokenizer("ab")), False, 64, "truncate", date(2026, 1, 1))
    turn = [{"role": "user", "content": "a"}]
    with pytest.raises(UserError, match="no chat template; give prompts as text, or a model with a template"):
        pairs.look(write([GOOD | {"prompt": turn}]), plain)


@pytest.mark.parametrize(("unused", "warned"), [(49, False), (50, True)])
def test_a_night_that_cannot_use_half_of_its_pairs_says_so(unused, warned):
    counts = {"train": 90 - unused, "eval": 10, "unused": {"a reason": unused - 1, "another": 1}}
    said = warnings.of_pairs(counts)
    assert bool(said) == warned
    if said:
        assert said.startswith(
            f"{unused} of the 100 pairs could not be used, {unused - 1} of them because of this: a "
        )
