"""A client of an OpenAI-compatible endpoint, and its use as a judge: which of two texts is better."""

import json
import logging
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
from requests import exceptions
from urllib3.exceptions import HTTPError

from rgtg.chat import Prompt
from rgtg.errors import TransientError, UserError

logger = logging.getLogger(__name__)

QUESTION = """\
Two texts answer, or go on from, the same prompt. Which one is better? Judge by what the prompt asks for, by how
pleasant and fitting it is to read, and not by its length or its place.

Prompt:
{prompt}

Text A:
{first}

Text B:
{second}

Answer with the single letter A or B."""

VERDICT = re.compile(r"\W*(?:(?i:text|answer|verdict|option|response|better)\W+)*([AB])\W*")

AT_ONCE = 8
ATTEMPTS = 6
DEADLINE_S = 120.0  # of a request, from its first byte to the last of the answer
LONGEST_PAUSE_S = 60.0  # between attempts, even if the endpoint asks for more
MAX_BYTES = 4 << 20  # of an answer
MAX_UNREADABLE = 0.1  # fraction of the verdicts

# Errors of the address, the key or the certificate, which a retry does not fix.
MISTAKES = (exceptions.SSLError, exceptions.InvalidURL, exceptions.InvalidSchema, exceptions.InvalidHeader)


class Wins(NamedTuple):
    scores: list[float]  # one per pair
    asked: int  # verdicts: two per pair whose texts differ
    unreadable: int  # verdicts that are neither A nor B, each counted as 0.5


