import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import prompt_rows, prompts
from rgtg import table_files
from rgtg.chat import prompt_id
from rgtg.errors import UserError
from rgtg.input_files import find
from rgtg.schemas import MESSAGES

HELLO = [{"role": "user", "content": "hello"}]


def take_in(tmp_path, *places):
    target = str(tmp_path / "prompts")
    counts = prompts.take_in(find([str(place) for place in places]), target, max_error_rate=1.0)
    rows = [row for file in sorted((tmp_path / "prompts").iterdir()) for row in pq.read_table(file).to_pylist()]
    return counts, rows


def test_rows_are_identified_and_other_columns_pass_through(tmp_path, write_parquet):
    place = write_parquet("in/a.parquet", prompt=["one", "two"], topic=["x", "y"], n=[1, 2])
    counts, rows = take_in(tmp_path, place)
    assert rows == [
        {"prompt_id": prompt_id("one"), "prompt": "one", "error": None, "topic": "x", "n": 1},
        {"prompt_id": prompt_id("two"), "prompt": "two", "error": None, "topic": "y", "n": 2},
    ]
    assert (counts["rows"], counts["errors"], counts["duplicates"]) == (2, 0, 0)


def test_own_ids_are_kept_and_numbers_become_text(tmp_path, write_parquet):
    _, rows = take_in(tmp_path, write_parquet("a.parquet", prompt=["one", "two"], prompt_id=[7, 8]))
    assert [row["prompt_id"] for row in rows] == ["7", "8"]


def test_the_same_prompt_is_kept_once_over_all_files(tmp_path, write_parquet):
    write_parquet("in/a.parquet", prompt=["one", "two", "one"])
    write_parquet("in/b.parquet", prompt=["two", "three"])
    counts, rows = take_in(tmp_path, tmp_path / "in")
    assert [row["prompt"] for row in rows] == ["one", "two", "three"]
    assert counts["duplicates"] == 2


def test_one_id_for_two_prompts_is_refused(tmp_path, write_parquet):
    place = write_parquet("a.parquet", prompt=["one", "two"], prompt_id=["x", "x"])
    with pytest.raises(UserError, match="'x' stands for two different prompts"):
        take_in(tmp_path, place)


def test_bad_rows_stay_with_the_reason(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = ['{"prompt": null, "n": 1}', '{"prompt": 5}', "not json", '{"text": "x"}', '{"prompt": "good"}', "[1]"]
    file.write_text("\n".join(lines) + "\n\n")
    counts, rows = take_in(tmp_path, file)
    assert [row["error"] for row in rows] == [
        "the prompt is null",
        "the prompt is of type int, not text or a list of messages",
        "line 3 is not a JSON object",
        "line 4 has no 'prompt'",
        None,
        "line 6 is not a JSON object",
    ]
    assert all(row["prompt"] is None for row in rows if row["error"])
    assert len({row["prompt_id"] for row in rows}) == 6
    assert (counts["rows"], counts["errors"]) == (6, 5)


def test_a_line_that_is_not_utf8_is_a_bad_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "one"}\n{"prompt": "caf\xe9"}\n')
    counts, rows = take_in(tmp_path, tmp_path / "a.jsonl")
    assert [row["error"] for row in rows] == [None, "line 2 is not UTF-8 text"]
    assert counts["errors"] == 1


def test_a_column_error_is_ours(tmp_path, write_parquet):
    with pytest.raises(UserError, match="a column 'error', which completions/ also has"):
        take_in(tmp_path, write_parquet("a.parquet", prompt=["one"], error=["mine"]))


def test_the_prompts_of_another_run_are_prompts(tmp_path, write_parquet):
    _, first = take_in(tmp_path, write_parquet("a.parquet", prompt=["one"], topic=["x"]))
    (tmp_path / "prompts").rename(tmp_path / "other")
    assert take_in(tmp_path, tmp_path / "other")[1] == first


def test_a_column_of_numbers_is_bad_rows_and_not_a_crash(tmp_path, write_parquet):
    counts, rows = take_in(tmp_path, write_parquet("a.parquet", prompt=[1.5, 2.5]))
    assert counts["errors"] == 2
    assert rows[0]["error"] == "the prompt is of type float, not text or a list of messages"


