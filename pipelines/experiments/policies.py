"""Small policies by TRL, on the sandbox: trained on pairs or on texts, measured by the true reward and by KL."""

import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import datasets
import torch

from rgtg import sandbox
from rgtg.decoding.decoder import Decoder
from rgtg.errors import UserError
from rgtg.evaluation.logprobs import logprobs
from rgtg.models.language import LanguageModel
from rgtg.models.loading import load_tokenizer, load_weights
from rgtg.sandbox.world import true_reward

MAX_LENGTH, BATCH = 96, 32
LEARNING_RATE = 1e-4
NEW_TOKENS = 64


class Pair(NamedTuple):
    prompt: str
    chosen: str
    rejected: str


class Measured(NamedTuple):
    """Means over samples of the policy itself, over its whole vocabulary."""

    true_reward: float
    kl: float  # from the sandbox's language model, in nats a completion


def train(pairs: list[Pair], steps: dict[str, int], seed: int, beta: float = 0.1) -> str:
    """Train the sandbox's language model by `sft` (on the chosen sides), then by `dpo`, each for so many steps.

    Returns the directory of the policy, which the caller removes.
    """
    path = str(sandbox.ensure().language)
    for kind in ("sft", "dpo"):
        if steps.get(kind):
            path = _train(path, kind, pairs, steps[kind], seed, beta)
    return path


def measure(path: str, prompts: list[str], samples: int, seed: int) -> Measured:
    """Sample `samples` completions of each prompt from the policy at `path`."""
    decoder = Decoder.load(path, method="unguided", k=0, device="cpu", slots=64)
    rows = decoder.generate(list(prompts), samples=samples, max_new_tokens=NEW_TOKENS, seed=seed)
    flat = [(prompt, c) for prompt, completions in zip(prompts, rows, strict=True) for c in completions]
    base = LanguageModel.load(str(sandbox.ensure().language), device="cpu")
    of_base = logprobs(base, [prompt for prompt, _ in flat], [c.token_ids for _, c in flat])
    return Measured(
        fmean(true_reward(prompt + c.text) for prompt, c in flat),
        fmean(c.logprob - p for (_, c), p in zip(flat, of_base, strict=True)),
    )


def prefers_chosen(path: str, pairs: list[Pair]) -> float:
    """The part of `pairs` whose chosen side the policy has made more probable against the rejected one (DPO's implicit
    reward).
    """
    tokenizer = load_tokenizer(path, "the policy")
    prompts = [pair.prompt for pair in pairs]
    sides = [
        [tokenizer(text, add_special_tokens=False).input_ids for text in side]
        for side in list(zip(*pairs, strict=True))[1:]
    ]
    rewards = []
    for model in (path, str(sandbox.ensure().language)):
        language = LanguageModel.load(model, device="cpu")
        rewards.append([logprobs(language, list(prompts), side) for side in sides])
    (chosen, rejected), (base_chosen, base_rejected) = rewards
    gains = [a - b - c + d for a, b, c, d in zip(chosen, base_chosen, rejected, base_rejected, strict=True)]
    return fmean(float(gain > 0) for gain in gains)


def _train(path: str, kind: str, pairs: list[Pair], steps: int, seed: int, beta: float) -> str:
    try:
        from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
    except ImportError as error:
        raise UserError("this experiment needs TRL: pip install trl") from error
    from transformers import AutoModelForCausalLM

    out = tempfile.mkdtemp(prefix="policy-")
    options: dict[str, Any] = {
        **{"output_dir": str(Path(out, "_train")), "max_steps": steps, "max_length": MAX_LENGTH, "seed": seed},
        **{"learning_rate": LEARNING_RATE, "lr_scheduler_type": "cosine", "warmup_steps": min(20, steps // 5)},
        **{"per_device_train_batch_size": BATCH, "save_strategy": "no", "report_to": [], "logging_steps": 10**6},
        **{"bf16": False, "disable_tqdm": True, "use_cpu": True},
    }
    model = load_weights(AutoModelForCausalLM, path, "language", device="cpu", dtype=torch.float32)
    prompts, chosen, rejected = (list(column) for column in zip(*pairs, strict=True))
    trainer: Any = DPOTrainer if kind == "dpo" else SFTTrainer
    args = DPOConfig(beta=beta, precompute_ref_log_probs=True, **options) if kind == "dpo" else SFTConfig(**options)
    columns = {"prompt": prompts, "chosen": chosen, "rejected": rejected}
    if kind == "sft":
        columns = {"prompt": prompts, "completion": chosen}
    trained = trainer(
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=load_tokenizer(path, "language"),
    )
    trained.train()
    trained.save_model(out)
    return out
