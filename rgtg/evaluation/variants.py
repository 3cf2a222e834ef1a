"""Ways to complete the same prompts, written as a person would: `pargs beta=0.5,1,2 objective=full`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from pydantic import ValidationError

from rgtg.config import Generate
from rgtg.config_file import value_of
from rgtg.config_section import message_of
from rgtg.decoding_settings import OF_METHOD
from rgtg.errors import UserError
from rgtg.methods import METHODS, OBJECTIVES, Head, head_of
from rgtg.path_syntax import fault

# What an entry may say: settings of `generate` that are the method's; and how its reward model is trained, or which
# language model stands in for the run's.
OTHERS = ("objective", "head", "language")
KEYS = (*OF_METHOD, "temperature", "top_p", "score", *OTHERS)


MAX_LENGTH, MAX_VARIANTS = 1000, 500  # of an entry, and of all of them: each completes all the prompts


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to complete prompts; those of a family differ in `beta` alone."""

    name: str
    family: str
    settings: Generate
    objective: str
    head: Head
    language: str | None = None  # another language model, such as a fine-tuned one, in place of the run's

    @property
    def beta(self) -> float:
        preset = METHODS[self.settings.method]
        return preset.beta if self.settings.beta is None else self.settings.beta


def variants(entries: Iterable[str], settings: Generate) -> list[Variant]:
    """The variants that `entries` name, each `METHOD [KEY=VALUE[,VALUE]...]...`; what they leave open is as the method
    has it, or for what is no method's own as `settings` have it. Raises UserError for a mistake.
    """
    found: dict[str, Variant] = {}
    for entry in entries:
        if len(entry) > MAX_LENGTH or not entry.isprintable():
            raise UserError(
                f"evaluate.methods: {entry[:50]!r} is longer than {MAX_LENGTH} characters or not printable"
            )
        method, *pairs = entry.split() or [""]
        choices: dict[str, list[str]] = {}
        for pair in pairs:
            key, equals, values = pair.partition("=")
            if not equals or not values or key not in KEYS:
                raise UserError(f"evaluate.methods: {pair!r} in {entry!r} is none of {', '.join(KEYS)} with a value")
            if key in choices:
                raise UserError(f"evaluate.methods: {key} stands twice in {entry!r}; write {key}=VALUE,VALUE")
            choices[key] = values.split(",")
        if len(found) + math.prod(map(len, choices.values())) > MAX_VARIANTS:
            raise UserError(f"evaluate.methods: these are more than {MAX_VARIANTS} ways; give fewer values")
        for chosen in product(*choices.values()):
            variant = _variant(method, dict(zip(choices, chosen, strict=True)), settings)
            found.setdefault(repr((variant.settings, variant.objective, variant.head, variant.language)), variant)
    return list(found.values())


def _variant(method: str, given: dict[str, str], settings: Generate) -> Variant:
    name = _name(method, given)
    own = {key: value_of(value) for key, value in given.items() if key not in OTHERS}
    try:
        chosen = settings.by(method, **own)
    except ValidationError as error:
        raise UserError(f"evaluate.methods: {name}: {message_of(error, Generate)}") from error
    preset = METHODS[method]
    objective = given.get("objective", preset.objective)
    # An objective that can train several heads trains the one that the method asks for.
    several = objective in OBJECTIVES and len(OBJECTIVES[objective].heads) > 1
    asked = "next-token" if preset.guidance == "next-token" and several else None
    try:
        head = head_of(objective, given.get("head", asked))
    except ValueError as error:
        raise UserError(f"evaluate.methods: {name}: {error}") from error
    if "language" in given and (unusable := fault(given["language"])):
        raise UserError(f"evaluate.methods: the language in {name!r} {unusable}")
    family = _name(method, {key: value for key, value in given.items() if key != "beta"})
    return Variant(name, family, chosen, objective, head, given.get("language"))


def _name(method: str, given: dict[str, str]) -> str:
    return " ".join([method, *(f"{key}={value}" for key, value in given.items())])
