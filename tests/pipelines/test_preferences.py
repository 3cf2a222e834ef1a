import json
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import preferences, train_reward
from pipelines.runtime.run_directory import RunDirectory
from rgtg.errors import UserError
from rgtg.preferences import selection
from rgtg.schemas import MESSAGES


def card_of(directory):
    return Path(directory.path("report"), "README.md").read_text()


def read(directory, split):
    return datasets.load_dataset(directory.path("preferences"), split=split).to_list()


def test_the_best_against_the_worst_in_columns_of_trl(finished):
    config = finished([("p ", [("a", 1.0), ("b", 3.0), ("c", -2.0)])], **{"preferences.test_fraction": 0})
    [row] = read(preferences.run(config), "train")
    assert row == {
        "prompt": "p ",
        "chosen": "b",
        "rejected": "c",
        "score_chosen": 3.0,
        "score_rejected": -2.0,
        "score_margin": 5.0,
        **{"judge_score_chosen": None, "judge_score_rejected": None, "agreement": None},
        "prompt_id": "id-0",
        "run_id": config.run.id,
        "method": "pargs",
        "strategy": "best-worst",
        **{"chosen_index": 1, "chosen_method": "pargs", "chosen_tokens": 1, "chosen_finish": "stop"},
        **{"rejected_index": 2, "rejected_method": "pargs", "rejected_tokens": 1, "rejected_finish": "stop"},
        **{"chosen_logprob": -1.0, "chosen_guided_logprob": -0.5},
        **{"rejected_logprob": -1.0, "rejected_guided_logprob": -0.5},
    }


def test_messages_are_answered_by_messages(finished):
    prompt = [{"role": "user", "content": "hi"}]
    config = finished([(prompt, [("a", 1.0), ("b", 3.0)])], MESSAGES, **{"preferences.test_fraction": 0})
    [row] = read(preferences.run(config), "train")
    assert row["prompt"] == prompt
    assert row["chosen"] == [{"role": "assistant", "content": "b"}]
    assert row["rejected"] == [{"role": "assistant", "content": "a"}]


def test_rankings_hold_every_completion_with_the_best_first(finished):
    rows = [("p ", [("a", 1.0), ("b", 3.0, "unguided", 0.0), ("c", -2.0)]), ("q ", [("a", 1.0)])]
    config = finished(rows, **{"preferences.test_fraction": 0, "preferences.select": "ranked"})
    directory = preferences.run(config)
    [row] = read(directory, "train")
    assert (row["prompt"], row["completions"], row["scores"]) == ("p ", ["b", "a", "c"], [3.0, 1.0, -2.0])
    assert (row["completions_index"], row["completions_method"]) == ([1, 0, 2], ["unguided", "pargs", "pargs"])
    assert (row["strategy"], row["prompt_id"], row["run_id"]) == ("ranked", "id-0", config.run.id)
    counts = directory.counts(preferences.STAGE)
    assert (counts["mean_margin"], counts["dropped"]) == (5.0, {selection.FEW: 1})
    assert "1 rankings to train on" in card_of(directory)


def test_rankings_of_messages(finished):
    prompt = [{"role": "user", "content": "hi"}]
    config = finished(
        [(prompt, [("a", 1.0), ("b", 3.0)])],
        MESSAGES,
        **{"preferences.test_fraction": 0, "preferences.select": "ranked"},
    )
    [row] = read(preferences.run(config), "train")
    assert row["completions"] == [[{"role": "assistant", "content": text}] for text in "ba"]


def test_ties_identical_texts_small_margins_and_errors_are_dropped_and_counted(finished):
    rows = [
        ("good", [("a", 1.0), ("b", 3.0)]),
        ("tie", [("a", 1.0), ("b", 1.0)]),
        ("same", [("a", 1.0), ("a", 2.0)]),
        ("close", [("a", 1.0), ("b", 1.4)]),
        ("one", [("a", 1.0)]),
        ("unscored", [("a", None), ("b", None)]),
        ("bad", "the prompt is null"),
    ]
    config = finished(rows, **{"preferences.test_fraction": 0, "preferences.min_margin": 0.5})
    directory = preferences.run(config)
    counts = directory.counts(preferences.STAGE)
    assert [row["prompt"] for row in read(directory, "train")] == ["good"]
    assert counts["train"] + counts["test"] + sum(counts["dropped"].values()) == len(rows)
    assert sorted(counts["dropped"].values()) == [1, 1, 1, 1, 2]


