"""The reward model of a job, and the checks of its models that need no weights loaded."""

from datetime import date

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from pipelines.runtime.job_context import JobContext
from rgtg import table_files
from rgtg.chat import check_template
from rgtg.config import Config
from rgtg.errors import UserError
from rgtg.methods import METHODS, Head, check_head
from rgtg.models.language import check_language
from rgtg.models.loading import load_tokenizer
from rgtg.models.reward import RewardModel, check_same_tokens, check_trained
from rgtg.models.text_reward import TextReward


def reward_path(job: JobContext) -> str | None:
    """The reward model of the run: the configured one, else the one that it trained, else None.

    Raises UserError where the method needs one and there is none.
    """
    config = job.config
    if config.models.reward:
        return config.models.reward
    if job.directory.is_done("train_reward"):
        return job.directory.path("reward_model")
    if METHODS[config.generate.method].needs_reward:
        raise UserError(
            f"the method {config.generate.method!r} needs a reward model: run train-reward in this run first, or set "
            "models.reward"
        )
    return None


def check_models(job: JobContext, reward: str | None) -> None:
    """Raises UserError for everything that can be wrong with the models before one of them is loaded or trained.

    `reward` is the reward model, or the model that one will be trained from.
    """
    config, directory = job.config, job.directory
    check_language(config.models.language, config.models.trust_remote_code)
    check_reward(config, reward, config.generate.method)
    first = next(table_files.read_tables(directory.path("prompts"), ["prompt"]))
    if pa.types.is_list(first.schema.field("prompt").type):
        check_messages(config, directory.date)


def check_reward(config: Config, reward: str | None, method: str | None = None) -> None:
    """Raises UserError unless `reward`, and whatever the config names beside it, can guide `method` or be trained to.

    `reward` may be the language model itself, to start from; with None there is nothing to check but the method.
    """
    trust = config.models.trust_remote_code
    if reward and config.models.reward_reads == "text":
        TextReward.check(reward, "models.reward", trust)
        heads: set[Head] = {"scalar"}
    else:
        heads = {check_trained(path, trust) for path in config.models.rewards}
        found = RewardModel.check(reward, "the reward model", trust) if reward else None
        heads.add(found or config.train_reward.head_kind)
        for path in {reward or config.models.language, *config.models.ensemble} - {config.models.language}:
            check_same_tokens(_tokenizer(config), load_tokenizer(path, "the reward model", trust_remote_code=trust))
    for head in heads if method else ():
        check_head(str(method), head)


def check_messages(config: Config, day: date | None = None) -> None:
    """Raises UserError unless the language model has a chat template that works."""
    tokenizer = _tokenizer(config)
    if not tokenizer.chat_template:
        raise UserError(
            f"the prompts are messages, but the tokenizer of {config.models.language!r} has no chat template; use "
            "prompts of plain text, or a model with a chat template"
        )
    check_template(tokenizer, day)


def _tokenizer(config: Config) -> PreTrainedTokenizerBase:
    trust = config.models.trust_remote_code
    return load_tokenizer(config.models.language, "models.language", trust_remote_code=trust)
