"""What report/ says of a run, after each of its stages."""

import json
from math import sqrt
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import generate, preferences, prompts
from rgtg import table_files
from rgtg.report import warnings
from rgtg.report.summary import Summary, rows


def summary_of(directory):
    return json.loads(Path(directory.path("report", "summary.json")).read_text())


def test_a_gain_is_paired_by_prompt(finished):
    """What a prompt adds to both sides cancels, however much it is."""
    of_prompts = {"a": (0.0, 1.0), "b": (100.0, 2.0), "c": (-50.0, 3.0)}
    rows = [
        (prompt, [("x", level + gain), ("y", level + gain), ("z", level, "unguided", 0.0)])
        for prompt, (level, gain) in of_prompts.items()
    ]
    rows += [("alone", [("x", 1000.0), ("y", 1000.0)]), ("bad", "the prompt is null")]
    directory = preferences.run(finished(rows, **{"preferences.select": "null"}))
    score, baseline, gain = summary_of(directory)["scores"]["score"]
    assert (score[2], baseline[2]) == (4, 3)
    assert gain == [pytest.approx(2.0), pytest.approx(1 / sqrt(3)), 3]


def test_a_stage_alone_leaves_a_report(configure, write_parquet):
    directory = prompts.run(configure(**{"generate.prompts": write_parquet("a.parquet", prompt=["one", "two"])}))
    text = Path(directory.path("report", "summary.md")).read_text()
    assert "| prompts | 2 (0 bad, 0 duplicates left out) |" in text
    assert "completions" not in text
    assert summary_of(directory)["guided"] is None


@pytest.mark.parametrize(("stopped", "warned"), [(51, False), (50, True)])
def test_completions_that_are_cut_off_are_said(stopped, warned):
    said = warnings.of_completions({"completions": 100, "stopped": stopped})
    assert bool(said) == warned
    assert not said or said.startswith("50 of the 100 completions were cut off at generate.max_new_tokens")


def test_prompts_of_text_that_spell_out_control_tokens_are_counted(tmp_path, configure):
    """They are often rendered already, and stay as they are."""
    uri = str(tmp_path / "prompts")
    table = pa.table({"prompt": ["plain", "<s>user: hi</s>", None, "less < more", "end</s>"]})
    table_files.write_table(f"{uri}/part.parquet", table)
    assert generate._with_control_tokens(configure(), uri) == 2
    counts = {"completions": 8, "tokens": 9, "stopped": 8, "errors": 0, "with_control_tokens": 2}
    of_run = {"prompts": None, "preferences": None, "gates": None, "pairs": None, "seconds": {}, "warnings": []}
    lines = dict(rows(Summary("run", "pargs", accuracy={}, guided=counts, scores={}, **of_run)))
    assert lines["completions"].endswith("2 prompts of text that spell out control tokens")


def test_cut_off_texts_that_are_wanted_are_no_warning(finished):
    rows = [("p", [("a", 3.0, "pargs", 2.0, "length"), ("b", 1.0, "pargs", 2.0, "length")])]
    kept = preferences.run(finished(rows, **{"preferences.truncated": "keep"}))
    assert not any("cut off" in warning for warning in summary_of(kept)["warnings"])
    said = warnings.of_completions({"completions": 2, "stopped": 0})
    assert said.endswith("by preferences.truncated=keep, which decodes nothing anew")


@pytest.mark.parametrize(("held_out", "more"), [(18, True), (1000, False)])
def test_few_held_out_pairs_are_a_reason_to_hold_out_more(held_out, more):
    accuracy = {"by_fraction": {"1.0": 0.5}, "pairs": {"full": held_out}}
    assert ("train_reward.eval_fraction" in warnings.of_training({"accuracy": accuracy})) == more