def test_the_split_is_by_prompt_and_stays_as_prompts_are_added(finished):
    rows = [(f"p{i}", [("a", 1.0), ("b", 3.0)]) for i in range(400)]
    small = preferences.run(finished(rows[:200], **{"run.id": "small", "preferences.test_fraction": 0.2}))
    large = preferences.run(finished(rows, **{"run.id": "large", "preferences.test_fraction": 0.2}))
    tests = [{row["prompt"] for row in read(directory, "test")} for directory in (small, large)]
    assert 50 < len(tests[1]) < 110
    assert tests[0] == {prompt for prompt in tests[1] if int(prompt[1:]) < 200}


def test_another_margin_writes_the_pairs_anew(finished, configure):
    rows = [(f"p{i}", [("a", 0.0), ("b", float(i))]) for i in range(1, 11)]
    preferences.run(finished(rows, **{"preferences.test_fraction": 0}))
    directory = preferences.run(configure(**{"preferences.test_fraction": 0, "preferences.min_margin": 5}))
    assert len(read(directory, "train")) == 5


def test_a_night_without_a_single_pair_is_refused(finished):
    config = finished([("tie", [("a", 1.0), ("b", 1.0)]), ("bad", "the prompt is null")])
    with pytest.raises(UserError, match="none of the 2 prompts of .* has a pair"):
        preferences.run(config)
    assert not RunDirectory(config).is_done(preferences.STAGE)


def test_the_card_tells_the_settings_of_the_completions(finished, configure):
    rows = [("p", [("a", 1.0), ("b", 3.0)])]
    preferences.run(finished(rows, **{"generate.beta": 1.5}))
    directory = preferences.run(configure(**{"preferences.min_margin": 0.1}))  # beta is left at its default now
    assert "beta: 1.5" in card_of(directory)


@pytest.mark.parametrize(("share", "warned"), [(0.59, True), (0.61, False)])
def test_a_reward_model_that_has_learned_nothing_is_said_on_the_card(finished, share, warned):
    """Of 100 pairs, guessing is right about .5 ± .05."""
    config = finished([("p", [("a", 1.0), ("b", 3.0)])], **{"preferences.test_fraction": 0})
    directory = RunDirectory(config.with_strategy())
    directory.begin(train_reward.STAGE, {"train_reward.objective": "partial", "train_reward.head": None})
    directory.finish(train_reward.STAGE, {"accuracy": {"by_fraction": {"1.0": share}, "pairs": {"full": 100}}}, 0)
    card = card_of(preferences.run(config))
    assert ("> **Warning:** the reward model has learned nothing that 100 held-out pairs show" in card) == warned


@pytest.mark.parametrize(
    ("strategy", "said"), [("best-worst", "0.79 of such pairs are the right way"), ("ranked", None)]
)
def test_the_card_names_the_evidence(finished, strategy, said):
    config = finished(
        [("p", [("a", 1.0), ("b", 3.0)])], **{"preferences.test_fraction": 0, "preferences.select": strategy}
    )
    card = card_of(preferences.run(config))
    assert said in card if said else "right way" not in card


def test_without_completions_it_says_what_to_run(configure):
    with pytest.raises(UserError, match="has no finished completions; run generate first"):
        preferences.run(configure())


def test_by_default_the_best_guided_one_against_the_worst_unguided_one(finished):
    guided, unguided = ("a", 1.0), ("d", -1.0, "unguided", 0.0)
    row = ("p", [guided, ("b", 3.0), ("c", -9.0), unguided, ("e", 9.0, "unguided", 0.0)])
    none = ("q", [guided, ("e", 9.0, "unguided", 0.0)])
    config = finished([row, none], **{"preferences.select": "null", "preferences.test_fraction": 0})
    directory = preferences.run(config)
    [pair] = read(directory, "train")
    assert (pair["chosen"], pair["rejected"], pair["strategy"]) == ("b", "d", "guided-unguided")
    assert (pair["chosen_method"], pair["rejected_method"]) == ("pargs", "unguided")
    assert (pair["chosen_index"], pair["rejected_index"]) == (1, 3)
    assert directory.counts(preferences.STAGE)["dropped"] == {selection.CLOSE: 1}
    card = card_of(directory)
    assert "the guided completion of highest and the unguided one of lowest score (`guided-unguided`)" in card
    assert "2 guided and 4 further unguided completions of each prompt" in card.replace("\n", " ")


def test_truncated_completions_are_not_chosen_and_the_reason_says_what_to_do(finished, configure):
    row = ("p", [("a", 3.0, "pargs", 2.0, "length"), ("b", 1.0, "pargs", 2.0, "length")])
    config = finished([row], **{"preferences.truncated": "never-chosen"})
    with pytest.raises(UserError, match=r"has a pair: 1 times: .* \(raise it, or set preferences.truncated=keep\)"):
        preferences.run(config)
    assert Path(RunDirectory(config).path("report", "index.html")).exists()  # where it is needed most
    directory = preferences.run(configure(**{"preferences.truncated": "keep", "preferences.test_fraction": 0}))
    assert [pair["chosen"] for pair in read(directory, "train")] == ["a"]


