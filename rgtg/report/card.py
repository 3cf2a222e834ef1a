"""Cards in the form that hubs read: how preferences were made, and how a reward model scores."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rgtg.config import Config, Generate, Preferences
from rgtg.evaluation.stats import share_error
from rgtg.methods import EXPORTS, METHODS, STRATEGIES
from rgtg.report import warnings
from rgtg.report.places import without_places

SAYS_OF_PAIRS = "The score is the reward model's; `score_margin` is the difference. Columns are those of TRL, and"
SAYS_OF_RANKINGS = "`scores` are the reward model's, in the same order; there are no pairs of TRL in it."


def dataset_card(
    config: Config,
    selection: Preferences,
    counts: Mapping[str, Any],
    said: Sequence[str] = (),
    gates: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The README.md of a published preferences/: front matter for the hub, then how to load and how it was made.

    `config` is that of the completions, `selection` the settings by which pairs were made of them, `counts` how many
    there are to train and to test on; the warnings `said` stand above everything else, `gates` in a table.
    """
    # No `configs` here: the files' names tell the splits, and with a list of them `datasets` caches by the list alone
    # and gives one run's pairs for another's.
    front = {
        "tags": ["preference", "synthetic", "dpo", "rgtg"],
        "size_categories": [_size_category(counts["train"] + counts["test"])],
    }
    settings, strategy = config.generate, selection.select or "best-worst"
    ranked = STRATEGIES[strategy].key is None
    made_by = config.model_dump() | {"preferences": selection.model_dump()}
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# Preferences of the run {config.run.id}
{"".join(f"{chr(10)}> **Warning:** {warning}{chr(10)}" for warning in said)}
{counts["train"]} {"rankings" if ranked else "pairs"} to train on and {counts["test"]} to test on, split by prompt.
{"`completions` are" if ranked else "`chosen` and `rejected` are"} {STRATEGIES[strategy].says} (`{strategy}`),
of {_counts(settings)}.
{SAYS_OF_RANKINGS if ranked else SAYS_OF_PAIRS} `datasets.load_dataset(DIRECTORY)` reads them.
{_evidence(strategy, METHODS[settings.method].needs_reward)}

The completions are the language model's own, steered while it decoded (method `{settings.method}`); the model was not
trained.
{_exports(selection.export)}{_gates(gates)}
To make this again:

```yaml
{yaml.safe_dump(without_places(made_by), sort_keys=False).strip()}
```
"""


PINNED = re.compile(r"([\w.-]+(?:/[\w.-]+)?)@[0-9a-f]{40}")  # an id of the hub in a resolved config

# The same ids that training and decoding use; a test runs it.
SCORING = '''```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
model = AutoModelForSequenceClassification.from_pretrained("DIRECTORY").eval()


def reward(prompt, response):
    """Of a whole response; `prompt` is text, or messages."""
    text = prompt
    if not isinstance(prompt, str):
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    # A chat template writes all special tokens itself.
    ids = tokenizer(text + response, add_special_tokens=isinstance(prompt, str)).input_ids
    with torch.no_grad():
        return model(torch.tensor([[*ids, tokenizer.eos_token_id]])).logits[0, 0].item()
```'''


def model_card(config: Config, counts: dict[str, Any], pairs: dict[str, Any]) -> str:
    """The README.md of a reward model; `counts` and `pairs` are those of its training and of its pairs."""
    settings, accuracy = config.train_reward, counts["accuracy"]
    weak = warnings.of_training(counts)
    by_score = ", ".join(f"{way} {share:.3f}" for way, share in accuracy["by_score"].items())
    n = accuracy["pairs"].get("full", 0)
    if settings.head_kind == "scalar":
        how = f"It gives one reward to every prefix. That of a whole response, in plain transformers:\n\n{SCORING}"
    else:
        how = f"Its head is `{settings.head_kind}`, which `rgtg.Decoder` reads (`token_rewards`)."
    front: dict[str, Any] = {"tags": ["reward-model", "preference", "rgtg"]}
    if settings.head_kind == "scalar":
        front |= {"library_name": "transformers", "pipeline_tag": "text-classification"}
    if hub_id := PINNED.fullmatch(settings.init or config.models.language):
        front["base_model"] = hub_id[1]
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# Reward model of the run {config.run.id}
{f"{chr(10)}> **Warning:** {weak}{chr(10)}" if weak else ""}
Trained on {pairs["train"]:,} preference pairs (objective `{settings.objective}`, learning rate
{settings.learning_rate:g}). Of {n:,} held-out pairs it ranks
these parts rightly, by how the rewards of a text's prefixes become its score: {by_score}
(± {share_error(0.5, n) if n else 0:.3f}). `{accuracy["score"]}` is kept, in `config.json`.

{how}
"""


def _evidence(strategy: str, guided: bool) -> str:
    """What is known of such pairs: they were measured for guided completions."""
    right = STRATEGIES[strategy].right
    if right is None or not guided:
        return ""
    return (
        f"\nIn the sandbox, a small world whose true reward is known, {right:.2f} of such pairs are the right way "
        "round (five reward models, `make preferences`). How many of these are depends on the reward model."
    )


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    """Every gate that was held, with its figure and its 95 % bounds."""
    lines = [
        f"| {gate['name']} | {gate['verdict']} | {_number(gate['figure'])} | {_number(gate['low'])} to "
        f"{_number(gate['high'])} | {gate['n']:,} | {_number(gate['fail'])} |"
        for gate in gates
        if gate["figure"] is not None
    ]
    head = "\n## Gates\n\n| gate | verdict | figure | 95 % | cases | threshold |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(lines) + "\n" if lines else ""


def _number(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.3g}"


def _exports(names: Sequence[str]) -> str:
    """How to load each export in its trainer; all have the splits of the preferences."""
    if not names:
        return ""
    lines = [f"* `exports/{name}`: {EXPORTS[name].loads}" for name in dict.fromkeys(names)]
    return "\n".join(["\nThe same in the layouts of other trainers, where DIR is the folder:\n", *lines, ""])


def _counts(settings: Generate) -> str:
    kinds = {"guided" if METHODS[settings.method].needs_reward else "unguided": settings.samples}
    kinds |= {"further unguided": settings.unguided_samples or 0, "opposed": settings.opposed_samples or 0}
    return " and ".join(f"{n} {kind}" for kind, n in kinds.items() if n) + " completions of each prompt"


def _size_category(n: int) -> str:
    for bound, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if n < bound:
            return name
    return "1M<n<10M"
