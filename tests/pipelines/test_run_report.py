"""The page of a run from what is on disk: its figures by another way, and whatever may be missing."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import generate, preferences, report, report_pairs, report_statistics, summary
from pipelines.runtime.job_context import JobContext
from pipelines.runtime.run_directory import RunDirectory
from rgtg import storage
from rgtg.errors import UserError
from rgtg.schemas import MESSAGES, completions_schema, prompts_schema

HOSTILE = "</script><script>x</script>\u202e <b>&amp; \U0001f642 日本"

JUDGED = ["judge_score_chosen", "judge_score_rejected", "agreement"]


def tokens_of(text, tokenizer):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.fixture
def tokenizer(tokenizer_of, language_dir):
    return tokenizer_of(language_dir)


@pytest.fixture
def make_run(configure, tokenizer):
    """A run with completions: (prompt, [(text, score, method)]) a row, in files of seven; pairs are made of it."""

    def make(rows, prompt_type=None, **changes):
        config = configure(**changes)
        directory = RunDirectory(config.with_strategy())
        random = np.random.default_rng(0)

        def completion(text, score, method="pargs"):
            ids = tokens_of(text, tokenizer)
            rewards = random.normal(size=len(ids)).tolist()
            return {
                **{"text": text, "token_ids": ids, "num_tokens": len(ids), "finish_reason": "stop", "reward": score},
                **{"score": score, "token_rewards": rewards, "method": method, "beta": 2.0 * (method == "pargs")},
                **{"logprob": -1.0, "guided_logprob": -0.5},
            }

        schema = completions_schema(prompts_schema(prompt_type or pa.string(), []))
        made = [
            {
                "prompt_id": f"id-{i}",
                "prompt": prompt,
                "completions": None if isinstance(given, str) else [completion(*c) for c in given],
                "method": "pargs",
                "error": given if isinstance(given, str) else None,
            }
            for i, (prompt, given) in enumerate(rows)
        ]
        target = Path(directory.path("completions"))
        storage.make_directory(str(target))
        for start in range(0, len(made), 7):
            part = made[start : start + 7]
            pq.write_table(pa.Table.from_pylist(part, schema=schema), target / f"{start:05d}.parquet")
        directory.begin(generate.STAGE, {"rows": len(rows), "generate.unguided_samples": 0})
        directory.finish(generate.STAGE, generate.count(str(target)), 1)
        return config, made

    return make


def many(n=60, seed=1):
    random = np.random.default_rng(seed)

    def text():
        return "".join(random.choice(list("abc def"), random.integers(3, 20))) + "."

    return [
        (f"prompt {i}", [(text(), float(random.normal(i % 5)), "pargs") for _ in range(3)])
        if i % 9
        else (f"prompt {i}", "the prompt is null")
        for i in range(n)
    ]


def with_unguided(rows, seed=2):
    random = np.random.default_rng(seed)
    return [
        (prompt, given if isinstance(given, str) else [*given, ("u" * 5 + str(i), float(random.normal()), "unguided")])
        for i, (prompt, given) in enumerate(rows)
    ]


def paired(config):
    """The run of a config with its pairs, and no page yet."""
    job = JobContext.open(config, models=False)
    preferences.run_stage(job)
    summary.write(job.directory)
    return job.directory


def rendered(config):
    directory = paired(config)
    report.write(directory)
    return directory


def reported(directory):
    return json.loads(Path(directory.path("report", "report.json")).read_text())


def html_of(directory):
    return Path(directory.path("report", "index.html")).read_text()


def lines_of(directory, name):
    return [json.loads(line) for line in Path(directory.path("report", name)).read_text().splitlines()]


def pairs_of(directory):
    files = sorted(Path(directory.path("preferences")).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def replace_pairs(directory, change):
    for file in Path(directory.path("preferences")).glob("*.parquet"):
        pq.write_table(change(pq.read_table(file)), file)


def test_the_figures_are_those_of_a_direct_computation(make_run):
    config, made = make_run(with_unguided(many()), **{"preferences.test_fraction": 0.2})
    directory = rendered(config)
    figures, pairs = reported(directory), pairs_of(directory)
    rows = [row["completions"] for row in made if row["completions"]]
    own = np.array([np.mean([c["score"] for c in row[:3]]) for row in rows])
    unguided = np.array([row[3]["score"] for row in rows])
    by_scorer = {of["scorer"]: of for of in figures["sides"]}

    def estimate(values):
        return [
            pytest.approx(np.mean(values)),
            pytest.approx(np.std(values, ddof=1) / np.sqrt(len(values))),
            len(values),
        ]

    of_guide = by_scorer["reward model"]
    assert of_guide["kinds"] == ["unguided", "guided"]
    assert of_guide["means"] == [estimate(unguided), estimate(own)]
    assert of_guide["gain"] == estimate(own - unguided)
    in_pairs = by_scorer["reward model, in the pairs"]
    assert in_pairs["gain"] == estimate(
        [np.float32(p["score_chosen"]) - np.float64(p["score_rejected"]) for p in pairs]
    )
    assert in_pairs["means"][1] == estimate([p["score_chosen"] for p in pairs])

    tokens, scores, group = (
        np.array([value for i, row in enumerate(rows) for value in of(i, row[:3])], float)
        for of in (
            lambda i, row: [c["num_tokens"] for c in row],
            lambda i, row: [c["score"] for c in row],
            lambda i, row: [i] * 3,
        )
    )
    dx, dy = (v - np.array([v[group == g].mean() for g in group]) for v in (tokens, scores))
    assert figures["length"]["within"] == pytest.approx(np.corrcoef(dx, dy)[0, 1], abs=1e-6)
    from scipy.stats import spearmanr

    assert figures["length"]["rank"] == pytest.approx(spearmanr(tokens, scores).statistic, abs=1e-6)
    longer = [np.sign(p["chosen_tokens"] - p["rejected_tokens"]) / 2 + 0.5 for p in pairs]
    assert figures["length"]["longer"] == pytest.approx(np.mean(longer))
    assert figures["length"]["sample"] == figures["length"]["total"] == len(tokens)

    of_scores = figures["histograms"]["score"]
    edges = np.array(of_scores["edges"])
    assert of_scores["counts"]["chosen"] == np.histogram([p["score_chosen"] for p in pairs], edges)[0].tolist()
    assert sum(of_scores["counts"]["all"]) == 4 * len(rows)
    assert sum(figures["histograms"]["tokens"]["counts"]["rejected"]) == len(pairs)
    assert figures["train"] + figures["test"] + sum(n for _, n in figures["without"]) == len(made)


def test_the_pairs_are_the_extremes_and_others_and_no_prompt_twice(make_run):
    config, _ = make_run(many(90))
    directory = rendered(config)
    shown, pairs = reported(directory)["pairs"], pairs_of(directory)
    assert Counter(p["why"] for p in shown) == {"at random": 3, "of largest margin": 3, "of smallest margin": 3}
    assert len({p["prompt_id"] for p in shown}) == 9
    ordered = [p["prompt_id"] for p in sorted(pairs, key=lambda p: p["score_margin"])]
    assert {p["prompt_id"] for p in shown if p["why"] == "of smallest margin"} == set(ordered[:3])
    assert {p["prompt_id"] for p in shown if p["why"] == "of largest margin"} == set(ordered[-3:])
    by_id = {p["prompt_id"]: p for p in pairs}
    for p in shown:
        for side in ("chosen", "rejected"):
            assert "".join(piece[0] for piece in p[side]["pieces"]) == by_id[p["prompt_id"]][side]
            assert p[side]["score"] == by_id[p["prompt_id"]][f"score_{side}"]


def test_each_token_has_its_own_reward(make_run, tokenizer):
    config, made = make_run([("p", [("ab 日", 1.0), ("abc", 0.0)])])
    (shown,) = reported(rendered(config))["pairs"]
    pieces = shown["chosen"]["pieces"]
    rewards = made[0]["completions"][0]["token_rewards"]
    assert [piece[0] for piece in pieces] == ["a", "b", " ", "日"]
    assert [piece[3] for piece in pieces] == [pytest.approx(rewards[i], rel=1e-6) for i in (0, 1, 2, 5)]
    assert [piece[2] for piece in pieces[1:]] == pytest.approx(
        [
            b - a
            for a, b in zip([rewards[0], rewards[1], rewards[2]], [rewards[1], rewards[2], rewards[5]], strict=True)
        ],
        rel=1e-5,
    )
    assert [piece[4] for piece in pieces] == [True, True, False, False]


def test_where_the_judge_disagrees_is_shown(make_run):
    config, _ = make_run(many(90))
    directory = paired(config)
    wrong = {p["prompt_id"] for p in pairs_of(directory)[::5]}

    def judged(table):
        table, ids = table.drop_columns(JUDGED), table["prompt_id"].to_pylist()
        for side, sign in (("chosen", 1.0), ("rejected", -1.0)):
            scores = [None if i % 7 == 3 else (-sign if name in wrong else sign) for i, name in enumerate(ids)]
            table = table.append_column(f"judge_score_{side}", pa.array(scores, pa.float32()))
        return table.append_column("agreement", pa.array([0.5] + [None] * (len(ids) - 1), pa.float32()))

    replace_pairs(directory, judged)
    report.write(directory)
    figures = reported(directory)
    disagreeing = [p["prompt_id"] for p in figures["pairs"] if p["why"] == "the judge disagrees"]
    assert len(disagreeing) == 3
    assert set(disagreeing) <= wrong
    (of_judge,) = (of for of in figures["sides"] if of["scorer"] == "judge, in the pairs")
    known = [p for p in pairs_of(directory) if p["judge_score_chosen"] is not None]
    margins = [p["judge_score_chosen"] - p["judge_score_rejected"] for p in known]
    assert of_judge["gain"][0] == pytest.approx(np.mean(margins))
    assert of_judge["gain"][2] == len(margins)
    assert "has no judge" not in html_of(directory)


def test_the_review_is_balanced_and_its_answers_match(make_run):
    config, _ = make_run(many(200))
    directory = rendered(config)
    asked, answers = lines_of(directory, "review.jsonl"), lines_of(directory, "review_answers.jsonl")
    assert len(asked) == len(answers) == 100
    assert Counter(answer["chosen"] for answer in answers) == {"a": 50, "b": 50}
    pairs = {p["prompt_id"]: p for p in pairs_of(directory)}
    assert len({answer["prompt_id"] for answer in answers}) == 100
    for row, answer in zip(asked, answers, strict=True):
        pair = pairs[answer["prompt_id"]]
        other = "b" if answer["chosen"] == "a" else "a"
        assert row == {
            "id": answer["id"],
            "prompt": pair["prompt"],
            answer["chosen"]: pair["chosen"],
            other: pair["rejected"],
        }
    before = Path(directory.path("report", "review.jsonl")).read_bytes()
    report.write(directory)
    assert Path(directory.path("report", "review.jsonl")).read_bytes() == before


def test_the_command_for_pairs_leaves_a_page_which_is_always_the_same(make_run):
    directory = preferences.run(make_run(with_unguided(many()))[0])
    before = html_of(directory), reported(directory)
    report.write(directory)
    assert (html_of(directory), reported(directory)) == before


def test_without_a_finished_gates_stage_the_run_was_not_gated(make_run):
    directory = rendered(make_run(many())[0])
    assert "this run was not gated" in html_of(directory)
    assert reported(directory)["gates"] is None
    gate = {
        "name": "drift",
        "verdict": "warn",
        "figure": 0.2,
        "low": 0.1,
        "high": 0.3,
        "n": 60,
        "warn": 0.1,
        "fail": 0.25,
        "sentence": "",
    }
    off = {"name": "yield", "verdict": "off"} | dict.fromkeys(
        ("figure", "low", "high", "n", "warn", "fail", "sentence")
    )
    gates = {"verdict": "warn", "gates": [gate | {"says": "It has moved."}, off]}
    directory.begin("gates", {})
    directory.finish("gates", gates, 1)
    report.write(directory)
    assert [g["name"] for g in reported(directory)["gates"]["gates"]] == ["drift", "yield"]
    text = html_of(directory)
    assert "With care" in text
    assert 'id="drift"' in text
    assert text.count("It has moved.") == 2


def test_rankings_are_shown_by_their_first_and_last_one(make_run):
    config, _ = make_run(many(), **{"preferences.select": "ranked"})
    directory = rendered(config)
    figures, rows = reported(directory), {row["prompt_id"]: row for row in pairs_of(directory)}
    assert figures["ranked"]
    assert len(figures["pairs"]) == 9
    for p in figures["pairs"]:
        row = rows[p["prompt_id"]]
        assert (p["chosen"]["score"], p["rejected"]["score"]) == (row["scores"][0], row["scores"][-1])
        assert "".join(piece[0] for piece in p["rejected"]["pieces"]) == row["completions"][-1]
    answers = lines_of(directory, "review_answers.jsonl")
    assert len(answers) == len(rows)


def test_messages_and_hostile_texts(make_run):
    prompt = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "x" * 100_000}]
    rows = [(prompt, [(HOSTILE, 1.0), (HOSTILE[::-1] + "\0" + "y" * 100_000, 0.0)])]
    directory = rendered(make_run(rows, MESSAGES)[0])
    text = html_of(directory)
    assert len(text.encode()) < 500_000
    assert text.count("<script") == 1
    assert "\u202e" not in text
    (shown,) = reported(directory)["pairs"]
    assert shown["rejected"]["hidden"] == len(tokens_of_long := HOSTILE[::-1].encode()) + 100_001 - 400, tokens_of_long
    assert shown["prompt_hidden"] > 90_000
    assert [role for role, _ in shown["prompt"]] == ["assistant"] or shown["prompt"][0][0] == "user"
    (asked,) = lines_of(directory, "review.jsonl")
    assert asked["prompt"] == prompt


def test_the_largest_page_is_below_two_megabytes(make_run):
    """Every kind of pair there is, of texts that take as much room as texts can."""
    worst = ["<" * 3000, "\u202e" * 1500, "🙂" * 1200, " " * 3000, "x" * 3000]
    rows = [
        ([{"role": "user", "content": text}] * 300, [(text + str(i), float(i)), (text + "y", float(-i))])
        for i in range(1, 15)
        for text in [worst[i % len(worst)]]
    ]
    directory = paired(make_run(rows, MESSAGES, **{"preferences.max_similarity": 1})[0])
    replace_pairs(
        directory,
        lambda table: (
            table.drop_columns(JUDGED)
            .append_column("judge_score_chosen", pa.array([-1.0] * table.num_rows, pa.float32()))
            .append_column("judge_score_rejected", pa.array([1.0] * table.num_rows, pa.float32()))
        ),
    )
    report.write(directory)
    assert len(reported(directory)["pairs"]) == 12
    assert 500_000 < len(html_of(directory).encode()) < 2_000_000


def test_of_a_long_conversation_the_end_is_shown():
    turns, hidden = report_pairs._prompt([{"role": "user", "content": "hello"}] * 100_000)
    assert len(turns) < 50
    assert hidden == 5 * (100_000 - len(turns))
    assert report_pairs._prompt("text") == ([(None, "text")], 0)
    assert report_pairs._prompt([{"role": "user", "content": ""}]) == ([("user", "")], 0)


def test_a_run_in_a_store(make_run, s3, capsys):
    config, _ = make_run(many(), **{"preferences.test_fraction": 0.5})
    directory = rendered(config)
    storage.upload(directory.uri, f"{s3}/runs/test")
    storage.remove(f"{s3}/runs/test/report/index.html")
    report.run(config.model_copy(update={"run": config.run.model_copy(update={"root": f"{s3}/runs"})}))
    assert capsys.readouterr().out.splitlines()[-1] == f"{s3}/runs/test/report/index.html"
    assert storage.read_bytes(f"{s3}/runs/test/report/index.html").decode() == html_of(directory)


def test_what_the_summary_knows_is_on_the_page(make_run):
    directory = paired(make_run(many())[0])
    file = Path(directory.path("report", "summary.json"))
    of_sandbox = {"true reward": [[0.9, 0.1, 60], [0.1, 0.1, 60], [0.8, 0.2, 60]]}
    known = json.loads(file.read_text()) | {"scores": of_sandbox, "right": [0.97, 0.01, 55], "warnings": ["Beware."]}
    file.write_text(json.dumps(known))
    report.write(directory)
    assert {"scorer": "true reward", "kinds": ["unguided", "guided"], "gain": [0.8, 0.2, 60]}.items() <= reported(
        directory
    )["sides"][0].items()
    text = html_of(directory)
    assert "Beware." in text
    assert "0.970" in text


def without(*names):
    return lambda table: table.drop_columns([name for name in names if name in table.column_names])


def older(directory):
    """As runs were before texts had scores, and pairs the places of their completions."""
    for file in Path(directory.path("completions")).glob("*.parquet"):
        table = pq.read_table(file)
        gone = {"score", "method", "beta"}
        rows = [
            row
            | {
                "completions": row["completions"]
                and [{k: v for k, v in c.items() if k not in gone} for c in row["completions"]]
            }
            for row in table.to_pylist()
        ]
        of = table.schema.field("completions").type.value_type
        fields = [of.field(i) for i in range(of.num_fields) if of.field(i).name not in gone]
        at = table.schema.get_field_index("completions")
        schema = table.schema.set(at, pa.field("completions", pa.list_(pa.struct(fields))))
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
    gone = [f"{side}_{name}" for side in ("chosen", "rejected") for name in ("index", "tokens", "method", "finish")]
    replace_pairs(directory, without("score_margin", "strategy", *gone))


def test_a_run_from_before_there_were_scores(make_run):
    directory = rendered(make_run(many())[0])
    before = reported(directory)
    older(directory)
    Path(directory.path("report", "summary.json")).unlink()
    report.write(directory)
    after = reported(directory)
    assert [p["prompt_id"] for p in after["pairs"]] == [p["prompt_id"] for p in before["pairs"]]
    assert [p["chosen"]["pieces"] for p in after["pairs"]] == [p["chosen"]["pieces"] for p in before["pairs"]]
    assert after["histograms"]["score"] == before["histograms"]["score"]
    assert "There are no unguided completions" in html_of(directory)


def remove(*names):
    return lambda directory: [storage.remove(directory.path(name)) for name in names]


def unfinished(*stages):
    def change(directory):
        for stage in stages:
            directory.manifest["stages"][stage]["status"] = "begun"

    return change


def no_language(directory):
    for stage in directory.manifest["stages"].values():
        stage["config"]["models"]["language"] = "/nowhere/at/all"


def no_rewards(directory):
    for file in Path(directory.path("completions")).glob("*.parquet"):
        table = pq.read_table(file)
        rows = [
            row | {"completions": row["completions"] and [c | {"token_rewards": None} for c in row["completions"]]}
            for row in table.to_pylist()
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove("preferences"), "The run has no finished pairs."),
        (remove("completions"), "The completions that the pairs were made of are gone."),
        (remove("completions", "preferences", "report"), "Nothing has a score yet."),
        (unfinished("preferences"), "The run has no finished pairs."),
        (unfinished("preferences", "generate"), "The run has no finished completions."),
        (no_language, "no tokenizer of the run was found"),
        (no_rewards, "have no reward for each token"),
        (lambda d: replace_pairs(d, without("score_chosen")), "The pairs of this run have no scores."),
        (lambda d: d.manifest["stages"].clear(), "The run has no finished completions."),
    ],
)
def test_what_is_missing_is_a_sentence(make_run, change, said):
    directory = paired(make_run(many())[0])
    change(directory)
    report.write(directory)
    assert said in html_of(directory)
    assert reported(directory)["run_id"] == "test"


def test_the_command_renders_any_run_and_makes_none(make_run, configure, capsys, tmp_path):
    config, _ = make_run(many())
    directory = paired(config)
    storage.remove(directory.path("report"))
    report.run(config)
    assert capsys.readouterr().out.strip().endswith("/runs/test/report/index.html")
    assert html_of(directory)
    with pytest.raises(UserError, match=r"there is no run at .*/runs/other'; name one by run.root and run.id"):
        report.run(configure(**{"run.id": "other"}))
    assert not (tmp_path / "runs" / "other").exists()


def test_the_code_of_a_model_needs_the_commands_own_permission(make_run, monkeypatch):
    """A run directory may be anyone's."""
    asked = []

    def load(place, what, *, trust_remote_code):
        asked.append(trust_remote_code)
        raise UserError("no")

    monkeypatch.setattr(report, "load_tokenizer", load)
    directory = paired(make_run(many())[0])
    directory.manifest["stages"]["generate"]["config"]["models"]["trust_remote_code"] = True
    report.write(directory)
    assert set(asked) == {False}


