"""What all sections of settings share: strict, frozen models, numbers with bounds, one message for a mistake."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from rgtg.errors import redacted
from rgtg.path_syntax import fault, fault_of_judge
from rgtg.text_score import check_way

SANDBOX = "sandbox"
"""In place of a path: the embedded world of text, its language model, pairs or prompts."""

MOST_MISTAKES = 10  # that one message names

# A number that no machine has room for is a slip of the hand, and would be found out after hours.
Positive = Annotated[int, Field(ge=1, le=10**9)]
Thousands = Annotated[int, Field(ge=1, le=10_000)]  # processes, threads, and rows of a batch on one device
Millions = Annotated[int, Field(ge=1, le=1_000_000)]  # tokens of a text, rows of a block


def named(fault_of: Callable[[str], str | None]) -> AfterValidator:
    def check(path: str) -> str:
        if found := fault_of(path):
            shown = redacted(path).partition("?" if "://" in path else "\0")[0]  # a query may hold anything
            raise ValueError(f"{shown[:200]!r} {found}")
        return path

    return AfterValidator(check)


PathOrUri = Annotated[str, named(fault)]
PathsOrUris = Annotated[
    list[PathOrUri], BeforeValidator(lambda v: [v] if isinstance(v, str) else v), Field(min_length=1)
]
Judge = Annotated[str, named(fault_of_judge)]
# Of a gate: None, written `off`, leaves it out.
Threshold = Annotated[
    Annotated[float, Field(ge=-1000, le=1000)] | None, BeforeValidator(lambda v: None if v == "off" else v)
]
ScoreWay = Annotated[str, AfterValidator(check_way)]


# Of a field: a stage may be resumed with another value. It leaves every row as it is or only rounds differently, or it
# names input whose contents have a fingerprint of their own.
NO_OUTPUT: dict[str, Any] = {"affects_output": False}


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def inputs_of(section: Section) -> dict[str, Any]:
    """The settings of a section that the output of its stage depends on, by name."""
    fields = type(section).model_fields
    free = {name for name, field in fields.items() if field.json_schema_extra == NO_OUTPUT}
    return section.model_dump(exclude=free)


def message_of(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong, naming the keys: all mistakes at once."""
    mistakes = list(dict.fromkeys(_mistake(of, model) for of in error.errors()))
    more = len(mistakes) - MOST_MISTAKES
    return "; ".join(mistakes[:MOST_MISTAKES]) + (f"; and {more} more" if more > 0 else "")


def _mistake(details: Any, model: type[BaseModel]) -> str:
    where = [str(part) for part in details["loc"]]
    key = ".".join(where)
    if details["type"] == "extra_forbidden":
        return f"the setting {key!r} is unknown; {_meant(where, model)}"
    message = details["msg"].removeprefix("Value error, ")
    value = "" if details["type"] == "value_error" else f" but is {_short(details['input'])}"
    return f"the setting {key!r} is wrong: {message[0].lower() + message[1:]}{value}" if key else message


def _meant(where: list[str], model: type[BaseModel]) -> str:
    """What an unknown key may be: a setting of another section, one that is written alike, or one of a list."""
    *sections, name = where
    known = model.model_fields
    for section in sections:
        known = _fields(known[section])
    elsewhere = [f"{other}.{name}" for other, field in model.model_fields.items() if name in _fields(field)]
    alike = [".".join([*sections, near]) for near in get_close_matches(name, known, 1)]
    if likely := elsewhere or alike:
        return f"did you mean {' or '.join(map(repr, likely))}?"
    return f"there are {', '.join(known)}"


def _fields(field: FieldInfo) -> dict[str, FieldInfo]:
    """The settings of a section; none of any other field."""
    kind = field.annotation
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}


def _short(value: Any) -> str:
    try:
        text = redacted(repr(value))
    except ValueError:  # of thousands of digits
        return "too long a number"
    return text if len(text) <= 200 else f"{text[:197]}..."
