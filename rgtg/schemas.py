"""The Arrow schemas of all tables that a run writes."""

import pyarrow as pa

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

COMPLETION = pa.struct(
    [
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("num_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("reward", pa.float32()),
        ("score", pa.float32()),
        ("token_rewards", pa.list_(pa.float32())),
        ("logprob", pa.float64()),
        ("guided_logprob", pa.float64()),
        ("language_calls", pa.int32()),
        ("reward_calls", pa.int32()),
        ("method", pa.string()),
        ("beta", pa.float64()),
    ]
)

# Columns of a pair or a ranking, and of each completion in it.
_ORIGIN = [("prompt_id", pa.string()), ("run_id", pa.string()), ("method", pa.string()), ("strategy", pa.string())]
_OF_A_COMPLETION = [
    ("index", pa.int32()),  # in the row of completions/
    ("method", pa.string()),
    ("tokens", pa.int32()),
    ("finish", pa.string()),
    ("logprob", pa.float64()),
    ("guided_logprob", pa.float64()),
]

# Our columns in prompts/ and completions/; every other column of the input passes through.
PROMPT_COLUMNS = ("prompt_id", "prompt", "error")
COMPLETION_COLUMNS = ("prompt_id", "prompt", "completions", "method", "error")

META = "meta_"  # before the name of a user's column in preferences/


def prompts_schema(prompt: pa.DataType, passed_through: list[pa.Field]) -> pa.Schema:
    """prompts/: `prompt` is text or messages; `error` says why a row cannot be completed."""
    return pa.schema([("prompt_id", pa.string()), ("prompt", prompt), ("error", pa.string()), *passed_through])


def completions_schema(prompts: pa.Schema) -> pa.Schema:
    """completions/: one row per prompt, with the columns that pass through."""
    return pa.schema(
        [
            ("prompt_id", pa.string()),
            prompts.field("prompt"),
            ("completions", pa.list_(COMPLETION)),
            ("method", pa.string()),
            ("error", pa.string()),
            *(field for field in prompts if field.name not in PROMPT_COLUMNS),
        ]
    )


def passed_through(completions: pa.Schema) -> list[pa.Field]:
    """The columns of completions/ that are the user's."""
    return [field for field in completions if field.name not in COMPLETION_COLUMNS]


def preferences_schema(prompt: pa.DataType, passed_through: list[pa.Field]) -> pa.Schema:
    """preferences/: the columns of TRL, all three text or all three messages, and the origin of the pair.

    None is called `margin`, which trainers subtract inside their loss; the user's columns begin with META, so that no
    trainer takes one of them for its own.
    """
    return pa.schema(
        [
            ("prompt", prompt),
            ("chosen", prompt),
            ("rejected", prompt),
            ("score_chosen", pa.float32()),
            ("score_rejected", pa.float32()),
            ("score_margin", pa.float32()),
            # A judge's, null where it was not asked; `agreement` is Kendall's tau-b over the prompt's completions.
            ("judge_score_chosen", pa.float32()),
            ("judge_score_rejected", pa.float32()),
            ("agreement", pa.float32()),
            *_ORIGIN,
            *((f"{side}_{name}", kind) for side in ("chosen", "rejected") for name, kind in _OF_A_COMPLETION),
            *(field.with_name(META + field.name) for field in passed_through),
        ]
    )


def rankings_schema(prompt: pa.DataType, passed_through: list[pa.Field]) -> pa.Schema:
    """preferences/ of rankings: `completions` of a prompt, the best one first, all text or all messages; what is known
    of each stands at its place in the other lists.
    """
    return pa.schema(
        [
            ("prompt", prompt),
            ("completions", pa.list_(prompt)),
            ("scores", pa.list_(pa.float32())),
            *_ORIGIN,
            *((f"completions_{name}", pa.list_(kind)) for name, kind in _OF_A_COMPLETION),
            *(field.with_name(META + field.name) for field in passed_through),
        ]
    )