def test_no_place_is_told(make_run, tmp_path):
    directory = rendered(make_run(many())[0])
    assert str(tmp_path) not in html_of(directory)
    assert str(tmp_path) not in json.dumps(reported(directory))


def test_unguided_completions_in_a_table_of_their_own(make_run, configure):
    config, made = make_run(many())
    directory = paired(config)
    schema = pq.read_schema(next(Path(directory.path("completions")).glob("*.parquet")))
    some = [
        row | {"completions": [c | {"method": "unguided", "score": 0.25} for c in row["completions"]]}
        for row in made[:20]
        if row["completions"]
    ]
    target = Path(directory.path("completions_unguided"))
    target.mkdir()
    pq.write_table(pa.Table.from_pylist(some, schema=schema), target / "part.parquet")
    directory.begin("baseline", {})
    directory.finish("baseline", {}, 1)
    report.write(directory)
    of_guide = reported(directory)["sides"][0]
    own = [np.mean([c["score"] for c in row["completions"]]) for row in made[:20] if row["completions"]]
    assert of_guide["gain"] == [
        pytest.approx(np.mean(own) - 0.25),
        pytest.approx(np.std(own, ddof=1) / np.sqrt(len(own))),
        len(own),
    ]
    assert of_guide["means"][0][0] == 0.25


def test_pairs_are_picked_the_same_in_files_of_any_size(make_run, tmp_path):
    directory = rendered(make_run(many(200))[0])
    table = pa.concat_tables([pq.read_table(f) for f in sorted(Path(directory.path("preferences")).glob("*.parquet"))])
    found = []
    for size in (7, 1000):
        place = tmp_path / str(size)
        place.mkdir()
        for start in range(0, table.num_rows, size):
            pq.write_table(table.slice(start, size), place / f"{start:05d}.parquet")
        statistics = report_statistics.pair_statistics(str(place), 0)
        found.append(
            {
                kind: [p.prompt_id for p in picked]
                for kind, picked in statistics.picked.items()
                if kind.startswith("of ")
            }
        )
    assert found[0] == found[1]


def test_a_picked_pair_without_its_completions_is_left_out():
    numbers = dict.fromkeys(report_statistics.NUMBERS, float("nan")) | {"chosen_index": 5.0, "rejected_index": 0.0}
    row = {"completions": [{"score": 1.0}]}
    assert report_pairs.sides_of(report_statistics.Picked(0.0, "id", numbers), row) is None
