"""A judge: a reward model of any kind that scores whole texts, for a second opinion on what another has made."""

from collections.abc import Callable
from datetime import date

import torch

from rgtg.chat import Prompt, encode_prompt, encode_response, rendered
from rgtg.models.loading import load_config, resolve_device, resolve_dtype
from rgtg.models.reward import SCORE, RewardModel
from rgtg.models.shapes import right_padded
from rgtg.models.text_reward import TextReward
from rgtg.text_score import score

BATCH = 16  # texts of a forward; similar lengths go together

Judge = Callable[[list[Prompt], list[str]], list[float]]


def load_judge(
    path: str,
    *,
    what: str,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    day: date | None = None,
) -> Judge:
    """Scores of completions after their prompts, by the model at `path`.

    A reward model of ours, whose config names its score, scores a text as it does in decoding; any other classifier by
    its logit of the whole text. Raises UserError as `TextReward.check`.
    """
    TextReward.check(path, what, trust_remote_code)
    if not hasattr(load_config(path, what, trust_remote_code=trust_remote_code), SCORE):
        judge = TextReward.load(
            path, device=device, dtype=dtype, trust_remote_code=trust_remote_code, what=what, day=day
        )
        return judge.score
    target = resolve_device(device)
    model = RewardModel.load(
        path, device=target, dtype=resolve_dtype(dtype, target), trust_remote_code=trust_remote_code, what=what
    ).eval()
    return lambda prompts, texts: prefix_scores(model, prompts, texts, day)


@torch.inference_mode()
def prefix_scores(model: RewardModel, prompts: list[Prompt], texts: list[str], day: date | None = None) -> list[float]:
    """Scores by the model's own way of the rewards of all prefixes of each text, which ends with an EOS.

    A text that is longer than the context is cut off there, one without a token has the reward of its prompt.
    """
    ids, begins = [], []
    for prompt, text in zip(prompts, texts, strict=True):
        before = rendered(model.tokenizer, prompt, day)
        prompt_ids = encode_prompt(model.tokenizer, before)[-(model.context - 1) :]
        response = encode_response(model.tokenizer, before, text, day=day)
        ids.append([*prompt_ids, *response][: model.context])
        begins.append(min(len(prompt_ids), len(ids[-1]) - 1))
    found = [0.0] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = right_padded([ids[row] for row in rows]).to(model.head.weight.device)
        for row, rewards in zip(rows, model(batch).tolist(), strict=True):
            found[row] = score(rewards[begins[row] : len(ids[row])], model.score_way)
    return found
