"""Checks of all that a config names: models, and the first rows of pairs and prompts, before anything takes time.

`rgtg doctor` prints what each finds. A job runs those of what it reads, and tells all mistakes at once.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from pipelines import pairs, prompts
from pipelines.pairs_worker import Tokenize
from pipelines.runtime.model_checks import check_messages, check_reward
from pipelines.runtime.resolved_config import check_data_is_named, unnamed_data
from pipelines.runtime.run_directory import fingerprint_in
from rgtg import storage
from rgtg.config import OWN_JUDGE, Config
from rgtg.config_section import SANDBOX
from rgtg.errors import TransientError, UserError
from rgtg.input_files import InputFile, find
from rgtg.models.language import check_language
from rgtg.models.loading import context_length, load_config, load_tokenizer
from rgtg.models.reward import RewardModel
from rgtg.models.text_reward import TextReward
from rgtg.path_syntax import is_endpoint

Looked = TypeVar("Looked", pairs.Looked, prompts.Looked)

BUILT = "sandbox, built on first use"


class Doubt(str):
    """What a check finds that is most likely a mistake, and may be none."""


class Check(NamedTuple):
    """`run` describes what it finds, or raises UserError or TransientError. It needs checks of other names to pass."""

    name: str
    run: Callable[[], str]
    needs: tuple[str, ...] = ()


class Finding(NamedTuple):
    name: str
    text: str
    error: UserError | TransientError | None = None


def findings(checks: list[Check]) -> Iterator[Finding]:
    """What each check finds; one that needs another which has failed is left out."""
    failed: set[str] = set()
    for check in checks:
        if failed.intersection(check.needs):
            continue
        try:
            yield Finding(check.name, check.run())
        except (UserError, TransientError) as error:
            failed.add(check.name)
            yield Finding(check.name, str(error), error)


def check(config: Config, *, method: str | None = None, pairs: bool = False, prompts: bool = False) -> None:
    """Raises UserError with all mistakes that a job which reads these, and decodes by `method`, would meet;
    TransientError for a store alone.
    """
    every = checks(config, method=method, pairs=pairs, prompts=prompts)
    errors = [found.error for found in findings(every) if found.error]
    text = "; ".join(dict.fromkeys(map(str, errors)))
    if any(isinstance(error, UserError) for error in errors):
        raise UserError(text)
    if errors:
        raise TransientError(text)


def checks(config: Config, *, method: str | None, pairs: bool, prompts: bool) -> list[Check]:
    """Those of the models, and of the data that a job reads. A method needs a head that can guide it."""
    config = _absolute(config)
    trains = pairs and not config.models.reward
    found = _judges(config)
    if other := config.gates.compare_with:
        found.append(Check("gates.compare_with", lambda: _compared(storage.absolute(other))))
    found += [Check("models.language", lambda: _language(config))]
    if config.models.reward:
        found.append(Check("models.reward", lambda: _reward(config, method), ("models.language",)))
    if trains and config.train_reward.init:
        found.append(Check("train_reward.init", lambda: _init(config, method), ("models.language",)))
    unnamed = unnamed_data(config, pairs=trains, prompts=prompts)
    if unnamed:
        found.append(Check(", ".join(unnamed), lambda: _named(config, trains, prompts)))
    if trains and "train_reward.pairs" not in unnamed:
        given = [*config.train_reward.pairs, *(config.train_reward.eval_pairs or [])]
        models = ("models.language", "train_reward.init")
        found.append(Check("train_reward.pairs", lambda: _found(given)))
        found.append(Check("first pairs", lambda: _pairs(config, _files(given)), ("train_reward.pairs", *models)))
    if prompts and "generate.prompts" not in unnamed:
        asked = config.generate.prompts
        found.append(Check("generate.prompts", lambda: _found(asked)))
        needed = ("generate.prompts", "models.language")
        found.append(Check("first prompts", lambda: _prompts(config, _files(asked)), needed))
    return found


def _compared(run: str) -> str:
    fingerprint_in(run, "preferences", "gates.compare_with")
    return run


def _judges(config: Config) -> list[Check]:
    judge = config.preferences.judge
    if judge is None or judge == OWN_JUDGE or is_endpoint(judge):
        return []
    path, trust = storage.absolute(judge), config.models.trust_remote_code

    def check() -> str:
        TextReward.check(path, "preferences.judge", trust)
        return path

    return [Check("preferences.judge", check)]


def _named(config: Config, pairs: bool, prompts: bool) -> str:
    check_data_is_named(config, pairs=pairs, prompts=prompts)
    return ""


def _absolute(config: Config) -> Config:
    """With absolute paths of the models, as a job has them."""
    absolute = {
        "language": storage.absolute(config.models.language),
        "reward": config.models.reward and storage.absolute(config.models.reward),
        "ensemble": [storage.absolute(path) for path in config.models.ensemble],
    }
    init = config.train_reward.init and storage.absolute(config.train_reward.init)
    sections = {
        "models": config.models.model_copy(update=absolute),
        "train_reward": config.train_reward.model_copy(update={"init": init}),
    }
    return config.model_copy(update=sections)


def _language(config: Config) -> str:
    path, trust = config.models.language, config.models.trust_remote_code
    if path == SANDBOX:
        return BUILT
    check_language(path, trust)
    load_tokenizer(path, "models.language", trust_remote_code=trust)
    return f"{path} ({load_config(path, 'models.language', trust_remote_code=trust).model_type})"


def _reward(config: Config, method: str | None) -> str:
    if config.models.language != SANDBOX:
        check_reward(config, config.models.reward, method)
    return ", ".join(config.models.rewards)


def _init(config: Config, method: str | None) -> str:
    init, trust = config.train_reward.init, config.models.trust_remote_code
    assert init
    RewardModel.check(init, "train_reward.init", trust, head=config.train_reward.head_kind)
    if config.models.language != SANDBOX:
        check_reward(config, init, method)
    return init


def _found(uris: list[str]) -> str:
    files = _files(uris)
    return f"{', '.join(uris)} ({len(files)} files)" if files else BUILT


def _pairs(config: Config, files: list[InputFile]) -> str:
    settings, trust = config.train_reward, config.models.trust_remote_code
    init = settings.init or config.models.language
    if not files or init == SANDBOX:
        return BUILT
    context = context_length(load_config(init, "train_reward.init", trust_remote_code=trust))
    how = Tokenize(init, trust, min(settings.max_length, context), settings.overlong, datetime.now(UTC).date())
    looked = _named_in("train_reward.pairs", lambda: pairs.look(files, how))
    return str(looked) if looked.usable else Doubt(looked)


def _prompts(config: Config, files: list[InputFile]) -> str:
    if not files:
        return BUILT
    looked = _named_in("generate.prompts", lambda: prompts.look(files))
    if looked.messages and config.models.language != SANDBOX:
        check_messages(config)
    bad = looked.rows - looked.usable
    return str(looked) if bad <= config.generate.max_error_rate * looked.rows else Doubt(looked)


def _named_in(setting: str, look: Callable[[], Looked]) -> Looked:
    """What `look` finds. Its UserErrors name the setting."""
    try:
        return look()
    except UserError as error:
        if setting in str(error):
            raise
        raise UserError(f"{setting}: {error}") from error


def _files(uris: list[str]) -> list[InputFile]:
    """The files that can be read. Raises UserError where `uris` other than the sandbox's hold none."""
    given = [storage.absolute(uri) for uri in uris if uri != SANDBOX]
    found = find(given)
    if given and not found.files:
        reasons = "".join(f"; {path}: {reason}" for path, reason in found.skipped.items())
        raise UserError(f"there are no files of rows at {', '.join(map(repr, given))}{reasons}")
    return found.files