def test_folders_of_partitions_are_columns(tmp_path):
    for i, folder in enumerate(
        ["in/lang=en/day=2026-11-26", "in/lang=de%2Fat/day=__HIVE_DEFAULT_PARTITION__", "in/a"]
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.jsonl").write_text(json.dumps({"prompt": f"p{i}"}))
    (tmp_path / "in/a/x.jsonl").write_text(json.dumps({"prompt": "p2", "lang": "fr"}))
    _, rows = take_in(tmp_path, tmp_path / "in")
    found = {row["prompt"]: (row.get("lang"), row.get("day")) for row in rows}
    assert found == {"p0": ("en", "2026-11-26"), "p1": ("de/at", None), "p2": ("fr", None)}


def test_a_file_above_which_stands_a_partition_has_no_column_of_it(tmp_path):
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=1" / "x.jsonl").write_text(json.dumps({"prompt": "p"}))
    _, [row] = take_in(tmp_path, tmp_path / "day=1")
    assert "day" not in row


def test_messages_in_the_ways_of_the_field(tmp_path):
    said = [{"role": "user", "content": "hi"}]
    given = [
        {"prompt": [{"from": "human", "value": "hi"}]},
        {"prompt": json.dumps([{"role": "user", "content": "hi?"}])},
        {"prompt": said, "system": "Be brief."},
        {"prompt": "as text", "system_prompt": "Be brief."},
        {"prompt": [{"role": "user", "content": "hi", "tool_calls": [{"id": 1}]}]},
        {"prompt": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]},
        {"prompt": [{"role": "system", "content": "Be long."}, *said], "system": "Be brief."},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, given)))
    _, rows = take_in(tmp_path, tmp_path / "a.jsonl")
    system = {"role": "system", "content": "Be brief."}
    assert [row["prompt"] for row in rows[:4]] == [
        said,
        [{"role": "user", "content": "hi?"}],
        [system, *said],
        [system, {"role": "user", "content": "as text"}],
    ]
    assert [row["error"] for row in rows] == [
        *[None] * 4,
        "a message of the prompt has tool_calls, which would be lost: only role and text are read",
        "the content of message 0 of the prompt is list, not text",
        "the system column and the system turn of the messages differ",
    ]


def test_messages_from_parquet_and_jsonl(tmp_path):
    pq.write_table(pa.table({"prompt": pa.array([HELLO], MESSAGES)}), tmp_path / "a.parquet")
    extra = [{"role": "user", "content": "hi", "name": None}]
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": extra}))
    _, rows = take_in(tmp_path, tmp_path / "a.parquet", tmp_path / "b.jsonl")
    assert [row["prompt"] for row in rows] == [HELLO, [{"role": "user", "content": "hi"}]]
    assert rows[0]["prompt_id"] == prompt_id(HELLO)


def test_text_and_messages_do_not_mix(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "text"}) + "\n" + json.dumps({"prompt": HELLO}))
    with pytest.raises(UserError, match="row 1 of .* is text, row 2 of .* is messages"):
        take_in(tmp_path, tmp_path / "a.jsonl")


def test_unreadable_files_are_skipped_and_named(tmp_path, write_parquet):
    write_parquet("in/good.parquet", prompt=["one"])
    (tmp_path / "in" / "empty.parquet").write_bytes(b"")
    whole = (tmp_path / "in" / "good.parquet").read_bytes()
    (tmp_path / "in" / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "flipped.parquet").write_bytes(whole[:8] + b"\xff" * 20 + whole[28:])
    counts, rows = take_in(tmp_path, tmp_path / "in")
    assert [row["prompt"] for row in rows] == ["one"]
    skipped = {name.rsplit("/", 1)[1] for name in counts["skipped_files"]}
    assert skipped == {"empty.parquet", "cut.parquet", "flipped.parquet"}


