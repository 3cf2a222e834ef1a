"""Reading settings: YAML files and section.key=value overrides, with one clear message for a mistake."""

from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from rgtg import storage, yaml_text
from rgtg.config import SANDBOX_SETTINGS, Config
from rgtg.config_section import SANDBOX, message_of
from rgtg.errors import UserError

MAX_BYTES = 1 << 20  # of a config file


def load(file: str | Path | None = None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The config of a YAML file and `section.key=value` overrides. Raises UserError, naming the key, for a mistake.

    Where `models.language` is `sandbox`, the sandbox's settings replace the general defaults.
    """
    settings = _read(file)
    for override in overrides:
        key, equals, value = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and name):
            raise UserError(f"{override!r} is not a setting; write section.key=value, such as generate.samples=8")
        target = settings.setdefault(section, {})
        if not isinstance(target, dict):
            raise UserError(f"{section!r} is a section of settings, not a value")
        target[name] = value_of(value, (section, name))
    if settings.get("models", {}).get("language", SANDBOX) == SANDBOX:
        settings = {
            section: {**SANDBOX_SETTINGS.get(section, {}), **settings.get(section, {})}
            for section in {**SANDBOX_SETTINGS, **settings}
        }
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise UserError(message_of(error, Config)) from error


def as_yaml() -> str:
    """Every setting as a config file to edit: its description, and its default as a comment.

    As a comment, since a value in a file is no default any more: the sandbox has some defaults of its own.
    """
    lines = [
        "# Remove the # in front of a setting to change it. Paths start at the directory where the command starts."
    ]
    for section, field in Config.model_fields.items():
        lines.append(f"{section}:")
        assert isinstance(field.annotation, type)
        defaults = field.annotation()
        for name, setting in field.annotation.model_fields.items():
            value = _plain(getattr(defaults, name))
            own = SANDBOX_SETTINGS.get(section, {}).get(name)
            sandbox = "" if own is None else f" (With the sandbox's language model: {_plain(own)}.)"
            lines.append(f"  # {' '.join((setting.description or '').split())}{sandbox}")
            lines.append(f"  #{name}: {value}")
        lines.append("")
    return "\n".join(lines).rstrip()


def _plain(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]


def _read(file: str | Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    data = storage.read_bytes(str(file), at_most=MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"the config {str(file)!r} has more than {MAX_BYTES >> 20} MiB; give a file of settings")
    try:
        settings = yaml_text.read(data.decode("utf-8-sig"), _is_text)
    except (yaml_text.NotSettings, UnicodeDecodeError) as error:
        raise UserError(f"the config {str(file)!r} is wrong: {error}") from error
    settings = {} if settings is None else settings
    if not isinstance(settings, dict) or not all(isinstance(v, dict | None) for v in settings.values()):
        raise UserError(f"the config {str(file)!r} must hold sections ({', '.join(Config.model_fields)}) of settings")
    return {section: values or {} for section, values in settings.items()}


def value_of(text: str, path: yaml_text.Path = ()) -> Any:
    """The value that a person means by `text`, for the setting at `path`.

    For a setting of text it is taken literally, ` #` and `: ` included, unless it is quoted, null or a list.
    """
    try:
        value = yaml_text.read(text, lambda _: _is_text(path))
    except yaml_text.NotSettings:
        return text
    if not _is_text(path) or value is None or isinstance(value, list) or text.lstrip()[:1] in ('"', "'"):
        return value
    return text


def _is_text(path: yaml_text.Path) -> bool:
    """Whether the setting at (section, key) holds text, or a list of texts."""
    section = Config.model_fields.get(path[0]) if len(path) == 2 else None
    fields = section.annotation.model_fields if section else {}  # type: ignore[union-attr]
    return bool(fields) and path[1] in fields and _holds_text(fields[path[1]].annotation)


def _holds_text(annotation: Any) -> bool:
    return annotation is str or isinstance(annotation, str) or any(map(_holds_text, get_args(annotation)))
