"""Settings: what is accepted, and the sentence that names the key where something is not."""

from datetime import date

import pytest
import yaml
from pydantic import ValidationError

from rgtg import config_file
from rgtg.config import SANDBOX_SETTINGS, Config, Generate
from rgtg.config_section import inputs_of
from rgtg.errors import UserError
from rgtg.training_settings import TrainReward


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "run.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def refused(*overrides, file=None):
    with pytest.raises(UserError) as raised:
        config_file.load(file, overrides)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert "pydantic" not in sentence
    return sentence


def test_defaults_run():
    config = config_file.load()
    assert config.models.language == "sandbox"
    assert config.run.id == date.today().isoformat()
    assert config.run.directory == f"runs/{config.run.id}"


def test_the_sandbox_has_settings_of_its_own(write):
    assert config_file.load().train_reward.max_length == SANDBOX_SETTINGS["train_reward"]["max_length"]
    assert config_file.load(overrides=["train_reward.max_length=77"]).train_reward.max_length == 77
    real = config_file.load(overrides=["models.language=some/model"])
    assert real.train_reward.max_length == Config().train_reward.max_length == 512
    assert config_file.load(write("models: {language: some/model}")).nightly.compare_objectives is False


def test_overrides_come_after_the_file_and_the_last_one_counts(write):
    file = write("generate: {samples: 3, k: 5}\nrun: {seed: 4}")
    config = config_file.load(file, ["generate.samples=6", "generate.samples=7", "models.dtype=bfloat16"])
    assert (config.generate.samples, config.generate.k, config.run.seed) == (7, 5, 4)
    assert config.models.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train_reward.learning_rate=1e-4", 1e-4),
        ("train_reward.learning_rate=5E-6", 5e-6),
        ("train_reward.learning_rate=2.5e-3", 2.5e-3),
        ("train_reward.learning_rate=0.01", 0.01),
        ("generate.beta=2", 2.0),
        ("generate.beta=null", None),
        ("generate.prompts=a.parquet", ["a.parquet"]),
        ("generate.prompts=[a, s3://b/c]", ["a", "s3://b/c"]),
        ("nightly.compare_objectives=true", True),
        ("run.root=s3://bucket/with=sign", "s3://bucket/with=sign"),
        ("run.id=2026-07-01", "2026-07-01"),
        ("run.id=night-1.a_b", "night-1.a_b"),
    ],
)
def test_values_of_overrides(override, value):
    section, _, name = override.partition("=")[0].partition(".")
    assert getattr(getattr(config_file.load(overrides=[override]), section), name) == value


def test_values_of_a_file(write):
    config = config_file.load(write("run: {id: 2026-07-01}\ntrain_reward: {learning_rate: 1e-4, pairs: x}\n"))
    assert config.run.id == "2026-07-01"
    assert config.train_reward.pairs == ["x"]
    assert config.train_reward.learning_rate == 1e-4  # which YAML reads as text, for want of a dot


