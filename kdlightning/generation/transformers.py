"""A generator that runs a local model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Capability, Completion, Request, Sampling, TextGenerator
from kdlightning.generation.contrastive import ContrastiveScores
from kdlightning.generation.option_scoring import mean_nll

Row = tuple[int, int]
"""A request's place in the call, and a sample's number."""


class TransformersGenerator(TextGenerator):
    """A causal or encoder–decoder language model of transformers, on its own device.

    Prompts are padded on the left and decoded in batches with a key-value cache. Each sample draws from its own
    random numbers, made from (seed, request, sample number), so an answer does not depend on what shares its batch,
    up to rounding: a different padding can tip a near-tie. A request with a contrast takes the place of two samples in
    its batch, one for each context.

    Args:
        model: the model. It answers in evaluation mode, and is left in the mode that it was in.
        tokenizer: its tokenizer, or the path or name of one.
        batch_size: samples decoded together.
        name: who answers, in the store; None makes it from the weights, so that a trained student is another one.
        add_special_tokens: whether prompts get the tokenizer's special tokens (messages have their template's own).
    """

    capabilities: frozenset[Capability] = frozenset({"text", "logits", "answer_start"})

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        batch_size: int = 8,
        name: str | None = None,
        add_special_tokens: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size is {batch_size}: give at least 1")
        if not hasattr(model, "generate"):
            raise ConfigurationError(f"{type(model).__name__} is no language model: it has no generate()")
        if isinstance(tokenizer, str):
            from kdlightning.text.tokenizers import load_tokenizer

            tokenizer = load_tokenizer(tokenizer)
        self.model: Any = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.name = name
        self.add_special_tokens = add_special_tokens
        self._pad = _pad_token(tokenizer)

    @property
    def identity(self) -> str:
        """The name, or the weights' fingerprint."""
        return self.name or f"{type(self.model).__name__}:{fingerprint(self.model)}"

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Decodes all samples of all requests; a prompt that is too long is a failure."""
        answers = [Answer(request) for request in requests]
        # One context a request, or two: the second is the one that its answer is told from.
        tokens = [self._contexts(request) for request in requests]
        groups: dict[tuple[Sampling, tuple[str, ...], str, float | None], list[Row]] = {}
        self._answer_options({place: tokens[place][0] for place, each in enumerate(requests) if each.options}, answers)
        for place, request in enumerate(requests):
            if request.options:
                continue
            longest = max(len(context) for context in tokens[place])
            room = self._room(longest)
            if room < 1:
                reason = f"the prompt has {longest} tokens, and the model takes {longest + room}"
                answers[place] = Answer.refused(request, reason)
                continue
            # Samples with less room than they were given decode apart, so that they do not cut the others short.
            sampling = replace(request.sampling, max_tokens=min(request.sampling.max_tokens, room))
            numbers = request.numbers[:1] if sampling.greedy else request.numbers
            # A decoder's beginnings have one length in a batch; behind a prompt they are part of it.
            begun = request.answer_start if self.model.config.is_encoder_decoder else ""
            weight = None if request.contrast is None else request.contrast.weight
            group = groups.setdefault((sampling, request.stop, begun, weight), [])
            group += [(place, number) for number in numbers]
        for (sampling, stop, begun, weight), rows in groups.items():
            # Prompts of like length share a batch: less padding.
            rows.sort(key=lambda row: len(tokens[row[0]][0]))
            size = self.batch_size if weight is None else max(1, self.batch_size // 2)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                contexts = [list(each) for each in zip(*(tokens[place] for place, _ in part), strict=True)]
                texts = self._decode(contexts, part, requests, sampling, stop, begun, weight)
                for (place, number), completion in zip(part, texts, strict=True):
                    request = requests[place]
                    same = request.numbers if sampling.greedy else [number]
                    answers[place].completions.update(dict.fromkeys(same, completion))
        return answers

    def _answer_options(self, prompts: dict[int, list[int]], answers: list[Answer]) -> None:
        """Writes the likelihoods of given texts behind prompts, by place, into the answers."""
        if prompts and self.model.config.is_encoder_decoder:
            raise ConfigurationError(f"{type(self.model).__name__} is no causal model, which options are asked of")
        options: dict[int, list[tuple[int, ...]]] = {}
        for place, prompt in prompts.items():
            request = answers[place].request
            own = [tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in request.options]
            length = len(prompt) + max(map(len, own)) - 1
            if not prompt or not all(own):
                answers[place] = Answer.refused(request, "the prompt or an option has no token")
            elif self._room(length) < 0:
                reason = f"the prompt has {len(prompt)} tokens, too many with its options"
                answers[place] = Answer.refused(request, reason)
            else:
                options[place] = own
        with _evaluating(self.model):
            asked = [prompts[place] for place in options]
            scores = mean_nll(self.model, asked, list(options.values()), self._pad, self.batch_size)
        for place, found in zip(options, scores, strict=True):
            completion = Completion(json.dumps(found))
            answers[place].completions.update(dict.fromkeys(answers[place].request.numbers, completion))

    def _contexts(self, request: Request) -> list[list[int]]:
        other = [] if request.contrast is None else [replace(request, prompt=request.contrast.prompt)]
        return [self._tokens(each) for each in (request, *other)]

    def _tokens(self, request: Request) -> list[int]:
        tokens = self._prompt_tokens(request)
        return tokens if self.model.config.is_encoder_decoder else tokens + self._start_tokens(request.answer_start)

    def _start_tokens(self, text: str) -> list[int]:
        """An answer's beginning, tokenised apart, as `Example.given` is."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _prompt_tokens(self, request: Request) -> list[int]:
        if request.prompt is not None:
            return prompt_tokens(
                self.tokenizer,
                request.prompt,
                keep_end=self.model.config.is_encoder_decoder,
                special=self.add_special_tokens,
            )
        if not getattr(self.tokenizer, "chat_template", None):
            raise ConfigurationError("the tokenizer has no chat template: send a prompt instead of messages")
        messages = [dict(message) for message in request.messages or ()]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _room(self, prompt: int) -> int:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is None or self.model.config.is_encoder_decoder:
            return 1 << 30
        return int(limit) - prompt

    def _decode(
        self,
        contexts: list[list[list[int]]],
        rows: Sequence[Row],
        requests: Sequence[Request],
        sampling: Sampling,
        stop: tuple[str, ...],
        begun: str,
        weight: float | None,
    ) -> list[Completion]:
        prompts = [prompt for context in contexts for prompt in context]
        length = max(1, *(len(prompt) for prompt in prompts))
        device = next(self.model.parameters()).device
        ids = torch.full((len(prompts), length), self._pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            if prompt:
                ids[row, length - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
                mask[row, length - len(prompt) :] = 1
        ends = _end_tokens(self.model, self.tokenizer)
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self._pad,
            eos_token_id=ends or None,
            bos_token_id=self.tokenizer.bos_token_id,
        )
        inputs: dict[str, Tensor] = {}
        start = length
        if self.model.config.is_encoder_decoder:
            first = [_decoder_start(self.model), *self._start_tokens(begun)]
            inputs["decoder_input_ids"] = torch.tensor([first] * len(prompts), device=device)
            start = len(first)
        criteria: list[StoppingCriteria] = [_StopTexts(self.tokenizer, stop, start)] if stop else []
        processors: list[LogitsProcessor] = []
        if weight is not None:
            processors.append(ContrastiveScores(weight, ends, criteria))
        if not sampling.greedy:
            seeds = [_seed(requests[place], number) for place, number in rows]
            processors.append(_SeededChoice(sampling, seeds * len(contexts)))
        with _evaluating(self.model), torch.no_grad():
            out = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                **inputs,
                generation_config=config,
                logits_processor=processors,
                stopping_criteria=criteria,
            )
        return [self._completion(row, ends, stop) for row in out[: len(rows), start:].tolist()]

    def _completion(self, tokens: list[int], ends: list[int], stop: tuple[str, ...]) -> Completion:
        finish = "length"
        for place, token in enumerate(tokens):
            if token in ends:
                tokens, finish = tokens[:place], "stop"
                break
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        cut = min((place for place in (text.find(each) for each in stop) if place >= 0), default=-1)
        return Completion(text[:cut], "stop") if cut >= 0 else Completion(text, finish)


