"""The rows of completions/, as the stages after it read them."""

from typing import Any

OF_COMPLETIONS = (
    *("text", "token_ids", "num_tokens", "finish_reason", "reward", "score"),
    *("logprob", "guided_logprob", "method", "beta"),
)
TOKEN_REWARDS = "completions.list.element.token_rewards"
COLUMNS = ["prompt_id", "prompt", "method", "error", *(f"completions.list.element.{name}" for name in OF_COMPLETIONS)]


def completions_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a row of completions/; a run from before there were scores has its rewards for them."""
    return [{"score": c["reward"], "method": row["method"], "beta": None} | c for c in row["completions"]]