def test_an_empty_file_is_the_defaults(write):
    assert config_file.load(write("# nothing\n")) == config_file.load()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("generate.sample=8", ["'generate.sample'", "unknown", "'generate.samples'?"]),
        ("generation.samples=8", ["'generation'", "unknown", "generate"]),
        ("generate.samples=many", ["'generate.samples'", "integer", "'many'"]),
        ("generate.samples=2.5", ["'generate.samples'", "2.5"]),
        ("generate.samples=true", ["'generate.samples'", "True"]),
        ("generate.samples=0", ["'generate.samples'", "greater than or equal to 1", "0"]),
        ("generate.beta=-1", ["'generate.beta'", "-1"]),
        ("generate.beta=.inf", ["'generate.beta'", "inf"]),
        ("generate.k=-1", ["'generate.k'"]),
        ("generate.gpus_per_actor=1e-9", ["'generate.gpus_per_actor'", "0.01"]),  # a billion actors a GPU
        ("generate.method=parg", ["'generate.method'", "'parg'", "pargs-greedy"]),
        ("models.dtype=int8", ["'models.dtype'", "bfloat16", "'int8'"]),
        ("train_reward.pairs=[]", ["'train_reward.pairs'"]),
        ("train_reward.learning_rate=fast", ["'train_reward.learning_rate'", "number", "'fast'"]),
        ("train_reward.eval_fraction=1", ["'train_reward.eval_fraction'", "less than 1"]),
        ("run.id=../up", ["'run.id'", "'../up'"]),
        ("run.id=a/b", ["'run.id'"]),
        ("run.id=", ["'run.id'"]),
        ("run.seed=x", ["'run.seed'"]),
        (".seed=1", ["''", "unknown", "run"]),
    ],
)
def test_the_sentence_names_the_key(override, words):
    sentence = refused(override)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train_reward.num_workers=3"], ["train_reward", "batch_size (16)", "num_workers x micro_batch_size (12)"]),
        (
            ["train_reward.num_workers=2", "train_reward.micro_batch_size=3", "train_reward.batch_size=32"],
            ["train_reward", "batch_size (32)", "(6)"],
        ),
        (["generate.min_actors=4", "generate.max_actors=2"], ["generate", "max_actors (2)", "min_actors (4)"]),
        (["generate.min_actors=2"], ["generate", "max_actors (1)", "min_actors (2)"]),
    ],
)
def test_settings_that_do_not_go_together(overrides, words):
    sentence = refused(*overrides)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("override", ["generate.samples", "samples=8", "generate=8", "=", "generate.=1", "x"])
def test_what_is_no_override(override):
    sentence = refused(override)
    assert repr(override) in sentence
    assert "section.key=value" in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("generate: {samples: 3}\ngenerate: {k: 5}", "'generate' is set twice, in lines 1 and 2"),
        ("generate:\n  samples: 3\n  samples: 4", "'generate.samples' is set twice, in lines 2 and 3"),
        ("generate: " + "[" * 2000 + "]" * 2000, "nests deeper"),
        ("run: {id: &a b, root: *a}", "the alias *a in line 1 is not supported"),
        ("run: {id: !!python/name:os.system x}", "the tag tag:yaml.org,2002:python/name:os.system in line 1"),
        ("run: !!set {id}", "the tag tag:yaml.org,2002:set"),
        ("run: {id: a}\n---\nrun: {id: b}", "a second document begins in line"),
        ("? [run]\n: {id: a}", "a key in line 1 is not text"),
        ("run: {id: a\0b}", "is not YAML"),
        ("run: {id: a}".encode("utf-16"), "can't decode"),
        ("#" * (1 << 21), "more than 1 MiB"),
        ("generate: {samples: 1_000}", "'1_000'"),
        ("generate: {samples: 1:30}", "'1:30'"),
        ("generate: {samples: 4.0}", "'generate.samples'"),
        ("generate: {samples: 0x10}", "'0x10'"),
        ("models: {trust_remote_code: yes}", "'models.trust_remote_code'"),
        ("models: {language: null}", "'models.language'"),
        (f"generate: {{beta: {'9' * 6000}}}", "'generate.beta'"),
        ("generate: {beta: .inf}", "'generate.beta'"),
        ("generate: {beta: .nan}", "'generate.beta'"),
        (f"run: {{id: {'a' * 300}}}", "at most 128 characters"),
        ("generate: [unclosed", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("generate:\n\tsamples: 3", "that cannot start any token in line 2"),
        ("run:\n  id: x\n generate:\n  samples: 2", "but found '<block mapping start>' in line 3"),
        (b"run: {id: \xff\xfe}", "can't decode"),
        ("- generate", "must hold sections"),
        ("just text", "must hold sections"),
        ("generate: 5", "must hold sections"),
        ("samples: 8", "must hold sections"),
        ("generate: {sample: 8}", "'generate.sample' is unknown"),
        ("generate: {samples: '8'}", "'generate.samples'"),
    ],
)
def test_a_wrong_file(write, text, words):
    file = write(text)
    sentence = refused(file=file)
    assert words in sentence
    assert str(file) in sentence or "setting" in sentence


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("generate.sample=8", "did you mean 'generate.samples'?"),
        ("generat.samples=8", "did you mean 'generate'?"),
        ("models.beta=2", "did you mean 'generate.beta'?"),
        ("train_reward.seed=2", "did you mean 'run.seed'?"),
        ("nightly.colour=red", "there are baseline_prompts, compare_objectives"),
    ],
)
def test_an_unknown_setting_may_be_another(override, meant):
    key = override.partition("=")[0] if "generat." not in override else "generat"
    assert refused(override) == f"the setting {key!r} is unknown; {meant}"


