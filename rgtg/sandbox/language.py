"""The sandbox's language model: a byte-level BPE tokenizer and a Llama of half a million parameters.

Both are trained from nothing on reviews of `world` and saved as any Hugging Face model directory. The model has seen
good and bad reviews alike, so that what guidance adds is guidance's own.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from rgtg.sandbox import world
from rgtg.sandbox.sizes import FULL, LanguageSpec

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"  # ids 0, 1, 2
BOS_ID = 1

# Messages become plain text, joined by the space that stands between a prompt and a review. The tokenizer adds BOS.
CHAT_TEMPLATE = "{{ bos_token }}{{ messages | map(attribute='content') | map('trim') | join(' ') }}"

Log = Callable[[str], None]


def train_tokenizer(texts: list[str], vocab: int, positions: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocab` tokens that puts one BOS before a text and gives every text back."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all bytes, so that no text is out of reach
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=[PAD, BOS, EOS], initial_alphabet=alphabet, show_progress=False
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=positions,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def train_language(directory: Path, seed: int = 0, log: Log = print, spec: LanguageSpec = FULL.language) -> None:
    """Train tokenizer and model on sampled reviews and save both in `directory`; the caller's random state is kept."""
    tokenizer = train_tokenizer(world.texts(spec.tokenizer_texts, seed), spec.vocab, spec.positions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_config(tokenizer, spec))
    parameters = sum(weight.numel() for weight in model.parameters())
    log(f"sandbox: training a language model of {parameters:,} parameters on made-up reviews, once (then cached)")
    # One thread: a second one gains 1.7 times on an idle machine and loses 13 times on a busy one, where the threads
    # of such small products wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _fit(model, _packed(tokenizer, spec, seed + 1), spec, log)
    finally:
        torch.set_num_threads(threads)
    disable_progress_bar()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _config(tokenizer: PreTrainedTokenizerFast, spec: LanguageSpec) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=spec.positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _packed(tokenizer: PreTrainedTokenizerFast, spec: LanguageSpec, seed: int) -> torch.Tensor:
    """Token ids (steps, rows, positions) of one stream BOS text EOS BOS text EOS ..., every text seen once."""
    shape = (spec.steps, spec.rows, spec.positions)
    stream: list[int] = []
    while len(stream) < math.prod(shape):
        for ids in tokenizer(world.texts(1000, seed)).input_ids:
            stream += [*ids, tokenizer.eos_token_id]
        seed += 1
    return torch.tensor(stream[: math.prod(shape)]).view(shape)


def _fit(model: LlamaForCausalLM, batches: torch.Tensor, spec: LanguageSpec, log: Log) -> None:
    """Next-token training on batches (steps, rows, positions): AdamW, a short warm-up, then cosine to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    warmup = max(1, spec.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / spec.steps))),
    )
    model.train()
    start, losses = time.monotonic(), []
    for step, ids in enumerate(batches, 1):
        loss = model(input_ids=ids, position_ids=_positions(ids), labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step % math.ceil(spec.steps / 8) == 0 or step == spec.steps:
            spent = time.monotonic() - start
            mean = torch.stack(losses).mean().item()  # over the steps since the last line
            log(
                f"sandbox: step {step}/{spec.steps}, loss {mean:.3f}, {step * ids.numel() / spent:,.0f} tokens/s, "
                f"ETA {spent / step * (spec.steps - step):.0f} s"
            )
            losses = []
    model.eval()


def _positions(ids: torch.Tensor) -> torch.Tensor:
    """(rows, positions) token ids -> each token's position in its own text.

    transformers reads from them where texts begin and keeps attention within each. Without that, the model learns
    later which product it writes about.
    """
    index = torch.arange(ids.shape[1]).expand_as(ids)
    return index - index.where(ids == BOS_ID, 0).cummax(1).values
