"""The methods of the field, the objectives of reward models, the strategies of selection and the exports: a row of a
table each.

Here stands also which fits which.

A config names them before torch is loaded, so this module imports nothing heavy.
"""

from typing import Literal, NamedTuple, get_args

from rgtg.errors import UserError

# What gives the rewards of a reward model: one number a prefix, or one for every next token, which may be a
# log-probability.
Head = Literal["scalar", "next-token", "log-probability"]


class Objective(NamedTuple):
    """How a reward model is trained: a loss of training/losses.py, and the heads that it can train."""

    loss: str  # the function there; summed over a batch
    mean_over: Literal["prefixes", "pairs"] = "pairs"  # of the batch
    heads: tuple[Head, ...] = get_args(Head)  # the first is the default
    scale: float = 1.0  # of the reward inside the loss
    best_next: bool = False  # whether the loss needs the largest reward that a prefix with one more token has


OBJECTIVES: dict[str, Objective] = {
    # Bradley-Terry on all prefixes (PARGS, arXiv 2406.07780) and on whole responses.
    "partial": Objective("partial_loss_sum", "prefixes"),
    "full": Objective("full_loss_sum"),
    # Regression and classification of prefixes: RAD, arXiv 2310.09520; FUDGE, arXiv 2104.05218; controlled decoding,
    # arXiv 2310.17022.
    "rad": Objective("rad_loss_sum"),
    "fudge": Objective("fudge_loss_sum"),
    "cd": Objective("cd_loss_sum"),
    # Token-level heads: FaRMA, arXiv 2502.04517, and GenARM, arXiv 2410.08193, Bradley-Terry on the sum of the
    # log-probabilities of a response, with its scale.
    "farma": Objective("farma_loss_sum", heads=("next-token",), best_next=True),
    "genarm": Objective("full_loss_sum", heads=("log-probability",), scale=0.05),
}

# What happens to a reward before it enters the policy; clamp: to between 0 and 1.
RewardTransform = Literal["identity", "clamp", "logsigmoid"]


class Segments(NamedTuple):
    """How a method searches above the token; see search.py."""

    until: Literal["end", "length", "entropy"]  # where a segment ends, at the latest at the end of the completion
    accept: Literal["best", "threshold"]  # the best of all proposals, or the first one that is good enough
    proposals: int  # at most, of a segment
    length: int = 0  # tokens of a segment; where entropy ends it, at most
    # Of CARDS: a segment of at least `shortest` tokens ends where the next one has this entropy, in nats; the
    # threshold rises to the target reward, which is another one for every reward model, and acceptance is soft on
    # this scale.
    entropy: float = 3.0
    shortest: int = 4
    target: float | None = None
    alpha: float = 0.5
    scale: float = 0.7


class Method(NamedTuple):
    """What the guidance sees, how the token is chosen, and the published numbers."""

    guidance: Literal["none", "candidates", "next-token"]  # the reward of each candidate, or of every next token
    greedy: bool  # the mode of the tilted policy, or a sample of it
    beta: float  # multiplier of the reward, and number of candidates: as published, or the field's usual
    k: int
    objective: str  # how its reward model is trained, for a comparison of methods
    reward_transform: RewardTransform = "identity"
    segments: Segments | None = None  # what is searched above the token

    @property
    def needs_reward(self) -> bool:
        return self.guidance != "none" or self.segments is not None


