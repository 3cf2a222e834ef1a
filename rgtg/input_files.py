"""The files that a user gives, prompts or pairs: which ones there are, each once, and what cannot be read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from rgtg import s3_filesystem, storage, storage_errors
from rgtg.errors import UserError, first_line, printable
from rgtg.rows import SUFFIXES


class InputFile(NamedTuple):
    place: str  # of the settings, at or below which it is
    path: str
    size: int  # bytes


@dataclass
class Found:
    files: list[InputFile] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # reasons by path
    ignored: dict[str, str] = field(default_factory=dict)  # no input by their names, or the same file again

    @property
    def skipped(self) -> dict[str, str]:
        return self.unreadable | self.ignored


def find(places: list[str]) -> Found:
    """The input files at or below `places`, by place and path. Raises UserError where there is no such place."""
    found = Found()
    real: dict[tuple[str, str], str] = {}  # paths by what they are in reality
    for place in places:
        filesystem, _ = storage.resolve(place)
        local = isinstance(filesystem, pafs.LocalFileSystem)
        for file, fault in storage.scan(place, SUFFIXES):
            if fault:
                is_another = file.type == pafs.FileType.File  # by its name; what is no file may hide some
                (found.ignored if is_another else found.unreadable)[file.path] = fault
                continue
            key = filesystem.type_name, os.path.realpath(file.path) if local else file.path
            if key not in real:
                real[key] = file.path
                found.files.append(InputFile(place, file.path, file.size))
            elif real[key] != file.path:
                found.ignored[file.path] = f"the same file as {real[key]!r}"
    return found


def open_file(file: InputFile) -> pa.NativeFile:
    return storage.resolve(file.place)[0].open_input_file(file.path)


class Unreadable(Exception):
    """Why a file is skipped."""


def read_bytes(file: InputFile, at_most: int | None = None) -> bytes:
    """Everything in a file, or the first bytes. Raises Unreadable for one that is broken or empty.

    A store that does not give the file is no reason to go on without it: that is UserError or TransientError.
    """

    def whole() -> bytes:
        with open_file(file) as stream:
            return stream.read(at_most)

    try:
        data = s3_filesystem.retry_read(whole)
    except OSError as error:
        if failure := storage_errors.failure_of_store(f"cannot read {file.path!r}", str(error)):
            raise failure from None
        raise Unreadable(first_line(error)) from error
    if not data:
        raise Unreadable("the file is empty")
    return data


def check_share(num_read: int, found: Found, most: float, setting: str) -> None:
    """Raises UserError where no file can be read, or more than a part `most` of them cannot."""
    if not num_read:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in found.skipped.items())
        raise UserError(f"none of the files of {setting} can be read ({reasons})")
    total = num_read + len(found.unreadable)
    if len(found.unreadable) > most * total:
        path, reason = next(iter(found.unreadable.items()))
        raise UserError(
            f"{len(found.unreadable)} of the {total} files of {setting} cannot be read, such as {path!r} ({reason}); "
            f"fix or remove them, or raise generate.max_error_rate, which is {most}"
        )


def lines(skipped: Mapping[str, str]) -> str:
    """Files that were skipped and why, each as a line below another one."""
    return "".join(f"\n  skipped {printable(f'{path}: {reason}')}" for path, reason in skipped.items())
