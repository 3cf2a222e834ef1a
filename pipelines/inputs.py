"""What a job works on, resolved and checked before Ray starts or a model loads."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.run_directory import RunDirectory
from rgtg import sandbox, storage
from rgtg.config import SANDBOX, Config, Models
from rgtg.decoding.methods import METHODS
from rgtg.errors import UserError
from rgtg.models.loading import load_config, load_tokenizer
from rgtg.models.reward import check_same_tokens, check_trained


def resolved(config: Config, *, pairs: bool = False, prompts: bool = False) -> Config:
    """The config with local paths made absolute, since workers run elsewhere, and `sandbox` as what it stands for.

    `pairs` and `prompts` say what the job reads: the sandbox is built, on first use, only where it is read. Raises
    UserError for what cannot work on a cluster.
    """
    _check_cluster(config)
    models, train, generate = config.models, config.train_reward, config.generate
    stands_for, eval_pairs = {}, train.eval_pairs
    if SANDBOX in (models.language, *(train.pairs if pairs else ()), *(generate.prompts if prompts else ())):
        world = sandbox.ensure()
        stands_for = {"language": world.language, "pairs": world.pairs, "prompts": world.prompts}
        if train.pairs == [SANDBOX]:
            eval_pairs = eval_pairs or [str(world.eval_pairs)]

    def place(value: str, what: str) -> str:
        return str(stands_for.get(what, SANDBOX)) if value == SANDBOX else storage.absolute(value)

    def places(values: list[str], what: str) -> list[str]:
        return [place(value, what) for value in values]

    changes = {
        "run": {"root": storage.absolute(config.run.root, must_exist=False)},
        "models": {
            "language": place(models.language, "language"),
            "reward": models.reward and storage.absolute(models.reward),
        },
        "train_reward": {
            "pairs": places(train.pairs, "pairs"),
            "eval_pairs": eval_pairs and places(eval_pairs, "pairs"),
            "init": train.init and storage.absolute(train.init),
        },
        "generate": {"prompts": places(generate.prompts, "prompts")},
    }
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in changes.items()}
    return config.model_copy(update=sections)


def _check_cluster(config: Config) -> None:
    if not os.environ.get("RAY_ADDRESS"):
        return
    if config.models.device == "auto":
        raise UserError(
            "models.device is auto, which looks at the driver's machine alone; on a cluster say cuda or cpu"
        )
    if storage.is_local(config.run.root) and not os.environ.get("RGTG_SHARED_DISK"):
        raise UserError(
            f"run.root is the local path {config.run.root!r}, and every machine of the cluster would write to a disk "
            "of its own; use s3://, or set RGTG_SHARED_DISK=1 if all of them mount it"
        )


def reward_place(config: Config, directory: RunDirectory) -> str | None:
    """The reward model of the run: the configured one, else the one that it trained, else none."""
    if config.models.reward:
        return config.models.reward
    trained = directory.path("reward_model")
    if storage.exists(storage.join(trained, "config.json")):
        return trained
    if METHODS[config.generate.method].guidance != "none":
        raise UserError(
            f"the method {config.generate.method!r} needs a reward model: run train-reward in this run first, or set "
            "models.reward"
        )
    return None


def check_models(config: Config, reward: str | None, directory: RunDirectory) -> None:
    """Raises UserError for everything about the models that is knowable before an actor loads them."""
    trust = config.models.trust_remote_code
    language = storage.local_copy(config.models.language)
    load_config(language, "models.language", trust_remote_code=trust)
    tokenizer = load_tokenizer(language, "models.language", trust_remote_code=trust)
    if reward:
        local = storage.local_copy(reward)
        check_trained(local, trust)
        check_same_tokens(tokenizer, load_tokenizer(local, "models.reward", trust_remote_code=trust))
    filesystem, _ = storage.resolve(directory.path("prompts"))
    first = storage.list_files(directory.path("prompts"), (".parquet",))[0]
    messages = pa.types.is_list(pq.read_schema(first.path, filesystem=filesystem).field("prompt").type)
    if messages and not tokenizer.chat_template:
        raise UserError(
            f"the prompts are messages but the tokenizer of {config.models.language!r} has no chat template; give "
            "prompts as text, or a model with a template"
        )


def on_gpu(models: Models) -> bool:
    """Whether actors and workers ask for a GPU: as the config says, else where this machine has one."""
    return models.device == "cuda" or (models.device == "auto" and torch.cuda.is_available())
