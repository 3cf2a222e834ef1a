"""Decoder: both models, a method and an engine behind two calls, `generate` and `score`."""

from dataclasses import dataclass
from datetime import date
from math import isfinite
from typing import Any, Literal

from rgtg.chat import Prompt, check_prompt, decode_response, encode_prompt
from rgtg.chat import prompt_id as id_of_prompt
from rgtg.decoding.cuda_graphs import STRIDE, cuda_capture
from rgtg.decoding.engine import Engine
from rgtg.decoding.request import Request, Sequence
from rgtg.decoding.reward_source import Scorer, TextScorer, TokenScorer
from rgtg.decoding.search import SearchEngine
from rgtg.decoding.token_rule import UNGUIDED, Rule, Steering
from rgtg.decoding_settings import DecodingSettings
from rgtg.errors import RowError, UserError
from rgtg.methods import METHODS
from rgtg.models.ensemble import Combine
from rgtg.models.language import LanguageModel
from rgtg.models.loading import num_embeddings
from rgtg.models.packed import pack
from rgtg.models.reward import RewardModel, check_trained
from rgtg.models.shapes import SLOT_MULTIPLE, round_up
from rgtg.models.text_reward import TextReward
from rgtg.text_score import FINAL, score


@dataclass(frozen=True)
class Completion:
    """One completion. Lists have one entry a generated token, the EOS included; `text` is without it."""

    text: str
    token_ids: list[int]
    num_tokens: int
    finish_reason: str  # "stop" at an EOS, "length" at the limit
    reward: float | None  # of the whole completion: the last of token_rewards; None without a reward model
    score: float | None  # what ranks it: one number of all its token_rewards, see text_score.py
    token_rewards: list[float] | None  # r(x, y[:i]) for i = 1..num_tokens; None where each would cost a forward
    logprob: float  # log p(y | x) of the language model, in nats
    guided_logprob: float | None  # log pi(y | x) of the sampling policy; 0 where greedy, None above a search
    language_calls: int  # tokens decoded for it, kept or not
    reward_calls: int  # prefixes that the reward model was asked for on the way
    method: str  # by which this one was decoded, with this multiplier of the reward
    beta: float


