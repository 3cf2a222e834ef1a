"""Settings as people write them: YAML files and section.key=value overrides, and one clear sentence for a mistake."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rgtg import storage
from rgtg.config import SANDBOX, SANDBOX_SETTINGS, Config
from rgtg.errors import UserError


def load(file: str | Path | None = None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The config of a YAML file and `section.key=value` overrides. Raises UserError, naming the key, for a mistake.

    With `models.language` left at `sandbox`, the sandbox's own settings stand in for the general defaults.
    """
    settings = _read(file)
    for override in overrides:
        key, equals, value = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and name):
            raise UserError(f"{override!r} is no setting; write section.key=value, such as generate.samples=8")
        target = settings.setdefault(section, {})
        if not isinstance(target, dict):
            raise UserError(f"{section!r} is a section of settings, not a value")
        target[name] = value_of(value)
    if settings.get("models", {}).get("language", SANDBOX) == SANDBOX:
        settings = {
            section: {**SANDBOX_SETTINGS.get(section, {}), **settings.get(section, {})}
            for section in {**SANDBOX_SETTINGS, **settings}
        }
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise UserError(sentence(error)) from error


def as_yaml() -> str:
    """Every setting as a config file to edit: a sentence on each, and its default behind a `#`.

    Behind a `#`, since what a file sets is no default any more: the sandbox has some of its own.
    """
    lines = ["# Take away the # in front of a setting to change it."]
    for section, field in Config.model_fields.items():
        lines.append(f"{section}:")
        assert isinstance(field.annotation, type)
        defaults = field.annotation()
        for name, setting in field.annotation.model_fields.items():
            value = _plain(getattr(defaults, name))
            own = SANDBOX_SETTINGS.get(section, {}).get(name)
            sandbox = "" if own is None else f" (With the sandbox's language model: {_plain(own)}.)"
            lines.append(f"  # {setting.description}{sandbox}")
            lines.append(f"  #{name}: {value}")
        lines.append("")
    return "\n".join(lines).rstrip()


def _plain(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]


def _read(file: str | Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    text = storage.read_bytes(str(file))
    try:
        settings = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"the config {str(file)!r} is not YAML: {' '.join(str(error).split())}") from error
    settings = {} if settings is None else settings
    if not isinstance(settings, dict) or not all(isinstance(v, dict | None) for v in settings.values()):
        raise UserError(f"the config {str(file)!r} must hold sections ({', '.join(Config.model_fields)}) of settings")
    return {section: values or {} for section, values in settings.items()}


def value_of(text: str) -> Any:
    """What a person means by a value that is written as text."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-4 as the number it is meant to be; the standard wants a dot in it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
)


def sentence(error: ValidationError) -> str:
    """What is wrong, naming the key."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        known = Config.model_fields
        for part in where[:-1]:
            known = known[part].annotation.model_fields  # type: ignore[union-attr]
        return f"the setting {key!r} is unknown; there are {', '.join(known)}"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if first["type"] == "value_error" else f" but is {first['input']!r}"
    return f"the setting {key!r} is wrong: {message[0].lower() + message[1:]}{value}"