class _SeededChoice(LogitsProcessor):
    """Leaves one token a row: the one that this row's own random number falls on."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self.sampling = sampling
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.draws = torch.stack([torch.rand(sampling.max_tokens, generator=each) for each in generators])
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float() / self.sampling.temperature
        order = scores.argsort(dim=-1, descending=True, stable=True)
        mass = scores.gather(-1, order).softmax(dim=-1)
        before = mass.cumsum(dim=-1) - mass
        kept = before < self.sampling.top_p
        if self.sampling.top_k:
            kept[:, self.sampling.top_k :] = False
        mass = mass * kept
        total = mass.cumsum(dim=-1)
        draw = self.draws[:, self.step : self.step + 1].to(scores.device) * total[:, -1:]
        self.step += 1
        last = kept.sum(dim=-1, keepdim=True) - 1
        chosen = order.gather(-1, torch.searchsorted(total, draw, right=True).minimum(last))
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


class _StopTexts(StoppingCriteria):
    """Ends the rows whose new text holds a stop text."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], start: int) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.start = start
        # The rest was looked at in earlier steps. A token is at least a byte, so this many hold any stop text.
        self.tail = max(len(text.encode()) for text in stop) + 8

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: Any) -> Tensor:
        rows = input_ids[:, max(self.start, input_ids.shape[1] - self.tail) :].tolist()
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        ended = [any(stop in text for stop in self.stop) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def prompt_tokens(tokenizer: Any, text: str, *, keep_end: bool, special: bool = True) -> list[int]:
    """A prompt's tokens, for training and generation alike.

    Args:
        tokenizer: the tokenizer.
        text: the prompt.
        keep_end: keep an end token that the tokenizer adds: encoders expect it, and it would end a continuation.
        special: whether the tokenizer adds its special tokens.
    """
    tokens = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    while not keep_end and tokens and tokens[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        tokens.pop()
    return tokens


def fingerprint(model: nn.Module) -> str:
    """A short hash of names, shapes and a spread of values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        spread = flat[:: max(1, flat.numel() // 1024)].float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(spread.numpy().tobytes())
    return digest.hexdigest()[:16]


def _seed(request: Request, number: int) -> int:
    digest = hashlib.sha256(f"{request.key()}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _pad_token(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ConfigurationError("the tokenizer has neither a pad nor an end token: set tokenizer.pad_token")


def _decoder_start(model: Any) -> int:
    """The token that a decoder begins with."""
    for settings in (model.config, getattr(model, "generation_config", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if getattr(settings, name, None) is not None:
                return int(getattr(settings, name))
    raise ConfigurationError(f"{type(model).__name__} has no decoder_start_token_id: give it in the model's config")


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """End tokens of the model's generation settings and of the tokenizer."""
    ends: list[int] = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    theirs = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends += [theirs] if isinstance(theirs, int) else list(theirs or [])
    return list(dict.fromkeys(ends))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
