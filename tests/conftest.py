"""Tiny models with random weights and a tokenizer of one token a character, built once a session.

Weights are large on purpose: flat distributions and equal rewards would let a wrong answer pass.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from tests.faulty_s3 import FaultyS3

torch.set_num_threads(int(os.environ.get("RGTG_TEST_THREADS", "1")))  # make test-portable sets others

PAD, BOS, EOS = "<pad>", "<s>", "</s>"  # ids 0, 1, 2

# Messages as text; it writes the BOS itself, as chat templates do.
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }}{% if not loop.last or m.role == 'user' %};{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)

# Two layers of 32 with grouped-query attention, in the words of each architecture.
SHAPES = {
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48},
    "qwen2": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48},
    "qwen3": {"num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 48, "head_dim": 16},
    "gpt2": {"num_attention_heads": 4, "n_inner": 48},
    "bert": {"num_attention_heads": 4, "intermediate_size": 48},
}


def _tokenizer(
    alphabet: str | None = None,
    *,
    pad: str | None = PAD,
    bos: bool = True,
    eos: bool = True,
    template: str | None = None,
) -> PreTrainedTokenizerFast:
    """One token a character of `alphabet` (by default: a byte), <pad>, <s> and </s> before them; <s> opens a text."""
    characters = list(alphabet) if alphabet else sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([PAD, BOS, EOS, *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    named = {"pad_token": pad, "bos_token": BOS if bos else None, "eos_token": EOS if eos else None}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in named.items() if token},
    )
    wrapped.chat_template = template
    return wrapped


def _weights(auto: type, tokenizer: PreTrainedTokenizerFast, arch: str, seed: int, **changes):
    """A model of `arch` for a tokenizer, its weights drawn with `seed`."""
    settings = {
        # transformers gives the tokenizer of a Qwen2 an <|endoftext|>.
        "vocab_size": len(tokenizer) + (arch == "qwen2"),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = AutoConfig.for_model(arch, **{**settings, **SHAPES[arch], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return _tokenizer


@pytest.fixture(scope="session")
def make_language(tmp_path_factory) -> Callable[..., str]:
    """A directory of a causal language model: (tokenizer, arch, seed, eos_scale, changes of its config)."""

    def make(tokenizer=None, arch="llama", *, seed=0, eos_scale=2.5, **changes) -> str:
        tokenizer = tokenizer or _tokenizer(template=CHAT_TEMPLATE)
        model = _weights(AutoModelForCausalLM, tokenizer, arch, seed, **changes)
        with torch.no_grad():  # so that some texts end early, and some do not
            model.get_output_embeddings().weight[tokenizer.eos_token_id] *= eos_scale
        return _save(tmp_path_factory.mktemp("language"), model, tokenizer)

    return make


@pytest.fixture(scope="session")
def make_reward(tmp_path_factory) -> Callable[..., str]:
    """A directory of a reward model (or of another classifier), as plain transformers writes one."""

    def make(tokenizer=None, arch="llama", *, seed=1, num_labels=1, **changes) -> str:
        tokenizer = tokenizer or _tokenizer(template=CHAT_TEMPLATE)
        changes = {"num_labels": num_labels, **changes}
        model = _weights(AutoModelForSequenceClassification, tokenizer, arch, seed, **changes)
        return _save(tmp_path_factory.mktemp("reward"), model, tokenizer)

    return make


def _save(directory: Path, model, tokenizer) -> str:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def language_dir(make_language) -> str:
    """A Llama of 259 tokens."""
    return make_language()


@pytest.fixture(scope="session")
def reward_dir(make_reward) -> str:
    """A Llama reward model for `language_dir`."""
    return make_reward()


@pytest.fixture(scope="session")
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Twelve tokens in all: small enough to enumerate."""
    return _tokenizer("abcdefghi")


@pytest.fixture(scope="session")
def toy_language_dir(make_language, toy_tokenizer) -> str:
    return make_language(toy_tokenizer, seed=2, eos_scale=1.0)


@pytest.fixture(scope="session")
def toy_reward_dir(make_reward, toy_tokenizer) -> str:
    return make_reward(toy_tokenizer, seed=3)


@pytest.fixture(scope="session")
def plain() -> Callable[[str], torch.nn.Module]:
    """A model of a directory as plain transformers runs it: its own attention, no cache of ours."""

    def load(directory: str) -> torch.nn.Module:
        classifier = AutoConfig.from_pretrained(directory).architectures[0].endswith("ForSequenceClassification")
        auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
        return auto.from_pretrained(directory, dtype=torch.float32).eval()

    return load


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[[str], PreTrainedTokenizerFast]:
    return AutoTokenizer.from_pretrained


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def make_bucket(s3_server, tmp_path_factory) -> Callable[[pytest.MonkeyPatch], str]:
    """A fresh bucket, on the S3 at the address that the environment gives from here on; copies of it are no user's."""

    def make(patch: pytest.MonkeyPatch) -> str:
        import boto3

        for name, value in {
            "AWS_ENDPOINT_URL": s3_server,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "RGTG_CACHE": str(tmp_path_factory.mktemp("cache")),
        }.items():
            patch.setenv(name, value)
        bucket = f"bucket-{uuid.uuid4().hex}"
        boto3.client("s3").create_bucket(Bucket=bucket)
        return f"s3://{bucket}"

    return make


@pytest.fixture
def s3(make_bucket, monkeypatch) -> str:
    """A bucket of this test's own."""
    return make_bucket(monkeypatch)


@pytest.fixture(params=["local", "remote"])
def root(request, tmp_path) -> str:
    """A directory that may not exist yet, on the disk and on S3."""
    return request.getfixturevalue("s3") if request.param == "remote" else str(tmp_path / "local")


@pytest.fixture
def faulty(s3, s3_server, monkeypatch) -> Iterator[FaultyS3]:
    """The way to the bucket of `s3` from here on: it fails as its `plan` says."""
    with FaultyS3(s3_server) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server
