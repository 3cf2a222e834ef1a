"""Commands as a person runs them: one clear sentence and exit code 2 for a mistake."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import doctor, nightly
from pipelines.runtime import ray_session
from rgtg.config_file import load
from rgtg.errors import TransientError, UserError
from rgtg.lease import Lease


def rgtg(*arguments: str, module: str = "pipelines.cli", **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=600,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nightly", "generate.betta=1"], "the setting 'generate.betta' is unknown; did you mean 'generate.beta'?"),
        (["generate", "generate.slots=many"], "the setting 'generate.slots' is wrong"),
        (["train-reward", "train_reward.objective=whole"], "'train_reward.objective' is wrong"),
        (["generate", "slots=4"], "'slots=4' is not a setting; write section.key=value"),
        (["report", "run.root=/nowhere", "run.id=x"], "there is no run at '/nowhere/x'; name one by run.root and"),
        (["nightly", "--config", "absent.yaml"], "cannot read 'absent.yaml': No such file"),
    ],
)
def test_a_typo_is_one_sentence(arguments, sentence):
    result = rgtg(*arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_missing_inputs_are_said_before_anything_starts(tmp_path, language_dir, write_parquet):
    prompts = write_parquet("prompts.parquet", prompt=["one"])
    there = {"run.root": str(tmp_path / "runs"), "models.language": language_dir, "generate.prompts": prompts}
    cases = {
        "generate.prompts": (str(tmp_path / "nothing"), "there is nothing at"),
        "models.language": (str(tmp_path / "no-model"), "does not exist"),
        "models.reward": (language_dir, "is a language model; train a reward model from it first"),
    }
    for key, (value, sentence) in cases.items():
        settings = {**there, "models.reward": str(tmp_path), **{key: value}}
        result = rgtg(*(f"{k}={v}" for k, v in settings.items()), module="pipelines.generate")
        assert result.returncode == 2, result.stderr
        assert sentence in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_on_a_cluster_all_that_works_on_one_machine_alone_is_refused_at_once(tmp_path, language_dir, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    there = [f"models.language={language_dir}", "generate.prompts=sandbox", "train_reward.pairs=sandbox"]
    with pytest.raises(UserError) as caught:
        nightly.run(load(overrides=[*there, f"run.root={tmp_path}"]))
    for words in ("models.device is auto", "run.root is", "models.language is", "train_reward.pairs is 'sandbox'"):
        assert words in str(caught.value)
    assert str(caught.value).endswith("use s3://, or set RGTG_SHARED_DISK=1 if all of them mount it")
    monkeypatch.setenv("RGTG_SHARED_DISK", "1")
    with pytest.raises(UserError, match="^on a cluster models.device is auto, .*; set it to cuda or cpu$"):
        nightly.run(load(overrides=[*there, f"run.root={tmp_path}"]))


def test_doctor_tells_good_from_bad(tmp_path, language_dir, write_parquet):
    settings = [
        f"run.root={tmp_path}",
        f"models.language={language_dir}",
        f"train_reward.pairs={write_parquet('pairs.parquet', prompt=['p'], chosen=['a'], rejected=['b'])}",
    ]
    good = rgtg("doctor", *settings, f"generate.prompts={write_parquet('prompts.parquet', prompt=['one'])}")
    assert good.returncode == 0, good.stderr
    assert "32 of 32 slots" in " ".join(good.stdout.replace("│", "").split())
    bad = rgtg("doctor", *settings, "generate.prompts=/nowhere")
    assert bad.returncode == 2
    assert "generate.prompts cannot be used as configured" in bad.stderr


def test_files_without_a_row_and_a_run_that_is_not_there_are_told_at_once(tmp_path, language_dir, write_parquet):
    settings = {
        **{"run.root": tmp_path / "runs", "models.language": language_dir, "gates.compare_with": tmp_path / "no-run"},
        "train_reward.pairs": write_parquet("pairs.parquet", prompt=[], chosen=[], rejected=[]),
        "generate.prompts": write_parquet("prompts.parquet", prompt=[None] * 3),
    }
    for run in (doctor.run, nightly.run):
        with pytest.raises(UserError) as caught:
            run(load(overrides=[f"{key}={value}" for key, value in settings.items()]))
        for name in ("gates.compare_with", "pairs", "prompts"):
            assert name in str(caught.value)
    for sentence in ("train_reward.pairs: none of the 0 rows of ", "generate.prompts: none of the 3 rows of "):
        assert sentence in str(caught.value)
    assert not list(tmp_path.rglob("manifest.json"))


def test_more_bad_prompts_than_a_run_accepts_are_a_doubt(tmp_path, language_dir, write_parquet, capsys):
    prompts = write_parquet("prompts.parquet", prompt=["a", "b", None])
    settings = [f"run.root={tmp_path}", f"models.language={language_dir}", "train_reward.pairs=sandbox"]
    doctor.run(load(overrides=[*settings, f"generate.prompts={prompts}"]))
    assert "?? 2 of the first 3 rows are prompts" in " ".join(capsys.readouterr().out.replace("│", "").split())


def test_doctor_names_a_fault_of_a_model_once(tmp_path, language_dir, capsys):
    shutil.copy(Path(language_dir, "config.json"), tmp_path)
    named = ["train_reward.pairs=sandbox", "generate.prompts=sandbox"]
    with pytest.raises(UserError, match=r"^models\.language cannot be used as configured"):
        doctor.run(load(overrides=[f"models.language={tmp_path}", f"run.root={tmp_path}", *named]))
    assert " ".join(capsys.readouterr().out.replace("│", "").split()).count("it has no tokenizer.json") == 1


def test_all_mistakes_of_a_config_are_told_at_once(tmp_path, make_language, make_tokenizer, write_parquet, capsys):
    """By the doctor, and by a job before it reads a row: each on real rows, with the models that they meet."""
    turns = [[{"role": "user", "content": "a"}]] * 3
    language, other = make_language(make_tokenizer("abc")), make_language(make_tokenizer("ab"))
    pairs = write_parquet("pairs.parquet", prompt=["p"] * 3, chosen=["a", " ", "b"], rejected=["a"] * 3)
    settings = {
        "run.root": tmp_path / "runs",
        "models.language": language,  # without a chat template
        "train_reward.pairs": pairs,
        "generate.prompts": write_parquet("prompts.parquet", prompt=turns),
        "train_reward.init": other,
    }
    config = load(overrides=[f"{key}={value}" for key, value in settings.items()])
    mistakes = ("another tokenizer than models.language", "the tokenizer of .* has no chat template")
    with pytest.raises(UserError, match=r"^train_reward\.init, first prompts cannot be used as configured"):
        doctor.run(config)
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    with pytest.raises(UserError) as caught:
        nightly.run(config)
    for mistake in mistakes:
        assert re.search(mistake, str(caught.value))
        assert re.search(mistake.replace(" ", r"\s*"), said)
    assert not (tmp_path / "runs/test").exists()


def test_files_that_are_not_there_are_told_beside_a_model_that_is_not(tmp_path):
    paths = {"models.language": "/no-model", "train_reward.pairs": "/no-pairs", "generate.prompts": "/no-prompts"}
    with pytest.raises(UserError) as caught:
        nightly.run(load(overrides=[f"run.root={tmp_path}", *(f"{key}={path}" for key, path in paths.items())]))
    assert all(path in str(caught.value) for path in paths.values())


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"prompt": ["p"] * 2, "chosen": ["a"] * 2, "rejected": ["a"] * 2}, "2 unused: chosen equals rejected"),
        ({"prompt": ["p" * 90] * 2, "chosen": ["a"] * 2, "rejected": ["b"] * 2}, "within train_reward.max_length"),
    ],
)
def test_pairs_of_which_none_can_be_used_are_told_at_once(tmp_path, language_dir, write_parquet, columns, sentence):
    settings = {
        "run.root": tmp_path,
        "models.language": language_dir,
        "generate.prompts": write_parquet("prompts.parquet", prompt=["a"]),
        "train_reward.pairs": write_parquet("pairs.parquet", **columns),
        "train_reward.max_length": 64,
    }
    with pytest.raises(UserError, match=sentence):
        nightly.run(load(overrides=[f"{key}={value}" for key, value in settings.items()]))
    assert not Path(tmp_path, "pairs").exists()


def test_the_sandboxs_data_go_with_its_model_alone(tmp_path, language_dir, capsys):
    """A config that names a model and forgets the data would train it on made-up reviews."""
    of_user = [f"models.language={language_dir}", f"run.root={tmp_path}", "models.device=cpu"]
    with pytest.raises(UserError, match=r"^set train_reward\.pairs and generate\.prompts: by default they are"):
        nightly.run(load(overrides=of_user))
    with pytest.raises(UserError, match=r"^set generate\.prompts: by default .* write generate\.prompts=sandbox"):
        nightly.run(load(overrides=[*of_user, "train_reward.pairs=sandbox"]))
    with pytest.raises(UserError, match=r"train_reward\.pairs, generate\.prompts cannot be used as configured"):
        doctor.run(load(overrides=of_user))
    assert "set train_reward.pairs" in " ".join(capsys.readouterr().out.replace("│", "").split())
    assert not list(tmp_path.iterdir())


def test_settings_are_a_config_file(tmp_path):
    printed = rgtg("settings").stdout
    (tmp_path / "config.yaml").write_text(printed)
    assert "#beta: null" in printed
    result = rgtg("generate", "--config", str(tmp_path / "config.yaml"), "generate.method=nonsense")
    assert "the method 'nonsense' is unknown" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_job_that_is_stopped_says_so_and_closes_what_it_holds(tmp_path, number):
    """As a person and a scheduler do it, while the job waits."""
    job = (
        "import signal, sys\n"
        "from pipelines.runtime.launch import guarded\n"
        "from rgtg.lease import Lease\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # it is ignored where the tests run behind nohup
        "def run():\n"
        "    with Lease(sys.argv[1], print):\n"
        "        print('ready', flush=True)\n"
        "        sys.stdin.read()\n"
        "guarded(run)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", job, str(tmp_path / "night")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=300)[1] == "interrupted; rerun the same command to resume\n"
    assert process.returncode == 130
    assert not (tmp_path / "night").exists()


def test_a_job_that_is_stopped_while_an_object_is_deleted_stops_too():
    """Where Python can raise nothing, the signal must not be lost."""
    job = (
        "import os, signal, sys\n"
        "from pipelines.runtime.launch import guarded\n"
        "class Deleted:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "def run():\n"
        "    Deleted()\n"
        "    print('goes on', flush=True)\n"
        "    sys.stdin.read()\n"
        "guarded(run)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", job], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "goes on\n"
    assert process.wait(60) == 130
    assert process.stderr.read() == "interrupted; rerun the same command to resume\n"


def test_ray_that_does_not_start_is_one_sentence(monkeypatch, capsys):
    def slow(**options):
        raise Exception("The current node timed out during startup. This could ...\nmore")

    monkeypatch.setattr(ray_session.ray, "init", slow)
    with pytest.raises(
        TransientError, match=r"Ray failed to start 3 times \(The current node timed out .*start the job"
    ):
        ray_session._init()
    assert capsys.readouterr().out.count("retrying") == 2


def test_a_second_job_on_a_run_is_refused_while_the_first_lives(tmp_path, language_dir):
    settings = [f"run.root={tmp_path}", "run.id=night", f"models.language={language_dir}"]
    with Lease(str(tmp_path / "night"), lambda sentence: None, renew_s=0.1):
        result = rgtg("preferences", *settings)
    assert result.returncode == 2
    assert "is at work on the run" in result.stderr
    assert "no finished completions" in rgtg("preferences", *settings).stderr


def test_a_new_run_begins_beside_those_that_are_there(tmp_path, language_dir):
    (tmp_path / "night").mkdir()
    (tmp_path / "night-2").mkdir()
    settings = [f"run.root={tmp_path}", "run.id=night", f"models.language={language_dir}"]
    result = rgtg("preferences", "--new-run", *settings)
    assert f"the run '{tmp_path}/night-3' has no finished completions" in result.stderr
    result = rgtg("preferences", "--new-run", *settings[:1], "run.id=other", settings[2])
    assert f"the run '{tmp_path}/other' has" in result.stderr
