"""Places that can name nothing, and credentials in them: one sentence at once, and no secret in it."""

import pytest

from rgtg import config_file, storage
from rgtg.errors import UserError

PATHS = [
    "run.root",
    "models.language",
    "models.reward",
    "train_reward.pairs",
    "train_reward.init",
    "generate.prompts",
]


@pytest.mark.parametrize("setting", PATHS)
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("s3://b/p//a", "empty, a . or a .. part"),
        ("s3://b/../a", "empty, a . or a .. part"),
        ("s3://b//", None),
        ("s3://", "no bucket"),
        ("s3:///x", "no bucket"),
        ("s3://a b/x", "no bucket"),
        ("s3:/b/x", "one slash"),
        ("S3://b/x", "write s3://"),
        ("ftp://host/x", "'ftp'"),
        ("https://host/x", "'https'"),
        ("s3://AKIAPLANTED:planted@b/x", "credentials"),
        ("s3://planted@b/x", "credentials"),
        ("https://me:planted/with@host/x", "credentials"),
        ("s3://b/x?X-Amz-Signature=planted", "credentials"),
        ("~nosuchuser/x", "does not exist"),
        ("a/" + "x" * 256, "too long"),
        ("a/" * 3000, "too long"),
        ("s3://b/" + "abc/" * 300, "too long"),
        ("s3://b/with a space/x", None),
        ("gs://b/x", None),
        ("./~x", None),
        ("owner/name@main", None),
    ],
)
def test_a_place(setting, path, said):
    if said is None:
        config_file.load(overrides=[f"{setting}={path}"])
        return
    with pytest.raises(UserError, match=said) as raised:
        config_file.load(overrides=[f"{setting}={path}"])
    assert setting in str(raised.value)
    assert "planted" not in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("name", ["a?", "a*b", "[a]x", "s3://b/a?"])
def test_a_root_that_is_a_pattern_to_ray(name):
    with pytest.raises(UserError, match="run.root.*takes for a pattern"):
        config_file.load(overrides=[f"run.root='{name}'"])
    assert config_file.load(overrides=[f"generate.prompts='{name}'"]).generate.prompts == [name]


@pytest.mark.parametrize("path", ["s3://b//a", "~nosuchuser/x", "https://me:planted@host/x", "s3://", ""])
def test_what_resolves_to_nothing(path):
    with pytest.raises(UserError) as raised:
        storage.resolve(path)
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ("https://me:planted@host/v1", "evaluate.judge_key"),
        ("https://planted@host/v1", "evaluate.judge_key"),
        ("https://host/v1?api_key=planted", "evaluate.judge_key"),
        ("https://host/v1?any=planted", "evaluate.judge_key"),
        ("https://", "no address"),
        ("http://[bad", "no address"),
        ("http://host:99999/v1", "no address"),
        ("HTTP://host/v1", "'HTTP'"),
        ("s3://b//x", "empty"),
        ("http://[::1]:8000/v1", None),
        ("owner/judge", None),
    ],
)
def test_a_judge(judge, said):
    if said is None:
        assert config_file.load(overrides=[f"evaluate.judges={judge}"]).evaluate.judges == [judge]
        return
    with pytest.raises(UserError, match=said) as raised:
        config_file.load(overrides=[f"evaluate.judges={judge}"])
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize(
    "setting",
    [
        *("generate.slots=1000000000", "generate.threads=100000", "generate.max_new_tokens=1000000000000"),
        *("generate.samples=1000000000", "generate.block_rows=1000000000", "generate.max_actors=100000000"),
        *("train_reward.num_workers=1000000", "train_reward.batch_size=1000000000", "train_reward.threads=100000"),
        *("train_reward.max_length=1000000000", "train_reward.epochs=1000000000", "train_reward.lora_rank=1000000"),
        *("evaluate.num_prompts=10000000000", "train_reward.checkpoint_every=10000000000000000000000"),
    ],
)
def test_a_number_that_no_machine_has_room_for(setting):
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        config_file.load(overrides=[setting])
