"""TRL as a client: its trainers read preferences/ unchanged, and our further columns alter no loss."""

import datasets
import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pipelines import preferences
from rgtg.schemas import MESSAGES

OPTIONS = {
    **{"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": [], "bf16": False},
    **{"save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "max_length": 64, "learning_rate": 1e-3},
}
TRL = ["prompt", "chosen", "rejected"]


@pytest.fixture(params=["text", "messages"])
def directory(request, finished):
    """A run with 8 pairs to train on, and its exports."""

    def prompt(i):
        return f"p{i} " if request.param == "text" else [{"role": "user", "content": f"p{i}"}]

    rows = [(prompt(i), [("good" * (1 + i % 3), 3.0 + i), ("bad", -1.0)]) for i in range(8)]
    types = () if request.param == "text" else (MESSAGES,)
    return preferences.run(
        finished(rows, *types, **{"preferences.test_fraction": 0, "preferences.export": "[sft,unpaired]"})
    )


@pytest.fixture
def pairs(directory):
    """The train split of preferences/ as `datasets` reads it."""
    return datasets.load_dataset(directory.path("preferences"), split="train")


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trained(kind, model_dir, rows, out, template=None, **options):
    import trl  # here: it takes seconds, which the collection of tests need not pay

    auto = AutoModelForSequenceClassification if kind == "Reward" else AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = template or tokenizer.chat_template
    trainer = getattr(trl, f"{kind}Trainer")(
        model=auto.from_pretrained(model_dir),
        args=getattr(trl, f"{kind}Config")(output_dir=str(out), **OPTIONS, **options),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    return losses(trainer)


@pytest.mark.parametrize("kind", ["Reward", "DPO"])
def test_further_columns_alter_no_loss(kind, pairs, make_reward, language_dir, tmp_path):
    model = make_reward() if kind == "Reward" else language_dir
    with_ours = trained(kind, model, pairs, tmp_path / "a")
    assert len(with_ours) == 2
    assert with_ours == trained(kind, model, pairs.select_columns(TRL), tmp_path / "b")


def test_a_column_called_margin_would_alter_the_loss_of_a_reward_model(pairs, make_reward, tmp_path):
    """The control: what the equality above can see."""
    margin = pairs.rename_column("score_margin", "margin")
    assert trained("Reward", make_reward(), pairs, tmp_path / "a") != trained(
        "Reward", make_reward(), margin, tmp_path / "b"
    )


def test_kto_reads_pairs(pairs, language_dir, tmp_path):
    assert len(trained("KTO", language_dir, pairs, tmp_path)) == 2


def test_kto_reads_unpaired_and_counts_as_many_of_both(directory, language_dir, tmp_path):
    rows = datasets.load_dataset(directory.path("exports", "unpaired"), split="train")
    assert sum(rows["label"]) == 8 == len(rows) / 2
    assert len(trained("KTO", language_dir, rows, tmp_path)) == 2


def test_supervised_training_reads_the_chosen_side(directory, language_dir, tmp_path):
    rows = datasets.load_dataset(directory.path("exports", "sft"), split="train")
    assert len(trained("SFT", language_dir, rows, tmp_path)) == 2


MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}a:{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}u:{{ m.content }};{% endif %}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.mark.parametrize("directory", ["messages"], indirect=True)
def test_supervised_training_on_the_answers_alone(directory, language_dir, tmp_path):
    """As the card says it."""
    rows = datasets.load_dataset(directory.path("exports", "sft"), split="train")
    alone = trained("SFT", language_dir, rows, tmp_path / "a", MARKED, assistant_only_loss=True)
    assert len(alone) == 2
    assert alone != trained("SFT", language_dir, rows, tmp_path / "b", MARKED)
