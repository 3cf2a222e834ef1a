"""A language model behind an OpenAI-compatible endpoint as a judge of pairs: which of two answers is better."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from rgtg.chat import Prompt
from rgtg.errors import Unavailable, UserError

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

AT_ONCE = 8
TIMEOUT_S = 120


@dataclass(frozen=True)
class Endpoint:
    """`url` is the base of the API, such as https://host/v1. Throttling and server errors are tried again."""

    url: str
    model: str
    key_variable: str
    backoff_s: float = 1.0  # before the third attempt; twice as long before each further one

    def wins(self, prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        """1.0 where `ours` is preferred, 0.0 where `theirs` is, 0.5 where swapping the sides changes the verdict.

        Raises UserError where the endpoint refuses, Unavailable where it does not answer.
        """
        retries = Retry(
            5, backoff_factor=self.backoff_s, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None
        )
        with requests.Session() as session, ThreadPoolExecutor(AT_ONCE) as pool:
            for scheme in ("https://", "http://"):
                session.mount(scheme, HTTPAdapter(max_retries=retries, pool_maxsize=AT_ONCE))

            def judge(prompt: Prompt, first: str, second: str) -> float:
                if first == second:
                    return 0.5
                straight = self._prefers_first(session, prompt, first, second)
                swapped = self._prefers_first(session, prompt, second, first)
                return (straight + (1 - swapped)) / 2

            return list(pool.map(judge, prompts, ours, theirs))

    def _prefers_first(self, session: requests.Session, prompt: Prompt, first: str, second: str) -> float:
        """1.0 for A, 0.0 for B, 0.5 for an answer that is neither."""
        shown = prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
        question = QUESTION.format(prompt=shown, first=first, second=second)
        key = os.environ.get(self.key_variable)
        try:
            response = session.post(
                f"{self.url.rstrip('/')}/chat/completions",
                headers={"Authorization": f"Bearer {key}"} if key else {},
                json={
                    "model": self.model,
                    "messages": [{"role": "user", "content": question}],
                    "temperature": 0,
                },
                timeout=TIMEOUT_S,
            )
        except requests.RequestException as error:
            raise Unavailable(f"the judge {self.url!r} does not answer: {type(error).__name__}") from error
        if not response.ok:
            raise UserError(f"the judge {self.url!r} refuses ({response.status_code}): {response.text[:200]}")
        try:
            answer = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"the judge {self.url!r} does not speak the chat completions API") from error
        letters = set(re.findall(r"\b[AB]\b", answer or ""))
        return {"A": 1.0, "B": 0.0}[letters.pop()] if len(letters) == 1 else 0.5
