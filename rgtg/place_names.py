"""What a setting may name as a place: a local path, s3://bucket/key, another URI that pyarrow reads, or a hub id."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from rgtg.errors import without_url_credentials

SCHEMES = ("s3", "file", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
MAX_NAME, MAX_KEY, MAX_PATH = 255, 1024, 4000  # bytes of a name, of an object's key and of a path


def join(place: str | Path, *names: str) -> str:
    """A place below another."""
    return "/".join([str(place).rstrip("/"), *names])


def fault(place: str) -> str | None:
    """Why `place` can name nothing, as the end of a sentence without the credentials in it; None where it can."""
    if not place or "\0" in place:
        return "is empty or holds a NUL; give a path"
    if without_url_credentials(place) != place:
        return "holds credentials, which belong in the environment; take them out"
    scheme, slashes, rest = place.partition("://")
    if slashes:
        return _fault_of_uri(scheme, rest)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", place):
        return "has one slash after its colon; write scheme://"
    if place.startswith("~") and os.path.expanduser(place).startswith("~"):
        return "begins with the home of a user that does not exist; write ./~ for such a name"
    return _fault_of_length(place, MAX_PATH)


def fault_of_root(place: str) -> str | None:
    """Why run directories cannot be made below `place`; Ray takes some names for patterns."""
    if (found := fault(place)) is None and (pattern := re.search(r"[*?\[]", place)):
        return f"holds {pattern[0]!r}, which Ray takes for a pattern; give a directory without it"
    return found


def _fault_of_uri(scheme: str, rest: str) -> str | None:
    if scheme not in SCHEMES:
        hint = f"{scheme.lower()}://" if scheme.lower() in SCHEMES else "a local path or s3://bucket/key"
        return f"has the scheme {scheme[:20]!r}, which is not read; write {hint}"
    if scheme != "s3":
        return None
    bucket, _, key = rest.rstrip("/").partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        return "names no bucket; write s3://bucket/key"
    if any(part in ("", ".", "..") for part in key.split("/")) and key:
        return "has an empty, a . or a .. part in its key; write s3://bucket/key"
    return _fault_of_length(key, MAX_KEY)


def _fault_of_length(path: str, longest: int) -> str | None:
    data = path.encode(errors="surrogateescape")
    if len(data) > longest or any(len(name) > MAX_NAME for name in data.split(b"/")):
        return f"is too long; no name may have more than {MAX_NAME} bytes, and all of it {longest}"
    return None


def is_endpoint(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def fault_of_judge(place: str) -> str | None:
    """Why `place` is neither a reward model nor the base of an endpoint."""
    if not is_endpoint(place):
        return fault(place)
    try:
        url = urlsplit(place)
        known = bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        known = False
    if not known:
        return "is no address; write https://host/v1"
    if without_url_credentials(place) != place or "@" in url.netloc or url.query or url.fragment:
        return "holds a user, a password or a query; put the key into the environment variable of evaluate.judge_key"
    return None