def test_all_mistakes_are_told_at_once():
    sentence = refused("generate.sample=8", "run.seed=-1", "models.device=tpu")
    for key in ("generate.sample", "run.seed", "models.device"):
        assert f"the setting {key!r} is " in sentence
    many = refused(*(f"generate.setting{i}=1" for i in range(13)))
    assert many.count("is unknown") == 10
    assert many.endswith("; and 3 more")


def test_a_missing_file(tmp_path):
    sentence = refused(file=tmp_path / "none.yaml")
    assert sentence == f"cannot read {str(tmp_path / 'none.yaml')!r}: No such file or directory"
    assert "cannot read" in refused(file=tmp_path)  # a directory


def test_a_run_named_by_a_date_or_a_number():
    assert config_file.load(overrides=["run.id=20261120"]).run.id == "20261120"
    assert config_file.load(overrides=["run.id=2026-11-20"]).run.id == "2026-11-20"


@pytest.mark.parametrize("text", ["010", "20261120_01", "12.30", "no", "1e3", "0x10", "2026-11-20", "1.50", "true"])
def test_a_text_is_what_was_written(write, text):
    """YAML 1.1 takes each of these for something else."""
    for config in (
        config_file.load(write(f"run: {{id: {text}}}\ngenerate: {{prompts: [{text}]}}")),
        config_file.load(overrides=[f"run.id={text}", f"generate.prompts=[{text}]"]),
    ):
        assert (config.run.id, config.generate.prompts) == (text, [text])


def test_a_time_is_no_number():
    assert "'12:30'" in refused("run.id=12:30")


def test_a_number_is_decimal(write):
    assert config_file.load(write("generate: {samples: 010}")).generate.samples == 10
    assert config_file.load(overrides=["generate.samples=010"]).generate.samples == 10


def test_a_place_on_the_command_line_is_the_whole_text():
    assert config_file.load(overrides=["generate.prompts=/a b #1: c"]).generate.prompts == ["/a b #1: c"]
    assert config_file.load(overrides=["generate.prompts='/a #1'"]).generate.prompts == ["/a #1"]


@pytest.mark.parametrize("seed", [-1, 2**31, 2**63, 10**400])
def test_a_seed_that_a_shuffle_cannot_take_is_refused(seed):
    assert "'run.seed'" in refused(f"run.seed={seed}")


@pytest.mark.timeout(60)
def test_a_file_without_end(tmp_path):
    assert "more than 1 MiB" in refused(file="/dev/zero") or "cannot read" in refused(file="/dev/zero")


def test_the_printed_settings_change_nothing_until_one_is_edited(write):
    text = config_file.as_yaml()
    assert config_file.load(write(text)) == config_file.load()
    edited = config_file.load(
        write(text.replace("#samples: 4", "samples: 6").replace("#language: sandbox", "language: m"))
    )
    assert (edited.generate.samples, edited.models.language) == (6, "m")