def test_nothing_readable_is_one_sentence(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the files .* can be read .*the file is empty"):
        take_in(tmp_path, tmp_path / "a.parquet")


def test_a_missing_column_names_those_that_are_there(tmp_path, write_parquet):
    with pytest.raises(UserError, match="has no column 'prompt'; its columns are question, answer"):
        take_in(tmp_path, write_parquet("a.parquet", question=["one"], answer=["two"]))


def test_a_file_of_zero_rows_is_fine(tmp_path, write_parquet):
    counts, rows = take_in(tmp_path, write_parquet("a.parquet", prompt=pa.array([], pa.string())))
    assert (counts["rows"], rows) == (0, [])


def test_columns_that_differ_between_files_agree_on_a_type(tmp_path, write_parquet):
    write_parquet("in/a.parquet", prompt=["one"], meta=[1], late=[None])
    write_parquet("in/b.parquet", prompt=["two"], meta=["text"], late=[2])
    _, rows = take_in(tmp_path, tmp_path / "in")
    assert [row["meta"] for row in rows] == ["1", "text"]
    assert [row["late"] for row in rows] == [None, 2]


def test_a_column_that_would_clash_is_refused(tmp_path, write_parquet):
    with pytest.raises(UserError, match="a column 'method', which completions/ also has"):
        take_in(tmp_path, write_parquet("a.parquet", prompt=["one"], method=["x"]))


def test_the_stage_is_done_once(configure, write_parquet, capsys):
    config = configure(**{"generate.prompts": write_parquet("a.parquet", prompt=["one"])})
    written = Path(prompts.run(config).path("prompts"), "part-00000.parquet")
    assert "prompts: 1 rows" in capsys.readouterr().out
    written.write_bytes(b"as it was")
    prompts.run(config)
    assert capsys.readouterr().out.endswith(f" prompts: already complete, skipping ({config.run.directory})\n")
    assert written.read_bytes() == b"as it was"


def test_other_input_is_taken_in_until_completions_are_made_of_it_and_refused_then(configure, write_parquet):
    config = configure(**{"generate.prompts": write_parquet("a.parquet", prompt=["mistaken"])})
    prompts.run(config)
    write_parquet("a.parquet", prompt=["one", "mended"])
    directory = prompts.run(config)
    assert directory.counts(prompts.STAGE)["rows"] == 2
    directory.begin("generate", {})
    with pytest.raises(UserError, match=r"generate\.prompts .* in its stage 'prompts'.*another run.id"):
        prompts.run(configure(**{"generate.prompts": write_parquet("b.parquet", prompt=["one", "two", "three"])}))


def test_a_night_without_prompts_is_refused(configure, write_parquet):
    config = configure(**{"generate.prompts": write_parquet("a.parquet", prompt=pa.array([], pa.string()))})
    with pytest.raises(UserError, match="there is no prompt at .*a.parquet"):
        prompts.run(config)


def test_a_night_of_files_that_cannot_be_read_is_refused(configure, write_parquet, tmp_path):
    write_parquet("in/good.parquet", prompt=["one"])
    for i in range(30):
        (tmp_path / "in" / f"{i}.parquet").write_bytes(b"torn")
    config = configure(**{"generate.prompts": str(tmp_path / "in")})
    for _ in range(2):  # a second start refuses it too
        with pytest.raises(UserError, match="30 of the 31 files of generate.prompts cannot be read, such as"):
            prompts.run(config)
    allowed = configure(**{"generate.prompts": str(tmp_path / "in"), "generate.max_error_rate": 0.99})
    assert prompts.run(allowed).counts(prompts.STAGE)["rows"] == 1


def test_values_that_pass_through_keep_their_type_and_their_digits(tmp_path, write_parquet):
    stamp = pa.array([1_767_225_600_000_000_001], pa.timestamp("ns", "Europe/Berlin"))
    write_parquet("in/a.parquet", prompt=["one"], at=stamp, short=pa.array([1], pa.int8()))
    (tmp_path / "in" / "b.jsonl").write_text('{"prompt": "two"}\n')
    take_in(tmp_path, tmp_path / "in")
    table = pq.read_table(tmp_path / "prompts")
    assert table["at"].slice(0, 1).combine_chunks().equals(stamp)
    assert table.schema.field("short").type == pa.int8()
    assert table["at"].null_count == 1


def test_two_bad_rows_of_one_id_are_both_kept(tmp_path, write_parquet):
    counts, rows = take_in(tmp_path, write_parquet("a.parquet", prompt=[None, None, "x"], prompt_id=["7", "7", "7"]))
    assert (counts["rows"], counts["errors"], counts["duplicates"]) == (3, 2, 0)
    assert rows[2]["prompt_id"] == "7"
    assert all("its prompt_id '7' is another row's too" in row["error"] for row in rows[:2])
    assert len({row["prompt_id"] for row in rows}) == 3


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1], pa.timestamp("s", "Mars/Olympus")),
        pa.array([[1]], pa.list_(pa.timestamp("s", "Mars/Olympus"))),
        pa.array([[10**9]], pa.list_(pa.date32())),
    ],
    ids=lambda values: str(values.type),
)
def test_values_that_cannot_be_made_text_are_one_sentence(tmp_path, write_parquet, values):
    write_parquet("in/a.parquet", prompt=["one"], when=values)
    prompts.take_in(find([str(tmp_path / "in")]), str(tmp_path / "out"), 1.0)  # they are kept as they are
    write_parquet("in/b.parquet", prompt=["two"], when=["noon"])
    with pytest.raises(UserError, match=r"the column 'when' of '.*a.parquet' has another type in another file"):
        take_in(tmp_path, tmp_path / "in")


