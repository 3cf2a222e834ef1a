"""Exports: what a pair or a ranking becomes, and lines of JSON that every reader takes for one."""

import io
import json

import pyarrow as pa
import pyarrow.json as pa_json
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgtg.methods import EXPORTS
from rgtg.preferences.exports import json_line, rows_of, schema_of
from rgtg.preferences.readers import Pair, read_pair
from rgtg.preferences.steps import Step
from rgtg.schemas import MESSAGES

# What every row has beside its sides; the steps are those of its completions.
STEPPED = {"prompt_id": "i", "rendered": "u:p;", "steps": [[Step("b. ", 1.5, True), Step("b", 0.5, False)]]}
USER = {"role": "user", "content": "p"}


def said(text):
    return {"role": "assistant", "content": text}


def answer(prompt, text):
    return text if isinstance(prompt, str) else [said(text)]


def pair(prompt):
    sides = {"chosen": answer(prompt, "b"), "rejected": answer(prompt, "w")}
    return {"prompt": prompt, "score_chosen": 2.0, "score_rejected": -1.0} | sides | STEPPED


def ranking(prompt):
    completions = [answer(prompt, text) for text in "bmw"]
    return {"prompt": prompt, "completions": completions, "scores": [2.0, 0.0, -1.0]} | STEPPED


BOTH = pytest.mark.parametrize("row_of", [pair, ranking])


@BOTH
def test_sft_is_the_best_side(row_of):
    assert rows_of("sft", row_of("p")) == [{"prompt": "p", "completion": "b", "score": 2.0, "prompt_id": "i"}]
    assert rows_of("sft", row_of([USER])) == [{"messages": [USER, said("b")], "score": 2.0, "prompt_id": "i"}]


@BOTH
@pytest.mark.parametrize("prompt", ["p", [USER]])
def test_unpaired_labels_the_best_and_the_worst(row_of, prompt):
    best, worst = rows_of("unpaired", row_of(prompt))
    assert best == {"prompt": prompt, "completion": answer(prompt, "b"), "label": True, "score": 2.0, "prompt_id": "i"}
    assert worst == best | {"completion": answer(prompt, "w"), "label": False, "score": -1.0}


@BOTH
@pytest.mark.parametrize("prompt", ["p", [USER]])
def test_chat_pairs_hold_one_message_a_side_and_a_conversation_that_ends_with_the_chosen_one(row_of, prompt):
    assert rows_of("chat-pairs", row_of(prompt)) == [
        {
            **{"prompt": [USER], "chosen": said("b"), "rejected": said("w")},
            **{"conversation": [USER, said("b")], "rejected_response": "w", "prompt_id": "i"},
        }
    ]


@pytest.mark.parametrize("prompt", ["p", [USER]])
def test_ranked_holds_all_ranks(prompt):
    [row] = rows_of("ranked", ranking(prompt))
    assert row["context"] == [USER]
    assert row["completions"] == [{"rank": i, "completion": [said(text)]} for i, text in enumerate("bmw")]
    [row] = rows_of("ranked", pair(prompt))
    assert [c["completion"] for c in row["completions"]] == [[said("b")], [said("w")]]


def test_an_answer_that_the_prompt_has_begun_is_one_turn():
    """LLaMA-Factory drops rows with an even number of turns before the answer."""
    row = pair([USER, said("So ")])
    assert rows_of("sft", row)[0]["messages"] == [USER, said("So b")]
    [chat] = rows_of("chat-pairs", row)
    assert (chat["prompt"], chat["chosen"], chat["rejected"]) == ([USER], said("So b"), said("So w"))
    assert chat["rejected_response"] == "So w"
    [ranks] = rows_of("ranked", row)
    assert ranks["context"] == [USER]
    assert [c["completion"] for c in ranks["completions"]] == [[said("So b")], [said("So w")]]


def test_stepwise_holds_rewards_beside_the_labels():
    assert rows_of("stepwise", pair([USER])) == [
        {
            **{"prompt": "u:p;", "completions": ["b. ", "b"], "labels": [True, False], "rewards": [1.5, 0.5]},
            "prompt_id": "i",
        }
    ]


@BOTH
@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("prompt", ["p", [USER]])
def test_rows_are_of_their_schema(row_of, name, prompt):
    schema = schema_of(name, pa.string() if isinstance(prompt, str) else MESSAGES)
    rows = rows_of(name, row_of(prompt))
    assert all(list(row) and set(row) == set(schema.names) for row in rows)
    assert pa.Table.from_pylist(rows, schema=schema).to_pylist() == rows


@pytest.mark.parametrize("name", ["chat-pairs", "ranked"])
@pytest.mark.parametrize("prompt", ["p", [USER]])
def test_our_own_reader_of_pairs_takes_them(name, prompt):
    [row] = rows_of(name, ranking(prompt))
    read = read_pair({column: row[column] for column in row if column != "rejected_response"})
    assert read == Pair([USER], "b", "w")


ANY = st.text(st.characters(codec=None, categories=None, exclude_categories=()), max_size=20)


@given(ANY)
def test_a_row_is_one_line_for_every_reader(text):
    whole = "".join(c if not 0xD800 <= ord(c) < 0xE000 else "?" for c in text)
    line = json_line({"a": text, "b": [{"c": text}]})
    assert json.loads(line) == {"a": whole, "b": [{"c": whole}]}
    assert len(line.decode().splitlines()) == len(line.splitlines()) == 1
    options = pa_json.ParseOptions(explicit_schema=pa.schema([("a", pa.string())]))
    assert pa_json.read_json(io.BytesIO(line), parse_options=options)["a"].to_pylist() == [whole]


def test_no_line_commands_a_terminal():
    line = json_line({"a": "\x1b[2J\x9b2J\x7f\0 é 字"})
    assert not any(0x7F <= ord(c) < 0xA0 or ord(c) < 0x20 for c in line.decode().rstrip("\n"))
    assert "é 字" in line.decode()
