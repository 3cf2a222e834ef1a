"""Nights whose pairs pass every gate, and nights with one planted fault each."""

import json
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import gates, judge, preferences
from pipelines.runtime.run_directory import RunDirectory
from rgtg.errors import QualityError, UserError

PROMPTS = 300
GUIDED_UNGUIDED = {
    "preferences.select": "guided-unguided",
    "preferences.truncated": "keep",
    "generate.unguided_samples": 2,
}
WORDS = ["good", "bad", "film", "plot", "scene", "actor", "music", "story", "ending", "light", "sound", "idea"]


def night(seed=0, *, gain=2.0, finish="stop", length=0.0, text=None, without=0.0):
    """Rows of completions/: two guided and two unguided ones, whose scores differ by `gain`, grow by `length` a token,
    or are all the same in a part `without` of the prompts.
    """
    rng = random.Random(seed)

    def completion(base, *method):
        said = text or " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 12)))
        return said, rng.gauss(base, 1) + length * len(said), *method, *([2.0] if not method else [])

    rows = []
    for i in range(PROMPTS):
        guided = [(*completion(gain), "pargs", 2.0)[:2] for _ in range(2)]
        unguided = [completion(0.0)[:2] for _ in range(2)]
        if rng.random() < without:
            guided, unguided = ([("a", 0.0), ("b", 0.0)] for _ in range(2))
        rows.append(
            (f"prompt {i}: ", [(*c, "pargs", 2.0, finish) for c in guided] + [(*c, "unguided", 0.0) for c in unguided])
        )
    return rows


@pytest.fixture
def judged(monkeypatch):
    """A judge of the next run, in place of a model: a function of prompts and texts."""

    def by(score):
        @contextmanager
        def judging(*_):
            yield score

        monkeypatch.setattr(judge.judges, "judging", judging)
        monkeypatch.setattr(judge, "judge_of", lambda job: job.directory.path("no-model"))

    return by


def verdicts(directory):
    return {gate["name"]: gate["verdict"] for gate in directory.counts(gates.STAGE)["gates"]}


def test_a_clean_night_passes(finished):
    directory = preferences.run(finished(night(), **GUIDED_UNGUIDED))
    found = verdicts(directory)
    assert directory.counts(gates.STAGE)["verdict"] in ("pass", "warn")
    assert "fail" not in found.values()
    assert {name for name, verdict in found.items() if verdict == "unknown"} == {
        *("learned", "labels", "labels_guided", "labels_unguided", "hacking", "unreadable", "drift")
    }
    assert "| truncation | pass | 0 |" in Path(directory.path("report", "README.md")).read_text()


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ({"gain": -1.0}, "guidance"),
        ({"finish": "length"}, "truncation"),
        ({"length": 5.0}, "length"),
        ({"without": 0.8}, "without_pair"),
    ],
)
def test_a_planted_fault_fails_its_gate_with_everything_written(finished, fault, name):
    config = finished(night(**fault), **GUIDED_UNGUIDED)
    for _ in range(2):  # a second start says so too
        with pytest.raises(QualityError, match=rf"(?s)did not pass: .*\(gates.{name}\)"):
            preferences.run(config)
    directory = RunDirectory(config)
    assert verdicts(directory)[name] == "fail"
    assert Path(directory.path("preferences", "train-00000.parquet")).exists()
    summary = json.loads(Path(directory.path("report", "summary.json")).read_text())
    assert summary["gates"]["verdict"] == "fail"


def test_a_changed_threshold_holds_the_gates_again_and_makes_nothing_else(finished):
    config = finished(night(finish="length"), **GUIDED_UNGUIDED)
    with pytest.raises(QualityError):
        preferences.run(config)
    written = Path(RunDirectory(config).path("preferences", "train-00000.parquet")).stat().st_mtime_ns
    off = config.model_copy(update={"gates": config.gates.model_copy(update={"truncation": None})})
    directory = preferences.run(off)
    assert verdicts(directory)["truncation"] == "off"
    assert Path(directory.path("preferences", "train-00000.parquet")).stat().st_mtime_ns == written
    warned = config.model_copy(update={"gates": config.gates.model_copy(update={"on_fail": "warn"})})
    assert verdicts(preferences.run(warned))["truncation"] == "fail"


def test_few_prompts_warn_and_do_not_fail(finished):
    directory = preferences.run(finished(night(finish="length")[:50], **GUIDED_UNGUIDED))
    assert verdicts(directory)["truncation"] == "warn"
    (gate,) = [gate for gate in directory.counts(gates.STAGE)["gates"] if gate["name"] == "truncation"]
    assert gate["sentence"].endswith("(gates.truncation), and of fewer than 200 cases only warns")


