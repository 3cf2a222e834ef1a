"""What all sections of settings share: strict, frozen models, numbers with bounds, one message for a mistake."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rgtg.errors import redacted
from rgtg.path_syntax import fault, fault_of_judge
from rgtg.text_score import check_way

SANDBOX = "sandbox"
"""In place of a path: the embedded world of text, its language model, pairs or prompts."""

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
    """What is wrong, naming the key."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        known = model.model_fields
        for part in where[:-1]:
            known = known[part].annotation.model_fields  # type: ignore[union-attr]
        return f"the setting {key!r} is unknown; there are {', '.join(known)}"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if first["type"] == "value_error" else f" but is {_short(first['input'])}"
    return f"the setting {key!r} is wrong: {message[0].lower() + message[1:]}{value}"


def _short(value: Any) -> str:
    try:
        text = redacted(repr(value))
    except ValueError:  # of thousands of digits
        return "too long a number"
    return text if len(text) <= 200 else f"{text[:197]}..."
