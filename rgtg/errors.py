"""What a user's mistake raises: its text is the whole answer."""


class UserError(Exception):
    """What is wrong, where, and what to do, in one sentence. Commands print it and exit with 2."""

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(sentence.splitlines()))  # names of the user's own may hold anything


class Unavailable(Exception):
    """Something outside does not answer; the same command may well work later. Printed too, and the exit code is 1."""


class RowError(UserError):
    """The mistake is in one row of the data: that row is marked with the sentence, and the rest goes on."""


def first_line(error: BaseException) -> str:
    """What an exception says, as part of a sentence; some say nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