def test_a_complete_run_stays_complete_with_other_pairs(finished):
    config = finished(night(), **GUIDED_UNGUIDED)
    RunDirectory(config).succeed()
    others = {"preferences": config.preferences.model_copy(update={"select": "guided-unguided-random"})}
    directory = preferences.run(config.model_copy(update=others))
    assert Path(directory.path("_SUCCESS")).exists()
    strict = {"gates": config.gates.model_copy(update={"similarity": 0.001})}
    with pytest.raises(QualityError):
        preferences.run(config.model_copy(update=strict))
    assert not Path(directory.path("_SUCCESS")).exists()


def test_a_judge_that_agrees_passes_and_its_scores_are_columns(finished, judged):
    config = finished(night(), **GUIDED_UNGUIDED)
    scores = {
        (row["prompt"], c["text"]): c["score"]
        for row in pq.read_table(f"{config.run.directory}/completions").to_pylist()
        for c in row["completions"]
    }
    judged(lambda prompts, texts: [10 * scores[of] for of in zip(prompts, texts, strict=True)])
    directory = preferences.run(config)
    found = verdicts(directory)
    assert [found[name] for name in ("labels", "labels_guided", "labels_unguided", "hacking")] == ["pass"] * 4
    for row in pq.read_table(directory.path("preferences")).to_pylist():
        assert row["judge_score_chosen"] == pytest.approx(10 * row["score_chosen"], rel=1e-6)
        assert row["judge_score_rejected"] == pytest.approx(10 * row["score_rejected"], rel=1e-6)
        assert row["agreement"] == pytest.approx(1.0)


def test_a_reward_model_that_the_judge_contradicts_is_hacked(finished, judged):
    """As where labels were flipped: what guides is liked by the reward model, and by nobody else."""
    config = finished(night(), **GUIDED_UNGUIDED)
    table = pq.read_table(f"{config.run.directory}/completions").to_pylist()
    scores = {(row["prompt"], c["text"]): c["score"] for row in table for c in row["completions"]}
    judged(lambda prompts, texts: [-scores[of] for of in zip(prompts, texts, strict=True)])
    with pytest.raises(QualityError, match=r"(?s)gates.labels\).*gates.hacking\)"):
        preferences.run(config)


def test_so_many_prompts_are_judged_and_the_same_ones_in_every_run(finished, judged):
    judged(lambda prompts, texts: [0.0] * len(texts))
    settings = GUIDED_UNGUIDED | {"preferences.judge_prompts": 60, "gates.on_fail": "warn"}
    chosen = []
    for run in ("a", "b"):
        directory = preferences.run(finished(night(), **settings, **{"run.id": run}))
        rows = pq.read_table(directory.path("judged")).to_pylist()
        assert [row["prompt_id"] for row in rows] == [f"id-{i}" for i in range(PROMPTS)]
        chosen.append({row["prompt_id"] for row in rows if row["scores"]})
        assert directory.counts(judge.STAGE) == {"prompts": len(chosen[-1])}
    assert chosen[0] == chosen[1]
    assert 30 < len(chosen[0]) < 90


def test_a_judge_that_is_stopped_goes_on_with_what_is_missing(finished, judged, monkeypatch):
    monkeypatch.setattr(judge, "PART_ROWS", 1)
    config = finished(night()[:4], **GUIDED_UNGUIDED)
    table = pq.read_table(f"{config.run.directory}/completions")
    for i in range(4):  # in files of one row each
        pq.write_table(table.slice(i, 1), f"{config.run.directory}/completions/part-{i}.parquet")
    Path(config.run.directory, "completions", "part.parquet").unlink()
    asked = []

    def stops(prompts, texts):
        asked.append(prompts[0])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return [float(len(text)) for text in texts]

    judged(stops)
    with pytest.raises(KeyboardInterrupt):
        preferences.run(config)
    preferences.run(config)
    assert asked == ["prompt 0: ", "prompt 1: ", "prompt 2: ", "prompt 2: ", "prompt 3: "]


class Asked:
    """In place of an endpoint: prefers the longer text, or what `says` gives for every question."""

    def __init__(self, says=None):
        self.says, self.pairs = says, []

    def __call__(self, url, model, key):
        self.given = (url, model, key)
        return self

    def verdicts(self, pairs):
        self.pairs += pairs
        return [self.says or (float(len(a) > len(b)),) * 2 for _, a, b in pairs]


ENDPOINT = {
    "preferences.judge": "https://judge.example/v1",
    "preferences.judge_model": "large",
    "gates.on_fail": "warn",
}


