"""Small language models of transformers decode 32 tokens as PyTorch does, one by one: with the key/value cache kept
inside (prefill and decode share it), and with the cache passed in and out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, StaticCache

from transpiler import Package, transpile

VOCABULARY, PROMPT, TOKENS, LENGTH = 61, 6, 32, 48


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> Any:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config).eval()


MODELS = {"llama": llama, "gpt2": gpt2}


class Inside(nn.Module):
    """A language model that keeps its cache, and with it the position, in buffers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        self.cache = StaticCache(config=config, max_cache_len=LENGTH)
        self.cache.early_initialization(
            1, heads, config.hidden_size // config.num_attention_heads, torch.float32, torch.device("cpu")
        )
        for index, layer in enumerate(self.cache.layers):
            for name in ("keys", "values", "cumulative_length"):
                self.register_buffer(f"{name}_{index}", getattr(layer, name), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.cache.layers):
            for name in ("keys", "values", "cumulative_length"):
                setattr(layer, name, getattr(self, f"{name}_{index}"))
        logits: torch.Tensor = self.model(ids, past_key_values=self.cache, use_cache=True).logits
        return logits


def greedy(model: Any, prompt: torch.Tensor, dtype: torch.dtype) -> tuple[list[int], list[np.ndarray]]:
    """PyTorch's own decoding with its growing cache: tokens, and the logits that chose each."""
    model = model.to(dtype)
    cache, ids, tokens, logits = DynamicCache(), prompt, [], []
    with torch.no_grad():
        for _ in range(TOKENS):
            out = model(ids, past_key_values=cache, use_cache=True)
            logits.append(out.logits[:, -1].double().numpy())
            ids = out.logits[:, -1:].argmax(-1)
            tokens.append(int(ids))
    model.to(torch.float32)
    return tokens, logits


def decode(first: np.ndarray, step: Callable[[np.ndarray], np.ndarray]) -> tuple[list[int], list[np.ndarray]]:
    """The same from logits of the prompt and a function of one token."""
    logits, tokens = [first], [int(first.argmax())]
    while len(tokens) < TOKENS:
        logits.append(step(np.array([[tokens[-1]]])))
        tokens.append(int(logits[-1].argmax()))
    return tokens, logits


def check(model: Any, prompt: torch.Tensor, got: tuple[list[int], list[np.ndarray]]) -> None:
    tokens, single = greedy(model, prompt, torch.float32)
    exact_tokens, exact = greedy(model, prompt, torch.float64)
    assert got[0] == tokens == exact_tokens
    assert len(set(tokens)) > 1, "a model that says one word is no test"
    for ours, one, two in zip(got[1], single, exact, strict=True):
        bound = 4 * np.abs(one - two).max() + 128 * np.finfo(np.float32).eps * np.abs(two).max()
        assert np.abs(ours - two).max() <= bound