class Decoder:
    """Guided decoding as a library. Every method raises UserError for mistakes that the caller can fix."""

    def __init__(
        self,
        language: LanguageModel,
        scorer: Scorer | None,
        method: str | DecodingSettings = "pargs",
        *,
        day: date | None = None,
        **options: Any,
    ) -> None:
        """`options` are fields of DecodingSettings beside the method: beta, k, temperature, slots ...

        `day` is the date for chat templates that write one, by default today.
        """
        settings = method if isinstance(method, DecodingSettings) else DecodingSettings.of(method, **options)
        preset = METHODS[settings.method]
        if preset.needs_reward and scorer is None:
            raise UserError(
                f"the method {settings.method!r} needs a reward model; give one, or use the method 'unguided'"
            )
        self.language, self.scorer, self.settings, self.method = language, scorer, settings, settings.method
        self.day = day or date.today()
        # Embeddings may be padded beyond the tokens, and not alike in both models.
        self.scorer_vocabulary = scorer.vocabulary if scorer else None
        known = [num_embeddings(language.model), self.scorer_vocabulary]
        vocabulary = min(n for n in known if n)
        self.rule = Rule(
            beta=preset.beta if settings.beta is None else settings.beta,
            k=min((preset.k if settings.k is None else settings.k) or vocabulary, vocabulary),
            greedy=preset.greedy,
            temperature=settings.temperature,
            top_p=settings.top_p,
            reward_transform=preset.reward_transform,
            vocabulary=vocabulary,
        )
        self.segments = settings.segments
        self.score_way = FINAL
        if scorer and not scorer.adds_up:
            self.score_way = settings.score or scorer.score_way
        self.context = min(n for n in (language.context, scorer.context if scorer else None) if n)
        self.engine = self.new_engine(settings.slots)

    def new_engine(self, slots: int) -> Engine:
        """An engine for `slots` completions at once, with caches of its own."""
        slots = round_up(slots, SLOT_MULTIPLE) if slots > 1 else slots
        guidance = self.scorer.guidance(self.method, slots, self.rule.k) if self.scorer else None
        engine = (
            SearchEngine(self.language, guidance, self.rule, slots, self.segments, self.scorer, self.score_way)
            if self.segments and self.scorer
            else Engine(self.language, guidance, self.rule, slots)
        )
        if (
            self.language.device.type == "cuda"
            and self.settings.cuda_graphs
            and (guidance is None or guidance.on_device)
        ):
            engine.use_graphs(cuda_capture(self.language.device), STRIDE)
        return engine

    @classmethod
    def load(
        cls,
        language: str,
        reward: str | list[str] | None = None,
        method: str | DecodingSettings = "pargs",
        *,
        reward_reads: Literal["tokens", "text"] = "tokens",
        combine: Combine = "mean",
        bound_width: float = 1.0,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        day: date | None = None,
        **options: Any,
    ) -> "Decoder":
        """Load models (directories or hub ids) onto one device. `options` are fields of DecodingSettings: beta, k ...

        Of several reward models the rewards are combined. One that `reward_reads` text may be any classifier, with any
        tokenizer: every candidate's text is read anew, which costs that much more.
        """
        day = day or date.today()  # one for all texts, past midnight too
        rewards = [reward] if isinstance(reward, str) else reward or []
        if reward_reads == "text" and len(rewards) > 1:
            raise UserError("an ensemble is of reward models that read tokens; give one that reads text alone")
        for path in rewards:
            if reward_reads == "text":
                TextReward.check(path, "models.reward", trust_remote_code)
            else:
                check_trained(path, trust_remote_code)
        model = LanguageModel.load(language, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        pack(model.model)
        scorer: Scorer | None = None
        if rewards and reward_reads == "text":
            scorer = TextScorer(
                TextReward.load(
                    rewards[0],
                    device=device,
                    dtype=dtype,
                    trust_remote_code=trust_remote_code,
                    what="models.reward",
                    day=day,
                ),
                model.tokenizer,
            )
        elif rewards:
            models = [
                RewardModel.load(
                    path, device=model.device, dtype=model.model.dtype, trust_remote_code=trust_remote_code
                ).eval()
                for path in rewards
            ]
            for reward_model in models:
                reward_model.pack()
            scorer = TokenScorer(models, model.tokenizer, combine, bound_width, day)
        return cls(model, scorer, method, day=day, **options)

    def generate(
        self,
        prompts: list[Prompt],
        *,
        samples: int = 1,
        unguided_samples: int = 0,
        opposed_samples: int = 0,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> list[list[Completion]]:
        """`samples` completions of each prompt. Equal prompts get equal completions: the noise is theirs.

        Behind them come `unguided_samples` of the language model itself, and `opposed_samples` under -beta.
        """
        if isinstance(prompts, str):
            raise UserError("prompts is one text; give a list of prompts")
        if samples < 1 or max_new_tokens < 1:
            raise UserError(f"samples ({samples}) and max_new_tokens ({max_new_tokens}) must be at least 1")
        asked: dict[str, Any] = {"samples": samples, "max_new_tokens": max_new_tokens, "seed": seed}
        asked |= {"unguided_samples": unguided_samples, "opposed_samples": opposed_samples}
        requests = []
        for i, prompt in enumerate(prompts):
            try:
                requests.append(self.request(prompt, **asked))
            except UserError as error:
                raise UserError(f"prompt {i}: {error}") from error
        self.engine.run(requests)
        return [self.completions(request) for request in requests]

    def request(
        self,
        prompt: Any,
        *,
        samples: int,
        unguided_samples: int = 0,
        opposed_samples: int = 0,
        max_new_tokens: int,
        seed: int,
        prompt_id: str | None = None,
    ) -> Request:
        """A prompt as the engine takes it. Raises RowError for what is no prompt, or leaves no room in the context."""
        steering = [Steering(self.rule.beta, self.rule.greedy)] * samples
        steering += [UNGUIDED] * unguided_samples
        steering += [Steering(-self.rule.beta, self.rule.greedy)] * opposed_samples
        if reason := check_prompt(prompt):
            raise RowError(reason)
        ids = encode_prompt(self.language.tokenizer, prompt, self.day)
        reward_ids, reward_text = self.scorer.read(prompt) if self.scorer else ([], "")
        for given, known in ((ids, num_embeddings(self.language.model)), (reward_ids, self.scorer_vocabulary)):
            if given and known and max(given) >= known:
                raise RowError(f"the prompt has the token id {max(given)}, and a model knows {known} tokens")
        length = max(len(ids), len(reward_ids))
        if self.settings.max_prompt_tokens and length > self.settings.max_prompt_tokens:
            raise RowError(
                f"the prompt has {length} tokens, more than max_prompt_tokens ({self.settings.max_prompt_tokens})"
            )
        room = self.context - length
        if room < 1:
            raise RowError(
                f"the prompt has {length} tokens, which leaves no room for a completion in the context of "
                f"{self.context}"
            )
        return Request(
            prompt_id=prompt_id or id_of_prompt(prompt),
            prompt_ids=ids,
            reward_prompt_ids=reward_ids,
            samples=len(steering),
            max_new_tokens=min(max_new_tokens, room),
            seed=seed,
            reward_text=reward_text,
            steering=tuple(steering),
        )

    def completions(self, request: Request) -> list[Completion]:
        """The completions of a finished request in the order of its samples. Raises RowError where one failed."""
        sequences = [request.sequences[sample] for sample in range(request.samples)]
        if error := next((s.error for s in sequences if s.error), None):
            raise RowError(error)
        if self.scorer and not sequences[0].token_rewards:
            rewards = self.scorer.score(request, [s.token_ids for s in sequences])
        else:
            rewards = [s.token_rewards for s in sequences]
        if not all(isfinite(reward) for row in rewards for reward in row):
            raise RowError("the reward model gave a reward that is not finite (NaN or infinite weights?)")
        return [
            self._completion(request, sample, sequence, row)
            for sample, (sequence, row) in enumerate(zip(sequences, rewards, strict=True))
        ]

    def token_rewards(
        self, prompts: list[Prompt], completions: list[str], *, complete: bool = False
    ) -> list[list[float]]:
        """Rewards r(x, y[:i]) of given texts after every token; `complete` says that they end there, and adds the EOS.

        A reward model that reads text gives the last of them alone.
        """
        if self.scorer is None:
            raise UserError("there is no reward model to score with")
        if isinstance(prompts, str) or isinstance(completions, str) or len(prompts) != len(completions):
            raise UserError("give as many completions as prompts, both as lists")
        return self.scorer.score_texts(prompts, completions, complete)

    score = token_rewards  # its former name

    def _completion(self, request: Request, sample: int, sequence: Sequence, rewards: list[float]) -> Completion:
        steering = request.steering_of(sample)
        return Completion(
            text=decode_response(self.language.tokenizer, request.prompt_ids, sequence.token_ids),
            token_ids=sequence.token_ids,
            num_tokens=len(sequence.token_ids),
            finish_reason=sequence.finish_reason,
            reward=rewards[-1] if rewards else None,
            score=score(rewards, self.score_way) if rewards else None,
            token_rewards=rewards if len(rewards) == len(sequence.token_ids) else None,
            logprob=sequence.logprob,
            guided_logprob=sequence.guided_logprob,
            language_calls=sequence.language_calls,
            reward_calls=sequence.reward_calls,
            method="unguided" if steering == UNGUIDED else self.method,
            beta=steering.beta if steering else self.rule.beta,
        )
