"""The comparison of methods on a real Ray, with tiny models."""

import json
from pathlib import Path

import pytest

from pipelines import evaluate
from rgtg.errors import UserError

pytestmark = pytest.mark.ray


@pytest.fixture
def asked(write_parquet):
    return write_parquet("prompts.parquet", prompt=[*(f"p{i}:" for i in range(8)), None])


def test_methods_side_by_side_with_a_judge_and_the_next_start_decodes_nothing(
    configure, asked, reward_dir, make_reward, make_language, ray_here, capsys
):
    tuned = make_language(seed=21)
    methods = f"[unguided, 'pargs beta=1,3', 'best-of-n proposals=3', 'unguided language={tuned}']"
    config = configure(
        **{
            "models.reward": reward_dir,
            "generate.prompts": asked,
            "evaluate.methods": methods,
            "evaluate.judges": make_reward(arch="bert", seed=5),
        }
    )
    lengths = {"words": lambda prompts, texts: [float(len(text)) for text in texts]}
    results = evaluate.run(config, lengths)
    names = ["unguided", "pargs beta=1", "pargs beta=3", "best-of-n proposals=3", f"unguided language={tuned}"]
    assert [r.name for r in results] == names
    by_name = {r.name: r for r in results}
    assert all(r.completions == 16 and r.errors == 1 for r in results)
    assert all(set(r.scores) == {"score", "words", "judge"} for r in results)
    assert by_name["unguided"].reward_calls == 0
    assert by_name["pargs beta=1"].reward_calls == 10 * by_name["pargs beta=1"].language_calls
    assert by_name["best-of-n proposals=3"].reward_calls == 3
    assert by_name["pargs beta=3"].scores["score"].value > by_name["unguided"].scores["score"].value
    assert by_name["pargs beta=3"].kl.value > by_name["pargs beta=1"].kl.value > by_name["unguided"].kl.value

    assert by_name[f"unguided language={tuned}"].kl.value > 10, "what the run's own language model thinks of it"

    place = Path(config.run.directory, "evaluate")
    table = (place / "results.md").read_text()
    assert all(f"| {r.name} |" in table for r in results)
    assert "At equal distance" in table
    assert [r["name"] for r in json.loads((place / "results.json").read_text())] == [r.name for r in results]
    assert all((place / name).read_bytes().startswith(b"\x89PNG") for name in ("by_kl.png", "by_seconds.png"))

    capsys.readouterr()
    again = evaluate.run(config, lengths)
    assert again == results
    assert "prompts to complete" not in capsys.readouterr().out


def test_each_method_gets_the_reward_model_of_its_paper(configure, asked, write_parquet, ray_here):
    pairs = write_parquet(
        "pairs.parquet", prompt=[""] * 48, chosen=["xx" * (1 + i % 3) for i in range(48)], rejected=["yyy"] * 48
    )
    config = configure(
        **{
            "train_reward.pairs": pairs,
            "train_reward.eval_fraction": 0.3,
            "generate.prompts": asked,
            "evaluate.methods": "[args, farma]",
        }
    )
    evaluate.run(config)
    place = Path(config.run.directory)
    assert {"reward_model_full", "reward_model_farma"} <= {file.name for file in place.iterdir()}
    table = (place / "evaluate" / "results.md").read_text()
    assert "| full |" in table
    assert "| farma |" in table


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluate.methods": "[pargs, nothing]"}, "'nothing' is unknown"),
        ({"evaluate.methods": "farma"}, "scalar head"),
        ({"evaluate.judges": "http://localhost:9/v1"}, "judge_model"),
        ({"evaluate.judges": "no/such/directory"}, "does not exist"),
    ],
)
def test_mistakes_are_said_before_anything_is_done(configure, asked, reward_dir, changes, said):
    config = configure(**{"models.reward": reward_dir, "generate.prompts": asked} | changes)
    with pytest.raises(UserError, match=said):
        evaluate.run(config)
    assert not Path(config.run.directory, "evaluate").exists()
