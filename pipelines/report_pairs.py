"""The pairs that a report shows, with their texts and tokens, and those that people are asked to judge."""

import random
from collections.abc import Iterator
from math import isfinite
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.completions import completions_of
from pipelines.report_statistics import SHOWN, Picked
from rgtg import table_files
from rgtg.chat import tokenizing
from rgtg.errors import RowError
from rgtg.input_rows import table_rows
from rgtg.report.run_figures import Pair, Side
from rgtg.report.token_tint import Decode, Piece, shared_beginning, tinted
from rgtg.report.visible_text import unicode_only, visible

COLUMNS = [
    *("prompt_id", "prompt", "method", "error"),
    *(
        f"completions.list.element.{name}"
        for name in ("text", "token_ids", "num_tokens", "finish_reason", "reward", "score", "token_rewards", "method")
    ),
]
MOST_TOKENS = 400  # of a side
MOST_HTML = 30_000  # bytes of a side, and of a prompt: 24 sides and 12 prompts are far below two megabytes
MOST_PROMPT = 8_000
TURN_HTML = 200  # bytes of what is around a turn

Row = dict[str, Any]


def rows_of(uri: str, files: set[str], prompt_ids: set[str]) -> dict[str, Row]:
    """The rows of completions/ of some prompts, by id; `files` are those that hold them."""
    wanted = pa.array(sorted(prompt_ids), pa.string())
    return {
        row["prompt_id"]: row | {"completions": completions_of(row)}
        for table in (table_files.read_tables(uri, COLUMNS, keep=lambda path: path in files) if files else ())
        for row in table_rows(table.filter(pc.is_in(table["prompt_id"], wanted)))
        if isinstance(row, dict) and row["error"] is None and row["completions"]
    }


def shown(picked: dict[str, list[Picked]]) -> Iterator[tuple[str, Picked]]:
    """What is shown of each kind, no prompt twice; random ones are what the other kinds have left."""
    chosen: dict[str, list[Picked]] = {}
    seen: set[str] = set()
    kinds = [kind for kind in picked if kind != "review"]
    for kind in kinds:
        chosen[kind] = [pair for pair in picked[kind] if pair.prompt_id not in seen][:SHOWN]
        seen |= {pair.prompt_id for pair in chosen[kind]}
    for kind in sorted(kinds, key=lambda kind: kind != "at random"):
        yield from ((kind, pair) for pair in chosen[kind])


def pair_of(why: str, picked: Picked, row: Row, decode: Decode | None) -> Pair | None:
    """A pair as the page shows it; None where completions/ has no such completions."""
    found = sides_of(picked, row)
    if found is None:
        return None
    chosen, rejected = found
    shared = shared_beginning(chosen["token_ids"] or [], rejected["token_ids"] or [])
    prompt, hidden = _prompt(row["prompt"])
    numbers = picked.numbers
    return Pair(
        why=why,
        prompt_id=picked.prompt_id,
        prompt=prompt,
        prompt_hidden=hidden,
        chosen=_side(chosen, numbers["judge_score_chosen"], shared, decode),
        rejected=_side(rejected, numbers["judge_score_rejected"], shared, decode),
        margin=_known(numbers["score_chosen"] - numbers["score_rejected"]),
        agreement=_known(numbers["agreement"]),
    )


def sides_of(picked: Picked, row: Row) -> tuple[Row, Row] | None:
    """The two completions of a pair, by their places in the row; in an older run, which kept none, by their scores."""
    sides: list[Row] = []
    for side in ("chosen", "rejected"):
        index, score = picked.numbers[f"{side}_index"], picked.numbers[f"score_{side}"]
        if isfinite(index):
            sides += row["completions"][int(index) : int(index) + 1] if index >= 0 else []
        else:
            sides += [c for c in row["completions"] if c["score"] == score][:1]
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _side(completion: Row, judged: float, shared: int, decode: Decode | None) -> Side:
    text = unicode_only(completion["text"] or "")
    pieces, hidden = _pieces(completion, shared, decode) if decode else ([], 0)
    if not pieces:
        text, hidden = _cut(text, MOST_HTML)
    return Side(
        method=completion["method"],
        score=_known(completion["score"]),
        judge_score=_known(judged),
        tokens=completion["num_tokens"] or 0,
        finish=completion["finish_reason"],
        text="" if pieces else text,
        pieces=pieces,
        hidden=hidden,
    )


def _pieces(completion: Row, shared: int, decode: Decode) -> tuple[list[Piece], int]:
    """As many pieces as the page has room for, and the number of tokens after them; none where a token has no reward
    or the tokenizer fails.
    """
    ids, rewards = completion["token_ids"] or [], completion["token_rewards"] or []
    if not ids or len(rewards) != len(ids):
        return [], 0
    try:
        with tokenizing():
            every = tinted(ids, rewards, decode, shared, MOST_TOKENS)
    except RowError:
        return [], 0
    size, kept = 0, []
    for piece in every:
        size += len(visible(piece.text[:MOST_HTML]).encode()) + 48
        if size > MOST_HTML:
            break
        kept.append(piece._replace(text=unicode_only(piece.text)))
    return kept, len(ids) - (kept[-1].end if kept else 0)


def _prompt(prompt: Any) -> tuple[list[tuple[str | None, str]], int]:
    """The turns of a prompt, from the last one backwards as much as the page has room for."""
    turns = [(None, prompt)] if isinstance(prompt, str) else [(m["role"], m["content"]) for m in prompt]
    kept: list[tuple[str | None, str]] = []
    room, hidden = MOST_PROMPT, 0
    for role, text in reversed(turns):
        shown, rest = _cut(unicode_only(text or ""), max(0, room))
        hidden += rest
        if room > 0:
            kept.append((role and unicode_only(role)[:80], shown))
        room -= len(visible(shown).encode()) + TURN_HTML
    return kept[::-1], hidden


def _cut(text: str, most: int) -> tuple[str, int]:
    """The beginning of a text that takes `most` bytes on the page, and the number of characters after it."""
    kept = text[:most]
    while len(visible(kept).encode()) > most:
        kept = kept[: len(kept) // 2]
    return kept, len(text) - len(kept)


def _known(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def review(picked: list[Picked], rows: dict[str, Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Pairs to be judged, and their answers. As often chosen is the first side as the second; one of both if the
    number is odd.
    """
    order = random.Random(seed)
    pairs = [(pair, sides) for pair in picked if (row := rows.get(pair.prompt_id)) and (sides := sides_of(pair, row))]
    order.shuffle(pairs)
    better = ["a", "b"] * ((len(pairs) + 1) // 2)
    better = better[: len(pairs)]
    order.shuffle(better)
    asked, answers = [], []
    for number, ((pair, (chosen, rejected)), side) in enumerate(zip(pairs, better, strict=True), 1):
        name = f"pair-{number:03d}"
        texts = {side: chosen["text"], "b" if side == "a" else "a": rejected["text"]}
        asked.append({"id": name, "prompt": rows[pair.prompt_id]["prompt"], "a": texts["a"], "b": texts["b"]})
        scores = {name: _known(value) for name, value in pair.numbers.items() if "score" in name}
        answers.append({"id": name, "chosen": side, "prompt_id": pair.prompt_id, **scores})
    return asked, answers