def test_the_completions_of_a_run_from_before_there_were_scores(finished, configure):
    """Its rewards rank them, and pairs are what they were: best against worst."""
    config = finished([("p", [("a", -1.0), ("b", -3.0)])], **{"preferences.select": "null"})
    path = Path(RunDirectory(config).path("completions"), "part.parquet")
    new = ("score", "method", "beta")
    table = pq.read_table(path)
    rows = [
        row | {"completions": [{k: v for k, v in c.items() if k not in new} for c in row["completions"]]}
        for row in table.to_pylist()
    ]
    old = pa.struct([field for field in table.schema.field("completions").type.value_type if field.name not in new])
    index = table.schema.get_field_index("completions")
    schema = table.schema.set(index, pa.field("completions", pa.list_(old)))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    manifest = Path(RunDirectory(config).path("manifest.json"))
    written = json.loads(manifest.read_text())
    written["stages"]["generate"]["inputs"] = {"rows": 1}  # without generate.unguided_samples
    manifest.write_text(json.dumps(written))
    directory = preferences.run(configure(**{"preferences.select": "null", "preferences.test_fraction": 0}))
    [pair] = read(directory, "train")
    assert (pair["chosen"], pair["score_chosen"], pair["strategy"]) == ("b", 3.0, "best-worst")


def test_no_column_is_one_that_trainers_read_otherwise(finished):
    """A column `margin` is subtracted inside the loss, and `ref_*_logps` are taken for the reference's."""
    config = finished([("p", [("a", 1.0), ("b", 3.0)])], **{"preferences.test_fraction": 0})
    [row] = read(preferences.run(config), "train")
    assert not {"margin", "ref_chosen_logps", "ref_rejected_logps", "label", "messages", "images"} & set(row)


def test_columns_of_the_prompts_come_along_under_a_prefix_of_their_own(finished):
    """So that no trainer takes one for its own: `margin` is subtracted in a loss, `tools` go into a template."""
    rows = [(f"p{i}", [("a", 1.0), ("b", 3.0)] if i % 3 else "bad") for i in range(9)]
    kinds = pa.array([[("k", i)] for i in range(9)], pa.map_(pa.string(), pa.int64()))  # no feature of `datasets`
    columns = {"margin": range(9), "meta_x": ["x"] * 9, "kinds": kinds}
    found = read(preferences.run(finished(rows, columns=columns, **{"preferences.test_fraction": 0})), "train")
    assert [(row["prompt"], row["meta_margin"]) for row in found] == [(f"p{i}", i) for i in range(9) if i % 3]
    assert (found[0]["meta_meta_x"], found[0]["meta_kinds"]) == ("x", '[["k", 1]]')
    assert not {"margin", "kinds"} & set(found[0])


def test_the_folder_is_read_by_what_people_read_it_with(finished):
    """pandas, polars and duckdb take every file in it for a table."""
    rows = [(f"p{i}", [("a", 1.0), ("b", 3.0)]) for i in range(40)]
    folder = preferences.run(finished(rows, **{"preferences.test_fraction": 0.2})).path("preferences")
    assert len(pd.read_parquet(folder)) == len(pq.read_table(folder)) == 40
    assert sum(len(split) for split in datasets.load_dataset(folder).values()) == 40
    assert {path.suffix for path in Path(folder).iterdir()} == {".parquet"}


@pytest.mark.parametrize(("score", "warned"), [(1.04, True), (1.06, False)])
def test_scores_that_hardly_differ_are_said(finished, caplog, score, warned):
    config = finished([("p", [("a", 1.0), ("b", score)])], **{"preferences.test_fraction": 0})
    directory = preferences.run(config)
    sentence = "chosen and rejected hardly differ by the reward model"
    assert (sentence in card_of(directory)) == (sentence in caplog.text) == warned
    assert (sentence in Path(directory.path("report"), "summary.md").read_text()) == warned


def test_completions_that_a_strategy_needs_and_a_run_has_not(finished, configure):
    finished([("p", [("a", 1.0), ("b", 3.0)])])
    for select in ("guided-unguided", "opposed"):
        with pytest.raises(UserError, match=f"select={select} pairs .* completions, and the run .* has none"):
            preferences.run(configure(**{"preferences.select": select}))
    assert not RunDirectory(configure()).has_begun(preferences.STAGE)
