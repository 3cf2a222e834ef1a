"""The training job on a real Ray: any number of workers, resume after a death, what is saved loads anywhere."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipelines import pairs, train_reward
from pipelines.runtime.job_context import JobContext
from rgtg.errors import UserError
from rgtg.models.reward import RewardModel
from rgtg.text_score import WAYS
from tests.tolerance import alike

pytestmark = pytest.mark.ray


def make_pairs(n: int, seed: int = 0) -> dict[str, list[str]]:
    """Responses of x and y: the chosen one has more of x."""
    rng = random.Random(seed)

    def response(share: float) -> str:
        return "".join("x" if rng.random() < share else "y" for _ in range(rng.randint(6, 14)))

    return {
        "prompt": [f"p{rng.randint(0, 50)}:" for _ in range(n)],
        "chosen": [response(0.8) for _ in range(n)],
        "rejected": [response(0.2) for _ in range(n)],
    }


@pytest.fixture
def job(configure, write_parquet, ray_here):
    def make(**changes):
        return configure(
            **{
                "train_reward.pairs": write_parquet("pairs.parquet", **make_pairs(320)),
                "train_reward.eval_pairs": write_parquet("eval.parquet", **make_pairs(80, seed=1)),
                **changes,
            }
        )

    return make


def test_one_worker_and_two_reach_the_same_accuracy_on_the_same_batches(job):
    one = train_reward.run(job(**{"run.id": "one"})).counts(train_reward.STAGE)
    two = train_reward.run(job(**{"run.id": "two", "train_reward.num_workers": 2})).counts(train_reward.STAGE)
    assert one["step"] == two["step"] == 40
    assert one["prefix_pairs"] == two["prefix_pairs"]
    full = [counts["accuracy"]["by_fraction"]["1.0"] for counts in (one, two)]
    assert min(full) > 0.85
    assert abs(full[0] - full[1]) < 0.1  # three standard errors of 80 pairs
    assert one["accuracy"]["pairs"]["full"] == two["accuracy"]["pairs"]["full"] == 80
    by_score = one["accuracy"]["by_score"]
    assert set(by_score) == set(WAYS)
    best, kept, n = max(by_score.values()), by_score[one["accuracy"]["score"]], one["accuracy"]["pairs"]["full"]
    assert best - (best * (1 - best) / n) ** 0.5 <= kept + 1e-4  # rounded to four places
    assert kept == one["accuracy"]["by_fraction"]["1.0"]


def test_what_is_saved_loads_in_plain_transformers(job, language_dir):
    settings = {"train_reward.objective": "full", "train_reward.score": "last-3"}
    place = train_reward.run(job(**settings)).path("reward_model")
    ours = RewardModel.load(place).eval()
    assert ours.score_way == "last-3", "as the config asked, in the model's own config"
    plain = AutoModelForSequenceClassification.from_pretrained(place).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(language_dir).get_vocab()
    ids = torch.tensor([tokenizer("p1:xxyxx").input_ids + [tokenizer.eos_token_id]])
    with torch.no_grad():
        assert plain(ids).logits[0, 0].item() == alike(ours(ids)[0, -1].item())


def test_training_goes_on_from_its_checkpoint_when_the_worker_dies(job, tmp_path, monkeypatch):
    marks = tmp_path / "marks"
    marks.mkdir()

    def dies_once(config):
        from rgtg.training.reward_trainer import RewardTrainer

        step = RewardTrainer.train_step

        def train_step(self, batch):
            with open(marks / "steps", "a") as file:
                file.write(f"{self.step}\n")
            if self.step == 25 and not (marks / "died").exists():
                (marks / "died").touch()
                os._exit(1)
            return step(self, batch)

        RewardTrainer.train_step = train_step
        worker(config)

    worker = train_reward.worker
    cloudpickle.register_pickle_by_value(__import__(__name__))
    monkeypatch.setattr(train_reward, "worker", dies_once)
    counts = train_reward.run(job(**{"train_reward.checkpoint_every": 10})).counts(train_reward.STAGE)
    steps = [int(line) for line in (marks / "steps").read_text().split()]
    resumed = steps[26]
    assert resumed in (10, 20)  # the one of step 20, unless the worker died before it was registered
    assert steps == [*range(26), *range(resumed, 40)]
    assert counts["accuracy"]["by_fraction"]["1.0"] > 0.85


def test_a_worker_refuses_a_model_that_is_not_the_one_the_driver_saw(job, monkeypatch):
    def sees_another(config):
        worker(config | {"digests": dict.fromkeys(config["digests"], "another")})

    worker = train_reward.worker
    cloudpickle.register_pickle_by_value(__import__(__name__))
    monkeypatch.setattr(train_reward, "worker", sees_another)
    with pytest.raises(Exception, match="changed while the job ran"):
        train_reward.run(job(**{"train_reward.max_failures": 0}))


def test_a_finished_model_is_not_trained_again_and_other_settings_are_refused(job):
    directory = train_reward.run(job())
    weights = Path(directory.path("reward_model"), "model.safetensors")
    curve = [json.loads(line) for line in Path(directory.path("training.jsonl")).read_text().splitlines()]
    assert [point["step"] for point in curve] == list(range(1, 41))
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert all(point["grad_norm"] > 0 and point["pairs_per_second"] > 0 for point in curve)
    before = weights.stat().st_mtime_ns
    train_reward.run(job())
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"train_reward\.objective \"partial\" \(now \"full\"\)"):
        train_reward.run(job(**{"train_reward.objective": "full"}))


def test_formats_mix_and_unusable_pairs_are_counted(job, tmp_path, capsys):
    (tmp_path / "more.jsonl").write_text(
        '{"chosen": "\\n\\nHuman: hi\\n\\nAssistant: xx", "rejected": "\\n\\nHuman: hi\\n\\nAssistant: yy"}\n'
        '{"chosen": "\\n\\nHuman: hi\\n\\nAssistant: xx", "rejected": "\\n\\nHuman: ho\\n\\nAssistant: yy"}\n'
        '{"prompt": "p", "chosen": "same", "rejected": "same"}\n'
        "not json\n"
    )
    config = job(**{"train_reward.epochs": 1})
    places = [*config.train_reward.pairs, str(tmp_path / "more.jsonl")]
    config = config.model_copy(update={"train_reward": config.train_reward.model_copy(update={"pairs": places})})
    counts = train_reward.run(config).counts(pairs.STAGE)
    assert (counts["train"], counts["eval"], sum(counts["unused"].values())) == (321, 80, 3)
    said = capsys.readouterr().out
    assert "1 unused: the pair does not share its prompt" in said
    assert "1 unused: the line is not a JSON object" in said


def test_many_files_of_several_schemas_and_some_that_cannot_be_read(configure, ray_here, write_parquet, tmp_path):
    texts = {"prompt": ["p", "q"], "chosen": ["xx", "xy"], "rejected": ["yy", "yx"]}
    for i in range(12):
        more = {"rating": [i, i]} if i % 2 else {}
        write_parquet(f"shards/{i}.parquet", **texts, **more)
    scored = {"score_chosen": [2.0, 1.0], "score_rejected": [1.0, 1.0]}
    write_parquet("shards/scored.parquet", **texts, **scored)
    whole = (tmp_path / "shards" / "0.parquet").read_bytes()
    (tmp_path / "shards" / "cut.parquet").write_bytes(whole[:-20])
    (tmp_path / "shards" / "torn.parquet").write_bytes(whole[:8] + b"\xff" * 20 + whole[28:])  # its schema is whole
    (tmp_path / "shards" / "table.xlsx").write_bytes(b"PK")
    config = configure(
        **{
            "train_reward.pairs": str(tmp_path / "shards"),
            "train_reward.eval_fraction": 0.2,
            "generate.max_error_rate": 0.2,
        }
    )
    job = JobContext.open(config, pairs=True)
    pairs.run_stage(job, config.models.language)
    counts = job.directory.counts(pairs.STAGE)
    assert counts["train"] + counts["eval"] == 25
    assert counts["unused"] == {"scores are tied": 1}
    skipped = {name.rsplit("/", 1)[1] for name in counts["skipped_files"]}
    assert skipped == {"cut.parquet", "torn.parquet", "table.xlsx"}


def test_of_one_prompt_for_all_pairs_some_pairs_are_held_out(configure, write_parquet, ray_here):
    """A dataset of a taste: there is no other prompt to hold out."""
    of_one = make_pairs(100) | {"prompt": ["Write a line:"] * 100}
    config = configure(
        **{"train_reward.pairs": write_parquet("a.parquet", **of_one), "train_reward.eval_fraction": 0.2}
    )
    job = JobContext.open(config, pairs=True)
    pairs.run_stage(job, config.models.language)
    counts = job.directory.counts(pairs.STAGE)
    assert counts["train"] + counts["eval"] == 100
    assert 4 <= counts["eval"] <= 40  # 20 ± four standard deviations


def test_files_without_pairs_are_refused_before_training(configure, write_parquet, ray_here):
    config = configure(**{"train_reward.pairs": write_parquet("a.parquet", text=["one"])})
    with pytest.raises(UserError, match="holds no preference pairs: its columns are text"):
        train_reward.run(config)


def test_pairs_of_which_none_is_usable_are_one_sentence(configure, write_parquet, ray_here):
    place = write_parquet("a.parquet", prompt=["p"], chosen=["same"], rejected=["same"])
    for _ in range(2):  # a second start refuses them too
        with pytest.raises(
            UserError, match="none of the 1 rows of .* is a pair .*: *1 unused: chosen equals rejected"
        ):
            train_reward.run(configure(**{"train_reward.pairs": place}))


def test_ctrl_c_in_training_is_said(tmp_path, language_dir, write_parquet):
    """Ray would take the handler of the signal for itself."""
    settings = {
        **{"run.root": tmp_path, "models.language": language_dir, "models.device": "cpu"},
        **{"train_reward.pairs": write_parquet("pairs.parquet", **make_pairs(320)), "train_reward.epochs": 1000},
        "train_reward.eval_pairs": write_parquet("eval.parquet", **make_pairs(80, seed=1)),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.train_reward", *(f"{key}={value}" for key, value in settings.items())],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
    )
    assert process.stdout
    before = list(itertools.takewhile(lambda line: "loss" not in line, process.stdout))  # to the first line of a step
    process.send_signal(signal.SIGINT)
    after, _ = process.communicate(timeout=120)
    assert process.returncode == 130, "".join(before) + after
    assert "interrupted; rerun the same command to resume" in after
    assert "Traceback" not in after
