"""A pair as token ids, cut or dropped to a length; never two responses that are the same."""

from dataclasses import dataclass
from datetime import date
from typing import Literal

from transformers import PreTrainedTokenizerBase

from rgtg.chat import control_token, encode_prompt, encode_response, rendered
from rgtg.errors import RowError
from rgtg.preferences.readers import Pair


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Token ids of one preference.

    `chosen_ids` and `rejected_ids` are the response alone, at least one token each, and end with EOS (where the
    tokenizer has one) unless the response was cut. Their first `common` tokens are identical: the pairs of prefixes up
    to that length carry no information.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    common: int

    @property
    def length(self) -> int:
        """Tokens of the longer side, with the prompt."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


def tokenize_pair(
    tokenizer: PreTrainedTokenizerBase,
    pair: Pair,
    max_length: int,
    overlong: Literal["truncate", "drop"],
    day: date | None = None,
) -> TokenizedPair | str:
    """The ids of `pair` within `max_length` tokens a side (prompt, response and EOS), or the reason why it has none.

    `truncate` cuts a response on the right to the room that its prompt leaves, and the cut one has no EOS; `drop`
    leaves out a pair if either side is longer. Prompts are never cut. `day` is what a template writes as the date.

    Raises UserError where messages meet a tokenizer without chat template: that is the set-up and fails every row.
    What is wrong with this row alone is a reason: an empty prompt where there is no BOS, messages that the template
    refuses (roles out of order, a system turn it does not know) or the tokenizer fails on, or a control token that a
    response or a message spells out.
    """
    for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        # A single EOS at the end closes the response, as our own does.
        if token := control_token(tokenizer, text.removesuffix(tokenizer.eos_token or "\0")):
            return f"{side} holds the control token {token!r}"
    try:
        prompt = rendered(tokenizer, pair.prompt, day)  # once for the three texts below
        prompt_ids = encode_prompt(tokenizer, prompt)
        chosen_ids = encode_response(tokenizer, prompt, pair.chosen)
        rejected_ids = encode_response(tokenizer, prompt, pair.rejected)
    except RowError as error:
        return str(error)
    if not chosen_ids or not rejected_ids:  # an empty response is its EOS, which not every tokenizer has
        return "a response has no tokens"

    room = max_length - len(prompt_ids)
    if overlong == "drop" and max(len(chosen_ids), len(rejected_ids)) > room:
        return "longer than train_reward.max_length"
    if room < 1:
        return "the prompt leaves no room for a response within train_reward.max_length"
    chosen_ids, rejected_ids = chosen_ids[:room], rejected_ids[:room]
    if chosen_ids == rejected_ids:
        return "chosen equals rejected within train_reward.max_length"
    return TokenizedPair(prompt_ids, chosen_ids, rejected_ids, common_length(chosen_ids, rejected_ids))


def common_length(first: list[int], second: list[int]) -> int:
    """How many tokens at the start of both are the same."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)
