"""Real reviews: does a partial reward model judge prefixes better, and which method moves the sentiment most?

    python -m pipelines.experiments.imdb --data DIR --language DIR

DIR of --data holds labelled.parquet (id, text, label) and unlabelled.parquet (id, text) of the IMDB reviews (Maas et
al. 2011). It trains reward models on some reviews, completes the first words of others with `evaluate`, and asks a
judge that was trained on yet others. It prints the tables of README.md.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer

from pipelines import evaluate
from pipelines.runtime.launch import guarded
from rgtg import config_file, table_files
from rgtg.chat import Prompt, encode_prompt
from rgtg.errors import UserError
from rgtg.models.loading import has_fast_bfloat16
from rgtg.models.reward import RewardModel

WORDS = (5, 10, 20, 40, 80, 160)
PROMPT_WORDS = 8
METHODS = [
    "unguided",
    "pargs beta=0.5,1,2,4",
    "pargs beta=0.5,1,2,4 objective=full",
    "pargs-next-token beta=0.5,1,2,4",
    "farma beta=0.5,1,2,4",
    "args",
    "pargs-greedy",
    "best-of-n proposals=10",
    "best-of-n proposals=10 objective=partial",
    "cd-blockwise objective=partial",
]


@dataclass(frozen=True)
class Reviews:
    """Labeled reviews (text, 1 for positive) in three parts that share no text, and the prompts."""

    train: list[tuple[str, int]]
    held_out: list[tuple[str, int]]
    judge: list[tuple[str, int]]
    prompts: list[str]


def main(
    data: Annotated[Path, typer.Option(help="Directory of labelled.parquet and unlabelled.parquet.")],
    language: Annotated[str, typer.Option(help="Language model directory.")],
    out: Annotated[str, typer.Option(help="Directory of runs and inputs.")] = "runs/imdb",
    max_length: Annotated[int, typer.Option(help="Tokens of a review that the reward models read.")] = 256,
    epochs: Annotated[int, typer.Option(help="Passes over the pairs.")] = 1,
    num_prompts: Annotated[int, typer.Option(help="Prompts to complete.")] = 512,
    threads: Annotated[int, typer.Option(help="CPU threads of training.")] = 2,
    methods: Annotated[list[str] | None, typer.Option(help="Methods to compare, as in evaluate.methods.")] = None,
) -> None:
    """Run the experiment and skip finished parts."""
    reviews = read_reviews(data, num_prompts)
    pairs, eval_pairs, prompts = write_inputs(reviews, Path(out))
    config = config_file.load(
        None,
        [
            f"run.root={out}",
            "run.id=reviews",
            f"models.language={language}",
            f"train_reward.pairs={pairs}",
            f"train_reward.eval_pairs={eval_pairs}",
            f"train_reward.max_length={max_length}",
            f"train_reward.epochs={epochs}",
            "train_reward.learning_rate=3e-4",
            f"train_reward.threads={threads}",
            f"generate.prompts={prompts}",
            "generate.max_new_tokens=40",
            f"evaluate.num_prompts={num_prompts}",
            f"evaluate.methods={list(methods or METHODS)}",
        ],
    )
    evaluate.run(config, {"judged positive": _judge(reviews)})
    models = sorted(Path(config.run.directory).glob("reward_model*"))
    scalar = [path for path in models if RewardModel.check(str(path), "reward model") == "scalar"]
    _print_accuracy(
        reviews, {p.name.removeprefix("reward_model_"): _accuracy(str(p), reviews.held_out) for p in scalar}
    )
    print(Path(config.run.directory, "evaluate", "results.md").read_text())


def read_reviews(data: Path, num_prompts: int) -> Reviews:
    """The parts. Each text is kept once, so that no two parts share one."""
    for name in ("labelled.parquet", "unlabelled.parquet"):
        if not (data / name).is_file():
            raise UserError(f"there is no {name} in {str(data)!r}")
    table = _rows(data / "labelled.parquet")
    labeled = list({row["text"]: (row["text"], row["label"]) for row in table}.values())
    random.Random(0).shuffle(labeled)
    judge, held_out, train = labeled[:4000], labeled[4000:9000], labeled[9000:]
    known = {text for text, _ in labeled}
    texts = [row["text"] for row in _rows(data / "unlabelled.parquet") if row["text"] not in known]
    openings = {" ".join(text.split()[:PROMPT_WORDS]) for text in texts if len(text.split()) > 2 * PROMPT_WORDS}
    return Reviews(train, held_out, judge, random.Random(1).sample(sorted(openings), num_prompts))


def _rows(file: Path) -> list[dict[str, Any]]:
    return [row for table in table_files.read_tables(str(file)) for row in table.to_pylist()]


def write_inputs(reviews: Reviews, out: Path) -> tuple[Path, Path, Path]:
    """Write the pairs (a positive and a negative review, with an empty prompt) and the prompts as Parquet."""
    inputs = out / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    paths = inputs / "pairs.parquet", inputs / "eval_pairs.parquet", inputs / "prompts.parquet"
    for path, part in zip(paths, (reviews.train, reviews.held_out), strict=False):
        positive = [text for text, label in part if label == 1]
        negative = [text for text, label in part if label == 0]
        rows = [{"prompt": "", "chosen": p, "rejected": n} for p, n in zip(positive, negative, strict=False)]
        pq.write_table(pa.Table.from_pylist(rows), path)
    pq.write_table(pa.table({"prompt": reviews.prompts}), paths[2])
    return paths


def _accuracy(reward_model: str, held_out: list[tuple[str, int]]) -> list[float]:
    """Accuracy on the first 5, 10 ... words and on whole reviews, which are split at their median reward."""
    model = RewardModel.load(reward_model).eval()

    def encode(text: str) -> list[int]:
        return encode_prompt(model.tokenizer, text)[: model.context]

    ids = [encode(text) for text in first_words(held_out, None)]
    # One forward pass gives the rewards of all prefixes of a review, read at these positions.
    ends = np.array([[len(encode(text)) - 1 for text in first_words(held_out, words)] for words in (*WORDS, None)])
    rewards = np.empty(ends.shape)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16(torch.device("cpu")))  # as in training
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # similar lengths in one batch, for little padding
    for start in range(0, len(order), 16):
        rows = order[start : start + 16]
        width = len(ids[rows[-1]])
        with torch.inference_mode(), autocast:
            every = model(torch.tensor([ids[row] + [0] * (width - len(ids[row])) for row in rows])).numpy()
        rewards[:, rows] = every[np.arange(len(rows)), ends[:, rows]]
    labels = np.array([label for _, label in held_out])
    return [float(((row > np.median(row)) == labels).mean()) for row in rewards]


def first_words(reviews: list[tuple[str, int]], words: int | None) -> list[str]:
    return [" ".join(text.split()[:words]) for text, _ in reviews]


def classifier(reviews: list[tuple[str, int]]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2), LogisticRegression(C=10))
    return model.fit([text for text, _ in reviews], [label for _, label in reviews])


def prefixes(reviews: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Each review twice, cut at random lengths, so that a bag of n-grams learns to judge prefixes."""
    draw = random.Random(2)
    return [(" ".join(text.split()[: draw.randint(3, 200)]), label) for text, label in reviews * 2]


