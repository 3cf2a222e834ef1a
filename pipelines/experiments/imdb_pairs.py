"""Pairs of real reviews: which score ranks them, and do two judges agree with the pairs of every strategy?

    python -m pipelines.experiments.imdb_pairs --data DIR --language DIR

The data are those of `imdb.py`. For each seed a reward model is trained and completes the first words of other reviews
guided, unguided and opposed. Neither judge has seen a review that it was trained on: one counts words and 2-grams, the
other reads the mean hidden state of the untouched language model, which knows word order.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import typer

from pipelines.experiments.imdb import Reviews, classifier, first_words, prefixes, read_reviews, write_inputs
from pipelines.experiments.labels import completed, labels_of, scored
from pipelines.experiments.preferences_report import spread
from pipelines.runtime.launch import guarded
from rgtg.chat import encode_prompt
from rgtg.models.language import LanguageModel
from rgtg.preferences.selection import Rules

JUDGED_WORDS = 40  # at which the judges are themselves judged
HIDDEN_TOKENS = 96  # that the second judge reads
RULES = Rules(max_similarity=0.9, truncated="keep")  # of 40 tokens hardly a review ends


def main(
    data: Annotated[Path, typer.Option(help="Directory of labelled.parquet and unlabelled.parquet.")],
    language: Annotated[str, typer.Option(help="Language model directory.")],
    out: Annotated[Path, typer.Option(help="Directory of runs and inputs.")] = Path("runs/imdb-pairs"),
    seeds: Annotated[int, typer.Option(min=1, help="Reward models.")] = 3,
    max_length: Annotated[int, typer.Option(help="Tokens of a review that the reward models read.")] = 128,
    num_train: Annotated[int | None, typer.Option(help="Train on so many reviews.")] = None,
    num_prompts: Annotated[int, typer.Option(help="Prompts to complete.")] = 200,
    beta: Annotated[float, typer.Option(help="Multiplier of the reward.")] = 2.0,
) -> None:
    """Run the experiment and skip finished parts."""
    reviews = read_reviews(data, num_prompts)
    reviews.train[:] = reviews.train[:num_train]
    pairs, eval_pairs, prompts = write_inputs(reviews, out)
    judges = {"2-grams": _by_words(reviews), "hidden states": _by_hidden_states(reviews, language)}
    settings: dict[str, Any] = {
        **{"models.language": language, "train_reward.pairs": pairs, "train_reward.eval_pairs": eval_pairs},
        **{"train_reward.max_length": max_length, "train_reward.learning_rate": 3e-4, "generate.beta": beta},
        **{"generate.prompts": prompts, "generate.max_new_tokens": 40},
    }
    by_score: dict[str, list[float]] = {}
    agreement: dict[tuple[str, str], list[float]] = {}
    for seed in range(seeds):
        rows, accuracy = completed(out.absolute(), f"seed-{seed}", **settings, **{"run.seed": seed})
        print(f"seed {seed}: {accuracy}")
        for way, value in accuracy["by_score"].items():
            by_score.setdefault(way, []).append(value)
        rows = scored(rows, accuracy["score"])
        for name, judge in judges.items():
            for source, found in labels_of(rows, judge, RULES).items():
                agreement.setdefault((source, name), []).append(found["right"])
    print("\n| score | held-out pairs right |\n|---|---|")
    for way, values in by_score.items():
        print(f"| {way} | {spread(values)} |")
    print(f"\n| pairs | {' | '.join(judges)} |\n|---|{'---|' * len(judges)}")
    for source in dict.fromkeys(source for source, _ in agreement):
        print(f"| {source} | {' | '.join(spread(agreement[source, name]) for name in judges)} |")


def _by_words(reviews: Reviews) -> Callable[[str, str], float]:
    judge = classifier(prefixes(reviews.judge))
    _say("2-grams", judge, reviews, list)
    return cache(lambda _, text: float(judge.decision_function([text])[0]))


def _by_hidden_states(reviews: Reviews, language: str) -> Callable[[str, str], float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = LanguageModel.load(language, device="cpu")
    known = prefixes(reviews.judge)
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    judge.fit(hidden_states(model, [text for text, _ in known]), [label for _, label in known])
    _say("hidden states", judge, reviews, lambda texts: hidden_states(model, texts))
    return cache(lambda _, text: float(judge.decision_function(hidden_states(model, [text]))[0]))


@torch.inference_mode()
def hidden_states(model: LanguageModel, texts: list[str]) -> np.ndarray:
    """The mean over tokens of the last layer's hidden states, (texts, H); zeros for a text without tokens."""
    ids = [encode_prompt(model.tokenizer, text)[:HIDDEN_TOKENS] for text in texts]
    found = np.zeros((len(ids), model.model.config.hidden_size), dtype=np.float32)
    order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(ids[i]))
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        width = len(ids[rows[-1]])
        hidden = model.model.base_model(torch.tensor([ids[i] + [0] * (width - len(ids[i])) for i in rows]))[0].float()
        for row, states in zip(rows, hidden, strict=True):
            found[row] = states[: len(ids[row])].mean(0).numpy()
    return found


def _say(name: str, judge: Any, reviews: Reviews, read: Callable[[list[str]], Any]) -> None:
    labels = [label for _, label in reviews.held_out]
    right = fmean(judge.predict(read(first_words(reviews.held_out, JUDGED_WORDS))) == labels)
    print(f"The judge by {name} is right on {right:.3f} of the held-out reviews cut at {JUDGED_WORDS} words.")


if __name__ == "__main__":
    guarded(lambda: typer.run(main))
