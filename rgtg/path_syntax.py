"""Paths as settings give them: a local path, s3://bucket/key, another URI that pyarrow reads, or a hub id."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from rgtg.errors import without_url_credentials

SCHEMES = ("s3", "file", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
MAX_NAME, MAX_KEY, MAX_PATH = 255, 1024, 4000  # bytes of a name, of an object's key and of a path


def join(path: str | Path, *names: str) -> str:
    """The path or URI of something below another one."""
    return "/".join([str(path).rstrip("/"), *names])


def fault(path: str) -> str | None:
    """Why `path` can be no path or URI, as the end of a sentence without its credentials; None where it can."""
    if not path or "\0" in path:
        return "is empty or holds a NUL; give a path"
    if without_url_credentials(path) != path:
        return "holds credentials, which belong in the environment; take them out"
    scheme, slashes, rest = path.partition("://")
    if slashes:
        return _fault_of_uri(scheme, rest)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
        return "has one slash after its colon; write scheme://"
    if path.startswith("~") and os.path.expanduser(path).startswith("~"):
        return "begins with the home of a user that does not exist; write ./~ for such a name"
    return _fault_of_length(path, MAX_PATH)


def fault_of_root(path: str) -> str | None:
    """As `fault`, for the directory of runs; Ray would take some of its names for patterns."""
    if (found := fault(path)) is None and (pattern := re.search(r"[*?\[]", path)):
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


def is_endpoint(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def fault_of_judge(uri: str) -> str | None:
    """As `fault`, for a reward model or the base URL of an endpoint."""
    if not is_endpoint(uri):
        return fault(uri)
    try:
        url = urlsplit(uri)
        known = bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        known = False
    if not known:
        return "is no address; write https://host/v1"
    if without_url_credentials(uri) != uri or "@" in url.netloc or url.query or url.fragment:
        return "holds a user, a password or a query; put the key into the environment variable of evaluate.judge_key"
    return None