def _print_accuracy(reviews: Reviews, accuracies: dict[str, list[float]]) -> None:
    n_grams = classifier(prefixes(reviews.train))
    labels = [label for _, label in reviews.held_out]
    curve = [float(n_grams.score(first_words(reviews.held_out, words), labels)) for words in (*WORDS, None)]
    rows = {**{f"reward model, {name}": values for name, values in accuracies.items()}, "bag of 2-grams": curve}
    error = 0.5 / len(labels) ** 0.5
    print(
        f"\nAccuracy on {len(labels):,} held-out reviews by their first words (standard error at most {error:.3f})\n"
    )
    print("| words | " + " | ".join(map(str, WORDS)) + " | all |\n|---|" + "---|" * (len(WORDS) + 1))
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}".lstrip("0") for value in values) + " |")


def _judge(reviews: Reviews) -> Callable[[list[Prompt], list[str]], list[float]]:
    """A judge that gives the probability of a positive review, of the completion without its prompt."""
    judge = classifier(prefixes(reviews.judge))
    accuracy = judge.score(first_words(reviews.held_out, 40), [label for _, label in reviews.held_out])
    print(
        f"The judge (TF-IDF logistic regression on {len(reviews.judge):,} other reviews) is right on {accuracy:.3f} "
        "of the held-out reviews cut at 40 words."
    )
    return lambda _, texts: judge.predict_proba(texts)[:, 1].tolist()


if __name__ == "__main__":
    guarded(lambda: typer.run(main))