@dataclass(frozen=True)
class Endpoint:
    """`url` is the base of the API, such as https://host/v1. Throttling and server errors are retried."""

    url: str
    model: str
    key_variable: str
    backoff_s: float = 1.0  # before the second attempt; doubled before each further one

    def wins(self, prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str]) -> Wins:
        """1.0 where `ours` is preferred, 0.0 where `theirs` is, 0.5 where swapping the sides changes the verdict.

        Raises UserError where the endpoint refuses or more than MAX_UNREADABLE of the verdicts cannot be read,
        TransientError where it does not answer.
        """
        unequal = [(p, a, b) for p, a, b in zip(prompts, ours, theirs, strict=True) if a != b]
        verdicts = self.verdicts(unequal)
        asked, unreadable = 2 * len(verdicts), sum(verdict.count(None) for verdict in verdicts)
        if unreadable > MAX_UNREADABLE * asked:
            raise UserError(
                f"the judge {self.url!r} gave {unreadable:,} of {asked:,} verdicts that are neither A nor B; ask "
                "another evaluate.judge_model"
            )
        won = iter([sum(0.5 if v is None else v for v in verdict) / 2 for verdict in verdicts])
        return Wins([0.5 if a == b else next(won) for a, b in zip(ours, theirs, strict=True)], asked, unreadable)

    def verdicts(self, pairs: Sequence[tuple[Prompt, str, str]]) -> list[tuple[float | None, float | None]]:
        """Whether the first text of each (prompt, text, text) is preferred, 1.0 or 0.0, where it is text A and where
        it is text B; None for an answer that is neither letter. Raises UserError and TransientError as `wins`.
        """
        questions = [_question(prompt, *sides) for prompt, a, b in pairs for sides in ((a, b), (b, a))]
        answers = [_prefers_first(answer) for answer in self.ask(questions)]
        if unreadable := answers.count(None):
            logger.info(f"the judge {self.url!r}: {unreadable:,} of {len(answers):,} verdicts are neither A nor B")
        swapped = [None if answer is None else 1 - answer for answer in answers[1::2]]
        return list(zip(answers[::2], swapped, strict=True))

    def ask(self, questions: Sequence[str]) -> list[str]:
        """The answer to each question, "" where it has no text. AT_ONCE questions are asked in parallel."""
        key = self._key()
        stopped: Future[None] = Future()  # set on a refusal or a signal: the other requests are abandoned
        with requests.Session() as session, ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                answers = [pool.submit(self._ask, session, key, question, stopped) for question in questions]
                ended, _ = wait(answers, return_when=FIRST_EXCEPTION)
                for failed in ended:
                    failed.result()
                return [answer.result() for answer in answers]
            finally:
                stopped.set_result(None)
                pool.shutdown(cancel_futures=True)

    def _key(self) -> str:
        """The key, "" without one. Raises UserError for a key that no header can hold."""
        key = os.environ.get(self.key_variable, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise UserError(f"the key in {self.key_variable} has a space, a line break or a non-ASCII character")
        url = urlsplit(self.url)
        if key and url.scheme == "http" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
            logger.info(f"warning: the key in {self.key_variable} goes to {self.url!r} unencrypted; use https://")
        return key

    def _ask(self, session: requests.Session, key: str, question: str, stopped: Future[None]) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], "temperature": 0}
        for attempt in range(ATTEMPTS):
            trouble = None
            try:
                status, asked_pause, content = self._post(session, key, body, stopped)
            except MISTAKES as error:  # their texts may contain the key or a proxy's password
                hint = "; name its authority in REQUESTS_CA_BUNDLE" if isinstance(error, exceptions.SSLError) else ""
                raise UserError(f"the judge {self.url!r} cannot be asked: {type(error).__name__}{hint}") from None
            except (requests.RequestException, HTTPError, TimeoutError) as error:
                trouble, asked_pause = f"does not answer: {type(error).__name__}", ""
            else:
                if status not in (429, 500, 502, 503, 504):
                    return self._answer(status, content, key)
                trouble = f"is too busy or broken ({status})"
            if attempt + 1 < ATTEMPTS:
                wait([stopped], self._pause(trouble, asked_pause, self.backoff_s * 2**attempt))
            if stopped.done():
                break
        raise TransientError(f"the judge {self.url!r} {trouble}") from None

    def _post(
        self, session: requests.Session, key: str, body: dict[str, Any], stopped: Future[None]
    ) -> tuple[int, str, bytes]:
        """Status, Retry-After and content, within DEADLINE_S and MAX_BYTES. Redirects are not followed."""

        def authorized(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if key:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        def post() -> tuple[int, str, bytes]:
            with session.post(
                f"{self.url.rstrip('/')}/chat/completions",
                json=body,
                headers={"Accept-Encoding": "identity"},  # no compression, which can expand a thousandfold
                auth=authorized,  # as a plain header it would be overridden by a .netrc
                timeout=DEADLINE_S,
                allow_redirects=False,
                stream=True,
            ) as response:
                content = b""
                while len(content) <= MAX_BYTES and (piece := response.raw.read(1 << 16, decode_content=False)):
                    content += piece
                return response.status_code, response.headers.get("Retry-After", ""), content

        return _within(DEADLINE_S, post, stopped)

    def _pause(self, trouble: str, asked: str, backoff_s: float) -> float:
        wanted = float(asked) if re.fullmatch(r"[0-9]{1,9}", asked) else backoff_s
        pause = min(max(wanted, backoff_s), LONGEST_PAUSE_S)
        if wanted > LONGEST_PAUSE_S:
            logger.info(f"the judge {self.url!r} {trouble}, asks for {wanted:,.0f} s and gets {pause:.0f} s")
        return pause

    def _answer(self, status: int, content: bytes, key: str) -> str:
        if status in (401, 403):
            raise UserError(f"the judge {self.url!r} refuses ({status}); is the key in {self.key_variable} right?")
        if 300 <= status < 400:
            raise UserError(f"the judge {self.url!r} has moved ({status}); give its new address")
        if status != 200:
            said = " ".join(content[:10_000].decode(errors="replace").split())
            pieces = (key[i : i + 8] for i in range(max(1, len(key) - 7)))
            echo = bool(key) and any(piece in said for piece in pieces)
            raise UserError(f"the judge {self.url!r} refuses ({status}){'' if echo else f': {said[:200]!r}'}")
        try:
            if len(content) > MAX_BYTES:
                raise ValueError
            given = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise UserError(f"the judge {self.url!r} does not speak the chat completions API") from None
        if isinstance(given, list):  # a list of parts
            given = "".join(str(part.get("text") or "") for part in given if isinstance(part, dict))
        return given if isinstance(given, str) else ""


def _question(prompt: Prompt, first: str, second: str) -> str:
    shown = prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    return QUESTION.format(prompt=shown, first=first, second=second)


def _prefers_first(answer: str) -> float | None:
    """1.0 for A, 0.0 for B, None where the last line is neither by itself: in a sentence "A" may be an article."""
    stated = VERDICT.fullmatch(next(iter(answer.strip().splitlines()[-1:]), ""))
    return {"A": 1.0, "B": 0.0}[stated[1]] if stated else None


def _within(seconds: float, call: Any, stopped: Future[None]) -> Any:
    """The result of `call`. Raises TimeoutError after `seconds`, or when `stopped` is set.

    A socket's own timeout is not enough: it restarts with every byte.
    """
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # a thread that hangs does not keep the process from ending
    wait([result, stopped], seconds, return_when=FIRST_COMPLETED)
    return result.result(0)