def test_first_rows_that_are_no_prompts_are_told_and_are_no_proof(tmp_path):
    """A file may be sorted with what it lacks first, and others may follow."""
    for name, lines in (("few", ['{"prompt": null}'] * 3), ("many", ['{"prompt": null}'] * 256 + ['{"prompt": "a"}'])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    few, many = (find([str(tmp_path / f"{name}.jsonl")]).files for name in ("few", "many"))
    with pytest.raises(
        UserError, match="^none of the 3 rows of '.*few.jsonl' is a prompt; 3 times 'the prompt is null'$"
    ):
        prompts.look(few)
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(UserError, match="^none of the 0 rows of '.*none.jsonl' is a prompt$"):
        prompts.look(find([str(tmp_path / "none.jsonl")]).files)
    assert prompts.look(many)[:2] == (256, 0)
    assert prompts.look(few + many + few + few)[:2] == (262, 0)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A stage of four files that make three parts."""
    monkeypatch.setattr(prompts, "FILE_ROWS", 3)
    for number, texts in enumerate((["a", "b"], ["a", "c", "d"], ["e"], ["c", "f"])):
        (tmp_path / f"in-{number}.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return find([str(path) for path in sorted(tmp_path.glob("in-*"))])


def test_files_are_read_one_at_a_time_into_parts(tmp_path, parts):
    counts = prompts.take_in(parts, str(tmp_path / "out"), 0.0)
    tables = list(table_files.read_tables(str(tmp_path / "out")))
    assert [table["prompt"].to_pylist() for table in tables] == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert (counts["rows"], counts["duplicates"]) == (6, 2)


def test_an_intake_that_was_stopped_goes_on_with_the_parts_that_are_missing(configure, parts, monkeypatch):
    paths = f"[{', '.join(file.path for file in parts.files)}]"
    whole = prompts.run(configure(**{"run.id": "whole", "generate.prompts": paths}))
    write, written = table_files.write_table, []

    def stops(path, table):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(Path(path).name)
        write(path, table)

    monkeypatch.setattr(table_files, "write_table", stops)
    config = configure(**{"generate.prompts": paths})
    with pytest.raises(KeyboardInterrupt):
        prompts.run(config)
    written.clear()
    directory = prompts.run(config)
    assert written == ["part-00002.parquet"]
    assert directory.counts(prompts.STAGE) == whole.counts(prompts.STAGE)
    expected, found = (table_files.read_tables(of.path("prompts")) for of in (whole, directory))
    assert [table.to_pylist() for table in found] == [table.to_pylist() for table in expected]


def test_a_part_of_an_earlier_attempt_that_is_another_is_written_again(tmp_path, parts):
    out = str(tmp_path / "out")
    prompts.take_in(parts, out, 0.0)
    expected = [table.to_pylist() for table in table_files.read_tables(out)]
    tables = list(table_files.read_tables(out))
    table_files.write_table(f"{out}/part-00000.parquet", tables[0].slice(1))
    table_files.write_table(f"{out}/part-00001.parquet", tables[1].append_column("more", [[1] * tables[1].num_rows]))
    prompts.take_in(parts, out, 0.0, resume=True)
    assert [table.to_pylist() for table in table_files.read_tables(out)] == expected


def test_a_file_that_changes_between_the_passes_is_one_sentence(tmp_path, parts, monkeypatch):
    read, times = prompt_rows.read_rows, Counter()

    def changes(file):
        times[file.path] += 1
        if times[file.path] == 2:
            Path(file.path).write_text('{"prompt": "another"}\n' * 7)
        return read(file)

    monkeypatch.setattr(prompt_rows, "read_rows", changes)
    with pytest.raises(UserError, match=r"in-0.jsonl' changed while the prompts were read"):
        prompts.take_in(parts, str(tmp_path / "out"), 0.0)


def test_a_prompt_is_readable_whatever_stands_beside_it(tmp_path, write_parquet):
    far = pa.array([10**9], pa.date32())  # the year 2.7 million, which Python has not
    counts = prompts.take_in(find([write_parquet("a.parquet", prompt=["one"], when=far)]), str(tmp_path / "out"), 1.0)
    assert counts["errors"] == 0
    (table,) = table_files.read_tables(str(tmp_path / "out"))
    assert table["prompt"].to_pylist() == ["one"]
    assert table["when"].chunk(0).equals(far)