def test_the_head_follows_the_objective():
    for objective, head in (("partial", "scalar"), ("farma", "next-token"), ("genarm", "log-probability")):
        assert config_file.load(overrides=[f"train_reward.objective={objective}"]).train_reward.head_kind == head
    assert "needs the head 'next-token'" in refused("train_reward.objective=farma", "train_reward.head=scalar")


def test_a_config_is_frozen():
    with pytest.raises(ValidationError):
        config_file.load().run.seed = 3


def test_every_setting_is_explained():
    for section in Config.model_fields.values():
        for name, field in section.annotation.model_fields.items():
            assert field.description, name


def test_a_config_survives_being_written(write):
    config = config_file.load(
        overrides=["models.language=m", "generate.prompts=[a, b]", "train_reward.learning_rate=1e-4"]
    )
    assert config_file.load(write(yaml.safe_dump(config.model_dump()))) == config


def test_what_may_change_before_a_stage_is_resumed():
    """Inputs of a stage are kept in manifests: another name would refuse the runs that were begun before."""

    def free(section):
        return set(section.model_dump()) - set(inputs_of(section))

    assert free(TrainReward()) == {
        *("pairs", "eval_pairs", "num_workers", "strategy", "micro_batch_size", "gradient_checkpointing"),
        *("eval_every", "checkpoint_every", "threads", "max_failures"),
    }
    assert free(Generate()) == {
        *("prompts", "incremental", "max_error_rate", "block_rows", "min_actors", "max_actors"),
        *("slots", "gpus_per_actor", "threads", "cuda_graphs"),
    }


@pytest.mark.parametrize(
    ("settings", "samples", "select"),
    [
        ([], (4, 0), "guided-unguided"),
        (["generate.method=unguided"], (0, 0), "best-worst"),
        (["preferences.select=best-worst"], (0, 0), "best-worst"),
        (["generate.unguided_samples=0"], (0, 0), "best-worst"),
        (["preferences.select=best-worst", "generate.unguided_samples=2"], (2, 0), "best-worst"),
        (["preferences.select=opposed"], (0, 4), "opposed"),
        (["generate.unguided_samples=7"], (7, 0), "guided-unguided"),
    ],
)
def test_a_strategy_brings_the_completions_that_it_needs(settings, samples, select):
    config = config_file.load(None, settings).with_strategy()
    assert (config.generate.unguided_samples, config.generate.opposed_samples) == samples
    assert config.preferences.select == select
    assert config.with_strategy() == config
    before = config_file.load(None, settings).with_strategy(before=True)
    if not any("select" in setting or "samples" in setting for setting in settings):
        assert (before.preferences.select, before.generate.samples_in_all) == ("best-worst", 4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["preferences.select=guided-unguided", "generate.unguided_samples=0"],
            "needs generate.unguided_samples above",
        ),
        (["preferences.select=opposed", "generate.opposed_samples=0"], "needs generate.opposed_samples above 0"),
        (["generate.method=unguided", "generate.unguided_samples=2"], "'unguided' is unguided already"),
        (["generate.method=best-of-n", "generate.opposed_samples=2"], "'best-of-n' has no opposite"),
        (["preferences.select=worst"], "preferences.select"),
        (["preferences.export=[sft,kto]"], "'preferences.export.1' is wrong: .* but is 'kto'"),
        (
            ["preferences.export=stepwise", "models.reward=m", "models.reward_reads=text"],
            "stepwise needs the reward of every token, and models.reward_reads=text gives one",
        ),
        (["train_reward.score=median"], "the score 'median' is unknown"),
        (["generate.score=last-0"], "the score 'last-0' is unknown"),
    ],
)
def test_strategies_scores_and_exports_that_cannot_be(settings, said):
    with pytest.raises(UserError, match=said):
        config_file.load(None, settings).with_strategy()


def test_a_strategy_whose_samples_the_method_cannot_give_is_refused():
    config = config_file.load(None, ["preferences.select=opposed", "generate.method=best-of-n"])
    with pytest.raises(UserError, match="'best-of-n' has no opposite"):
        config.with_strategy()