METHODS: dict[str, Method] = {
    # The language model itself, top-k sampling.
    "unguided": Method("none", False, 0.0, 10, "partial"),
    # PARGS and PARGS-G, arXiv 2406.07780: a reward model trained on partial sequences.
    "pargs": Method("candidates", False, 2.0, 10, "partial"),
    "pargs-greedy": Method("candidates", True, 1.0, 10, "partial"),
    # The same objective with a token-level head: one reward call a token.
    "pargs-next-token": Method("next-token", False, 2.0, 10, "partial"),
    # ARGS-greedy, arXiv 2402.01694: a reward model trained on full sequences.
    "args": Method("candidates", True, 1.0, 10, "full"),
    # FaRMA, arXiv 2502.04517, and GenARM, arXiv 2410.08193: token-level heads.
    "farma": Method("next-token", False, 1.0, 10, "farma"),
    "genarm": Method("next-token", False, 1.0, 10, "genarm"),
    # RAD, arXiv 2310.09520: regression on prefixes, the reward clamped.
    "rad": Method("candidates", False, 50.0, 20, "rad", "clamp"),
    # FUDGE, arXiv 2104.05218: a classifier of prefixes, of which the log-probability counts.
    "fudge": Method("candidates", False, 4.0, 200, "fudge", "logsigmoid"),
    # Search by whole segments: CARDS, arXiv 2406.16306, where entropy ends them; and of a fixed length, which batch
    # better. Best of n, and best of n guided ones.
    "cards": Method("none", False, 0.0, 40, "full", segments=Segments("entropy", "threshold", 20, 64)),
    "segments": Method("none", False, 0.0, 40, "full", segments=Segments("length", "threshold", 20, 16)),
    "best-of-n": Method("none", False, 0.0, 10, "full", segments=Segments("end", "best", 10)),
    "pargs-best-of-n": Method("candidates", False, 2.0, 10, "partial", segments=Segments("end", "best", 4)),
    # Controlled decoding, arXiv 2310.17022: a value function of prefixes, tokenwise and by blocks.
    "cd": Method("candidates", False, 1.0, 10, "cd"),
    "cd-blockwise": Method("none", False, 0.0, 10, "cd", segments=Segments("length", "best", 4, 16)),
}


# Completions of a prompt by how they were decoded: as the run says, by the language model alone, or under -beta.
Pool = Literal["own", "unguided", "opposed"]


class Strategy(NamedTuple):
    """Which completions of a prompt become chosen and rejected; without a `key`, all of them are ranked."""

    chosen: Pool
    rejected: Pool
    key: str | None  # a function of preferences/selection.py: of all pairs the one with the smallest key is taken
    says: str  # what a pair is, for its card
    right: float | None = None  # how many are right in the sandbox, whose true reward is known: `make preferences`


STRATEGIES: dict[str, Strategy] = {
    # The best against the worst, against the one nearest to two deviations below the mean (arXiv 2502.16825), and
    # against any other one.
    "best-worst": Strategy("own", "own", "widest", "the completion of highest and the one of lowest score", 0.79),
    "best-near": Strategy(
        *("own", "own", "near"), "the completion of highest score and the one nearest to two deviations below the mean"
    ),
    "best-random": Strategy(
        "own", "own", "any_rejected", "the completion of highest score and another at random", 0.67
    ),
    # A guided one against one of the language model itself.
    "guided-unguided": Strategy(
        *("own", "unguided", "widest"), "the guided completion of highest and the unguided one of lowest score", 0.97
    ),
    "guided-unguided-random": Strategy(
        *("own", "unguided", "any_pair"),
        "a guided and an unguided completion at random, if the score confirms them",
        0.88,
    ),
    # Guided against guided towards the opposite.
    "opposed": Strategy(
        *("own", "opposed", "widest"), "the completion of highest score and, under -beta, the one of lowest", 0.99
    ),
    # For losses of whole rankings (Plackett-Luce).
    "ranked": Strategy("own", "own", None, "all completions of a prompt, the one of highest score first"),
}


class Export(NamedTuple):
    """Pairs or rankings in the layout of other trainers."""

    rows: str  # a function of preferences/exports.py: row of preferences/ -> rows of the export
    suffix: Literal["parquet", "jsonl"]
    loads: str  # how a trainer loads it, for the card of the dataset; DIR is the folder of the export