@pytest.mark.parametrize("name", MODELS)
def test_with_the_cache_inside(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    inner = MODELS[name]()
    prompts = torch.randint(3, VOCABULARY, (3, 1, PROMPT))
    package = transpile(
        Inside(inner), functions={"prefill": (prompts[0],), "decode": (prompts[0][:, :1],)},
        name=name, out=tmp_path, test=True,
    )  # fmt: skip
    model = package.load()
    assert len(model.state) == 6
    text = (package.path / "src" / name / "model.py").read_text()
    assert text.count(" = k.index_put_in_place") == 2 * 2 * 2, (
        "keys and values of two layers, in two functions, are not copied"
    )
    sessions = [model, model.session(), model.session()]
    for session, prompt in zip(sessions, prompts, strict=True):
        first = session.prefill(prompt.numpy())[:, -1]
        check(inner, prompt, decode(first, lambda ids, session=session: session.decode(ids)[:, -1]))
        assert session.state["cumulative_length_1"] == PROMPT + TOKENS - 1
    model.reset()
    first = model.prefill(prompts[1].numpy())[:, -1]
    check(inner, prompts[1], decode(first, lambda ids: model.decode(ids)[:, -1]))


class Growing(nn.Module):
    """Prefill of any prompt, then steps over a cache that grows by one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def prefill(self, ids):
        out = self.model(ids, use_cache=True)
        return out.logits, out.past_key_values

    def decode(self, token, cache):
        out = self.model(token, past_key_values=cache, use_cache=True)
        return out.logits, out.past_key_values


@pytest.fixture(scope="module", params=[pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def growing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Package]:
    torch.manual_seed(3)
    inner = MODELS[request.param]()
    prompt = torch.randint(3, VOCABULARY, (1, PROMPT))
    with torch.no_grad():
        cache = inner(prompt, use_cache=True).past_key_values
    package = transpile(
        Growing(inner), functions={"prefill": (prompt,), "decode": (prompt[:, :1], cache)},
        dynamic=["prefill.ids.1=length:1..24", "cache.2=past:1..63"],
        name=f"{request.param}_growing", out=tmp_path_factory.mktemp("growing"),
    )  # fmt: skip
    return inner, package


def test_with_a_growing_cache(growing: tuple[Any, Package]) -> None:
    """Prompts of one token, of an odd number and of the most that is allowed, one after the other on one model."""
    inner, package = growing
    model = package.load()
    for length in (PROMPT, 1, 24, 7):
        prompt = torch.randint(3, VOCABULARY, (1, length))
        logits, held = model.prefill(prompt.numpy())

        def step(ids: np.ndarray) -> np.ndarray:
            nonlocal held
            logits, held = model.decode(ids, held)
            return np.asarray(logits[:, -1])

        check(inner, prompt, decode(logits[:, -1], step))
        assert {array.shape[2] for pair in held for array in pair} == {length + TOKENS - 1}


def test_guards_of_a_growing_cache(growing: tuple[Any, Package]) -> None:
    _, package = growing
    model = package.load()
    _, held = model.prefill(np.ones((1, 5), np.int64))
    (key, value), *others = held
    with pytest.raises(ValueError, match=r"cache_0_1: dimension 2 \(past\) is 4, expected 5: past is 5 in cache_0_0"):
        model.decode(np.ones((1, 1), np.int64), [(key, value[:, :, 1:]), *others])
    with pytest.raises(ValueError, match=r"ids: dimension 1 \(length\) is 25, allowed 1\.\.24"):
        model.prefill(np.ones((1, 25), np.int64))
    described = package.load().manifest["functions"]
    assert {name: [s["name"] for s in entry["symbols"]] for name, entry in described.items()} | {
        package.load().manifest["function"]: [s["name"] for s in package.load().manifest["symbols"]]
    } == {"prefill": ["length"], "decode": ["past"]}


class Outside(nn.Module):
    """One step of a language model over a window of past keys and values, most of which a mask hides."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids, position, mask, cache):
        out = self.model(ids, past_key_values=cache, position_ids=position, attention_mask=mask, use_cache=True)
        return out.logits, out.past_key_values


@pytest.mark.parametrize("name", MODELS)
def test_with_the_cache_passed_in_and_out(tmp_path: Path, name: str) -> None:
    """The cache is a list of (key, value) pairs, without transformers at run time. Its size is fixed: the oldest entry,
    which nothing sees yet, is dropped."""
    torch.manual_seed(2)
    inner = MODELS[name]()
    prompt = torch.randint(3, VOCABULARY, (1, PROMPT))
    heads = 2 if name == "llama" else 4
    cache = DynamicCache()
    for layer in range(2):
        cache.update(*torch.randn(2, 1, heads, LENGTH, 8), layer)
    mask = torch.ones(1, LENGTH + 1, dtype=torch.int64)
    example = (prompt[:, :1], torch.tensor([[LENGTH]]), mask, cache)
    model = transpile(Outside(inner), args=example, name=f"{name}_step", out=tmp_path, test=True).load()
    held = [(np.zeros((1, heads, LENGTH, 8), np.float32),) * 2] * 2
    seen = 0

    def step(ids: np.ndarray) -> np.ndarray:
        nonlocal held, seen
        visible = np.zeros((1, LENGTH + 1), np.int64)
        visible[:, LENGTH - seen :] = 1
        logits, new = model(ids, np.array([[seen]]), visible, held)
        assert isinstance(new, list)
        assert isinstance(new[0], tuple)
        held, seen = [(key[:, :, 1:], value[:, :, 1:]) for key, value in new], seen + 1
        return np.asarray(logits[:, -1])

    for token in prompt[0]:
        first = step(token.reshape(1, 1).numpy())
    check(inner, prompt, decode(first, step))
