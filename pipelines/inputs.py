"""What a job works on, resolved and checked before Ray starts or a model loads."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.run_directory import RunDirectory
from rgtg import sandbox, storage
from rgtg.config import SANDBOX, Config, Models
from rgtg.decoding.methods import METHODS
from rgtg.errors import UserError
from rgtg.models.loading import load_config, load_tokenizer
from rgtg.models.reward import check_same_tokens


def with_sandbox(config: Config) -> Config:
    """The config with the word `sandbox` replaced by the places of the sandbox, made on first use."""
    needed = SANDBOX in (config.models.language, *config.train_reward.pairs, *config.generate.prompts)
    if not needed:
        return config
    made = sandbox.ensure()

    def places(values: list[str] | None, path: Any) -> list[str] | None:
        return values and [str(path) if value == SANDBOX else value for value in values]

    train = config.train_reward
    eval_pairs = [str(made.eval_pairs)] if train.pairs == [SANDBOX] and train.eval_pairs is None else train.eval_pairs
    language = config.models.language
    return config.model_copy(
        update={
            "models": config.models.model_copy(
                update={"language": str(made.language) if language == SANDBOX else language}
            ),
            "train_reward": train.model_copy(
                update={"pairs": places(train.pairs, made.pairs), "eval_pairs": eval_pairs}
            ),
            "generate": config.generate.model_copy(update={"prompts": places(config.generate.prompts, made.prompts)}),
        }
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
        load_config(local, "models.reward", trust_remote_code=trust)
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
