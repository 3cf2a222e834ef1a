"""What a job works on, resolved and checked before Ray starts or a model loads."""

import os

import pyarrow as pa
import torch

from pipelines.run_directory import RunDirectory
from rgtg import sandbox, storage, table_files
from rgtg.chat import check_template
from rgtg.config import SANDBOX, Config, Models
from rgtg.errors import UserError
from rgtg.methods import METHODS, check_head
from rgtg.models.hub import pinned
from rgtg.models.language import check_language
from rgtg.models.loading import load_tokenizer, slow_bfloat16
from rgtg.models.reward import RewardModel, check_same_tokens, check_trained
from rgtg.models.text_reward import TextReward


def resolved(config: Config, *, models: bool = True, pairs: bool = False, prompts: bool = False) -> Config:
    """The config with local paths made absolute, since workers run elsewhere, and `sandbox` as what it stands for.

    `models`, `pairs` and `prompts` say what the job reads: the sandbox is built, on first use, and hubs are asked,
    only for that. Raises UserError for what cannot work on a cluster.
    """
    reads = [
        *([config.models.language] if models else ()),
        *(config.train_reward.pairs if pairs else ()),
        *(config.generate.prompts if prompts else ()),
    ]
    _check_cluster(config, models=models, pairs=pairs)
    stands_for, eval_pairs = {}, config.train_reward.eval_pairs
    if SANDBOX in reads:
        world = sandbox.ensure()
        stands_for = {"language": world.language, "pairs": world.pairs, "prompts": world.prompts}
        if config.train_reward.pairs == [SANDBOX]:
            eval_pairs = eval_pairs or [str(world.eval_pairs)]

    def place(value: str, what: str) -> str:
        return str(stands_for.get(what, SANDBOX)) if value == SANDBOX else storage.absolute(value)

    def places(values: list[str], what: str) -> list[str]:
        return [place(value, what) for value in values]

    def model(value: str, what: str) -> str:
        return pinned(place(value, "language"), what) if models else value

    changes = {
        "run": {"root": storage.absolute(config.run.root, must_exist=False)},
        "models": {
            "language": model(config.models.language, "models.language"),
            "reward": config.models.reward and model(config.models.reward, "models.reward"),
            "ensemble": [model(place, "models.ensemble") for place in config.models.ensemble],
        },
        "train_reward": {
            "pairs": places(config.train_reward.pairs, "pairs"),
            "eval_pairs": eval_pairs and places(eval_pairs, "pairs"),
            "init": config.train_reward.init and model(config.train_reward.init, "train_reward.init"),
        },
        "generate": {"prompts": places(config.generate.prompts, "prompts")},
    }
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in changes.items()}
    return config.model_copy(update=sections)


def _check_cluster(config: Config, *, models: bool, pairs: bool) -> None:
    if not os.environ.get("RAY_ADDRESS"):
        return
    if models and config.models.device == "auto":
        raise UserError(
            "models.device is auto, which looks at the driver's machine alone; on a cluster say cuda or cpu"
        )
    if os.environ.get("RGTG_SHARED_DISK"):
        return
    # What other machines than the driver's read or write. Prompts are taken in by the driver alone.
    used = {"run.root": [config.run.root]}
    if models:
        used |= {"models.language": [config.models.language], "models.reward": config.models.rewards}
    if pairs:
        used |= {
            "train_reward.init": [config.train_reward.init or ""],
            "train_reward.pairs": config.train_reward.pairs,
            "train_reward.eval_pairs": config.train_reward.eval_pairs or [],
        }
    for name, places in used.items():
        for place in places:
            on_disk = name == "run.root" or place == SANDBOX or os.path.exists(os.path.expanduser(place))
            if place and storage.is_local(place) and on_disk:
                raise UserError(
                    f"{name} is {place!r}, on the disk of this machine, and the cluster's other machines have their "
                    "own; use s3://, or set RGTG_SHARED_DISK=1 if all of them mount it"
                )


def reward_place(config: Config, directory: RunDirectory) -> str | None:
    """The reward model of the run: the configured one, else the one that it trained, else none."""
    if config.models.reward:
        return config.models.reward
    if directory.is_done("train_reward"):
        return directory.path("reward_model")
    if METHODS[config.generate.method].needs_reward:
        raise UserError(
            f"the method {config.generate.method!r} needs a reward model: run train-reward in this run first, or set "
            "models.reward"
        )
    return None


def check_models(config: Config, reward: str | None, directory: RunDirectory) -> None:
    """Raises UserError for everything about the models that is knowable before one of them is loaded or trained.

    `reward` is the reward model, or what one will be trained from.
    """
    trust = config.models.trust_remote_code
    check_language(config.models.language, trust)
    tokenizer = load_tokenizer(config.models.language, "models.language", trust_remote_code=trust)
    if reward and config.models.reward_reads == "text":
        TextReward.check(reward, "models.reward", trust)
        check_head(config.generate.method, "scalar")
    else:
        for place in config.models.rewards:
            check_head(config.generate.method, check_trained(place, trust))
        found = RewardModel.check(reward, "the reward model", trust) if reward else None
        check_head(config.generate.method, found or config.train_reward.head_kind)
    if reward and config.models.reward_reads == "tokens":
        for place in {reward, *config.models.ensemble} - {config.models.language}:
            check_same_tokens(tokenizer, load_tokenizer(place, "the reward model", trust_remote_code=trust))
    first = next(table_files.read_tables(directory.path("prompts"), ["prompt"]))
    messages = pa.types.is_list(first.schema.field("prompt").type)
    if messages and tokenizer.chat_template:
        check_template(tokenizer, directory.date)
    elif messages:
        raise UserError(
            f"the prompts are messages but the tokenizer of {config.models.language!r} has no chat template; give "
            "prompts as text, or a model with a template"
        )


def slow_settings(config: Config) -> list[str]:
    """A warning for each setting that asks for bfloat16 on a CPU without units for it."""
    device = torch.device("cuda" if on_gpu(config.models) else "cpu")
    asked = {"models.dtype": config.models.dtype, "train_reward.precision": config.train_reward.precision}
    warnings = (slow_bfloat16(f"{name}=bfloat16", device) for name, value in asked.items() if value == "bfloat16")
    return [warning for warning in warnings if warning]


def on_gpu(models: Models) -> bool:
    """Whether actors and workers ask for a GPU: as the config says, else where this machine has one."""
    return models.device == "cuda" or (models.device == "auto" and torch.cuda.is_available())