EXPORTS: dict[str, Export] = {
    # Supervised training on the chosen side, which taught more than any pairs: preferences/README.md.
    "sft": Export(
        *("sft", "parquet"),
        'TRL: `SFTTrainer(train_dataset=load_dataset(DIR)["train"])`; for messages with `assistant_only_loss=True`',
    ),
    "unpaired": Export("unpaired", "parquet", 'TRL: `KTOTrainer(train_dataset=load_dataset(DIR)["train"])`'),
    "chat-pairs": Export(
        *("chat_pairs", "jsonl"),
        "LLaMA-Factory: `dataset_dir: DIR`, `dataset: preferences`, `eval_dataset: preferences_test`; "
        "axolotl: `path: DIR`, `type: chat_template.default`, `field_messages: prompt`; ms-swift: `--dataset DIR`",
    ),
    "ranked": Export(
        *("ranked", "jsonl"),
        "NeMo-RL: `dataset_name: PreferenceDataset`, `data_path: DIR`, `split: train`; its DPO and reward models take "
        "two ranks, so pairs",
    ),
    # Of every step whether the reward model's reward rose over it.
    "stepwise": Export(
        *("stepwise", "parquet"),
        'axolotl: `path: DIR`, `type: stepwise_supervised`, `step_separator: ""`; TRL before 1.14: `PRMTrainer`. A '
        "label is the opinion of the reward model that guided, and does not say that a step is correct",
    ),
}


def with_segments(
    method: str,
    proposals: int | None = None,
    length: int | None = None,
    entropy: float | None = None,
    target: float | None = None,
) -> Segments | None:
    """The segments of a method with other numbers. Raises ValueError for a number that the method has no use for."""
    segments = METHODS[method].segments
    given = {"proposals": proposals, "segment_tokens": length, "segment_entropy": entropy, "target_reward": target}
    useful: set[str] = set()
    if segments:
        useful = {"proposals"}
        useful |= {"segment_tokens"} if segments.until != "end" else set()
        useful |= {"segment_entropy"} if segments.until == "entropy" else set()
        useful |= {"target_reward"} if segments.accept == "threshold" else set()
    if useless := [name for name, value in given.items() if value is not None and name not in useful]:
        raise ValueError(f"the method {method!r} has no {useless[0]}")
    if "target_reward" in useful and target is None:
        raise ValueError(
            f"the method {method!r} needs a target_reward: what the reward model gives to a good completion"
        )
    return segments and segments._replace(
        proposals=segments.proposals if proposals is None else proposals,
        length=segments.length if length is None else length,
        entropy=segments.entropy if entropy is None else entropy,
        target=target,
    )


def head_of(objective: str, head: str | None = None) -> Head:
    """The head that an objective trains: `head`, by default the objective's own. Raises ValueError where it cannot."""
    if objective not in OBJECTIVES:
        raise ValueError(f"the objective {objective!r} is unknown; there are {', '.join(OBJECTIVES)}")
    heads = OBJECTIVES[objective].heads
    for possible in heads:
        if head in (None, possible):
            return possible
    if head not in get_args(Head):
        raise ValueError(f"the head {head!r} is unknown; there are {', '.join(get_args(Head))}")
    raise ValueError(f"the objective {objective!r} needs the head {heads[0]!r}")


def reward_name(objective: str, head: str | None) -> str:
    """What a reward model is called in comparisons: by its objective, and by its head where that is not the usual."""
    return objective if head in (None, head_of(objective)) else f"{objective}-{head}"


def check_head(method: str, head: Head) -> None:
    """Raises UserError where the method asks for rewards that a head does not give."""
    guidance = METHODS[method].guidance
    if guidance == "candidates" and head != "scalar":
        others = [name for name, row in METHODS.items() if row.guidance == "next-token"]
        raise UserError(
            f"the method {method!r} scores candidates, and the reward model has a {head} head; use {', '.join(others)}"
        )
    if guidance == "next-token" and head == "scalar":
        raise UserError(
            f"the method {method!r} reads the reward of every next token, and the reward model has a scalar head; "
            "train one with train_reward.head=next-token, or use pargs"
        )