def test_an_endpoint_is_asked_about_the_pairs(finished, monkeypatch):
    monkeypatch.setattr(judge, "Endpoint", asked := Asked())
    directory = preferences.run(finished(night(without=0.1), **GUIDED_UNGUIDED, **ENDPOINT))
    rows = pq.read_table(directory.path("preferences")).to_pylist()
    assert asked.given == ("https://judge.example/v1", "large", "OPENAI_API_KEY")
    assert sorted(asked.pairs) == sorted((row["prompt"], row["chosen"], row["rejected"]) for row in rows)
    longer = [len(row["chosen"]) > len(row["rejected"]) for row in rows]
    assert [row["judge_score_chosen"] for row in rows] == longer
    assert [row["judge_score_rejected"] for row in rows] == [not of for of in longer]
    labels = next(gate for gate in directory.counts(gates.STAGE)["gates"] if gate["name"] == "labels")
    assert (labels["figure"], labels["n"]) == (pytest.approx(sum(longer) / len(rows)), len(rows))
    found = verdicts(directory)
    assert (found["unreadable"], found["hacking"], found["labels_guided"]) == ("pass", "unknown", "unknown")


def test_other_pairs_are_asked_about_and_the_same_ones_are_not(finished, monkeypatch):
    monkeypatch.setattr(judge, "Endpoint", asked := Asked())
    config = finished(night(), **GUIDED_UNGUIDED, **ENDPOINT)
    preferences.run(config)
    number = len(asked.pairs)
    preferences.run(config.model_copy(update={"gates": config.gates.model_copy(update={"length": None})}))
    assert len(asked.pairs) == number
    others = {"preferences": config.preferences.model_copy(update={"select": "guided-unguided-random"})}
    preferences.run(config.model_copy(update=others))
    assert len(asked.pairs) == 2 * number


def test_verdicts_that_nobody_can_read_fail_with_everything_written(finished, monkeypatch):
    monkeypatch.setattr(judge, "Endpoint", Asked((None, 1.0)))
    config = finished(night(), **GUIDED_UNGUIDED, **ENDPOINT | {"gates.on_fail": "fail"})
    with pytest.raises(QualityError, match="the part of the judge's verdicts that cannot be read is 1.000"):
        preferences.run(config)
    rows = pq.read_table(RunDirectory(config).path("preferences")).to_pylist()
    assert {row["judge_score_chosen"] for row in rows} == {None}


def test_an_endpoint_needs_a_model_and_holds_no_key(configure):
    for url, sentence in (
        ("https://judge.example/v1", "judge_model must name"),
        ("https://a:b@judge.example", "holds a user"),
    ):
        with pytest.raises(UserError, match=sentence):
            configure(**{"preferences.judge": url})


def test_drift_against_another_night(finished):
    first = preferences.run(finished(night(), **GUIDED_UNGUIDED, **{"run.id": "first"}))
    settings = GUIDED_UNGUIDED | {"gates.compare_with": first.uri}
    assert verdicts(preferences.run(finished(night(1), **settings, **{"run.id": "alike"})))["drift"] == "pass"
    with pytest.raises(QualityError, match="gates.drift"):
        preferences.run(finished(night(2, gain=5.0), **settings, **{"run.id": "other"}))
    files = Path(first.path("preferences"))
    for file in files.iterdir():
        pq.write_table(pq.read_table(file).drop_columns("score_margin"), file)
    with pytest.raises(UserError, match="are of an older version, without score_margin"):
        preferences.run(finished(night(3), **settings, **{"run.id": "old"}))
    with pytest.raises(UserError, match="gates.compare_with: there are no finished preferences in the run"):
        preferences.run(finished(night(), **GUIDED_UNGUIDED, **{"gates.compare_with": f"{first.uri}-not"}))


def test_rankings_have_the_figures_of_completions_alone(finished):
    settings = {"preferences.select": "ranked", "generate.unguided_samples": 2}
    found = verdicts(preferences.run(finished(night(), **settings)))
    assert found["guidance"] == "pass"
    assert found["truncation"] == "unknown"


def test_the_command_ends_with_3(finished):
    config = finished(night(finish="length"), **GUIDED_UNGUIDED)
    settings = GUIDED_UNGUIDED | {"run.root": config.run.root, "run.id": config.run.id, "models.device": "cpu"}
    settings["models.language"] = config.models.language
    command = [sys.executable, "-m", "pipelines.preferences", *(f"{key}={value}" for key, value in settings.items())]
    job = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert job.returncode == 3, job.stderr
    assert job.stderr.startswith("not good: the pairs of ")
    assert "(gates.truncation)" in job.stderr


def test_of_twenty_clean_nights_at_most_one_fails(finished):
    failed = 0
    for seed in range(20):
        try:
            preferences.run(finished(night(seed), **GUIDED_UNGUIDED, **{"run.id": f"night-{seed}"}))
        except QualityError:
            failed += 1
    assert failed <= 1
