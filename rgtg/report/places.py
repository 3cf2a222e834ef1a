"""What is published names no machine, bucket or user: of a path the last name stays."""

import html
import re
from typing import Any

from rgtg.path_syntax import is_endpoint

_WHOLE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[/~.]")  # how a place begins
_WITHIN = re.compile(r"(?<![\w.<])(?:[A-Za-z][A-Za-z0-9+.-]*:/|~|\.\.?)?/[^\s'\"`<>,;]+")  # in a sentence
_NOTHING = "a directory"


def without_places(value: Any) -> Any:
    """Settings, or anything of JSON, with names in place of paths; those in a sentence, or in a key, too."""
    if isinstance(value, dict):
        return {without_places(key): without_places(of) for key, of in value.items()}
    if isinstance(value, list):
        return [without_places(of) for of in value]
    if not isinstance(value, str):
        return value
    return name_of(value) if _WHOLE.match(value) else _WITHIN.sub(lambda found: name_of(found[0]), value)


def name_of(place: str) -> str:
    """The last name of a path, unless it is a bucket, a host or the home of somebody."""
    if is_endpoint(place):
        return "an endpoint"
    scheme, _, path = place.rpartition("://")
    *above, name = path.rstrip("/").split("/")
    is_owner = not above and (scheme or place.startswith("~")) or above[-1:] in (["home"], ["Users"])
    return _NOTHING if is_owner or name in ("", ".", "..") else name


def places_of(value: Any) -> set[str]:
    """All paths and endpoints that settings or a manifest name, without those too short to be told from other text."""
    if isinstance(value, dict):
        return places_of([*value, *value.values()])
    if isinstance(value, list):
        return set().union(*map(places_of, value))
    return {value} if isinstance(value, str) and _WHOLE.match(value) and value.count("/") > 1 else set()


def scrubbed(text: str, places: set[str]) -> str:
    """A text that another version may have written, or a library, with names in place of these places."""
    for place in sorted(places, key=len, reverse=True):
        for written in (place, html.escape(place)):
            text = text.replace(written, name_of(place))
    return text
