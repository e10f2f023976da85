"""Named small real models, each with example inputs of batch 4, the same for the same seed.

`ZOO` maps a name to a factory; `ZOO["lenet"]()` gives `(model, args, kwargs)`. The batch is
dimension 0 of every input.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tests.models import zoo_sequence, zoo_unusual, zoo_vision

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Case = tuple[nn.Module, Args, Kwargs]

BATCH = 4


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Run under a seed and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _images(seed: int, model: Callable[[], nn.Module], channels: int, size: int) -> Case:
    with _seeded(seed):
        return model(), (torch.randn(BATCH, channels, size, size),), {}


def _sequences(seed: int, model: Callable[[], nn.Module], length: int, width: int) -> Case:
    with _seeded(seed):
        return model(), (torch.randn(BATCH, length, width),), {}


def _tokens(seed: int, model: Callable[[], nn.Module], length: int, vocabulary: int) -> Case:
    with _seeded(seed):
        return model(), (torch.randint(0, vocabulary, (BATCH, length)),), {}


def _vectors(seed: int, model: Callable[[], nn.Module], width: int) -> Case:
    with _seeded(seed):
        return model(), (torch.randn(BATCH, width),), {}


def lenet(seed: int = 0) -> Case:
    """The pruning tutorial's LeNet."""
    return _images(seed, zoo_vision.LeNet, 1, 32)


def residual_cnn(seed: int = 0) -> Case:
    """Two residual blocks with batch norm, one with a downsampled skip."""
    return _images(seed, zoo_vision.ResidualCNN, 3, 12)


def depthwise_se(seed: int = 0) -> Case:
    """An inverted bottleneck with a depthwise convolution and squeeze-excite."""
    return _images(seed, zoo_vision.DepthwiseSE, 4, 8)


def concat(seed: int = 0) -> Case:
    """A dense block."""
    return _images(seed, zoo_vision.Concat, 3, 6)


def stochastic_depth(seed: int = 0) -> Case:
    """Residual branches that are dropped at random in train mode."""
    return _images(seed, zoo_vision.StochasticDepthCNN, 3, 8)


def aux_head(seed: int = 0) -> Case:
    """A tuple of two outputs in train mode, a tensor in eval mode."""
    return _images(seed, zoo_vision.AuxHead, 3, 8)


def frozen_bn(seed: int = 0) -> Case:
    """Batch norm that stays in eval mode when the model trains."""
    return _images(seed, zoo_vision.FrozenBN, 3, 8)


def transformer_encoder(seed: int = 0) -> Case:
    """`nn.TransformerEncoder` with two layers and dropout.

    Without gradients torch takes its fused path in eval mode, which rounds differently:
    compare bits with gradients on.
    """
    return _tokens(seed, zoo_sequence.TransformerEncoder, 6, 20)


def attention(seed: int = 0) -> Case:
    """`nn.MultiheadAttention` on itself, then a linear layer."""
    return _sequences(seed, zoo_sequence.Attention, 5, 8)


def lstm(seed: int = 0) -> Case:
    """Two bidirectional LSTM layers."""
    return _sequences(seed, zoo_sequence.LSTM, 7, 5)


def gru(seed: int = 0) -> Case:
    """One GRU layer, outputs and state."""
    return _sequences(seed, zoo_sequence.GRU, 7, 5)


def rnn(seed: int = 0) -> Case:
    """Two Elman layers."""
    return _sequences(seed, zoo_sequence.RNN, 7, 5)


def tied_embedding(seed: int = 0) -> Case:
    """A language model with `out.weight is emb.weight`."""
    return _tokens(seed, zoo_sequence.TiedEmbedding, 5, 15)


def embedding_bag(seed: int = 0) -> Case:
    """`nn.EmbeddingBag` beside `nn.Embedding` with a padding row."""
    return _tokens(seed, zoo_sequence.Bags, 4, 12)


def called_twice(seed: int = 0) -> Case:
    """One module called twice."""
    return _vectors(seed, zoo_unusual.CalledTwice, 6)


def shared_module(seed: int = 0) -> Case:
    """One module registered under two names."""
    return _vectors(seed, zoo_unusual.SharedModule, 5)


def buffers(seed: int = 0) -> Case:
    """Buffers of every kind, an empty submodule and an unused parameter."""
    return _vectors(seed, zoo_unusual.Buffers, 4)


def kwargs_dict(seed: int = 0) -> Case:
    """Keyword inputs with None defaults and a dict of outputs."""
    with _seeded(seed):
        model = zoo_unusual.KwargsDict()
        kwargs = {"context": torch.randn(BATCH, 3), "mask": torch.rand(BATCH, 6) > 0.3}
        return model, (torch.randn(BATCH, 6, 5),), kwargs


def misc_convs(seed: int = 0) -> Case:
    """Convolutions and norms of many kinds, two inputs."""
    with _seeded(seed):
        model = zoo_unusual.MiscConvs()
        return model, (torch.randn(BATCH, 3, 8), torch.randn(BATCH, 2, 3, 4, 4)), {}


QUICK = (
    "residual_cnn",
    "aux_head",
    "frozen_bn",
    "attention",
    "lstm",
    "tied_embedding",
    "called_twice",
    "kwargs_dict",
)
"""One of each kind: images, two graphs, flags, attention, recurrence, ties, calls, keywords."""

ZOO: dict[str, Callable[..., Case]] = {
    factory.__name__: factory
    for factory in (
        lenet,
        residual_cnn,
        depthwise_se,
        concat,
        stochastic_depth,
        aux_head,
        frozen_bn,
        transformer_encoder,
        attention,
        lstm,
        gru,
        rnn,
        tied_embedding,
        embedding_bag,
        called_twice,
        shared_module,
        buffers,
        kwargs_dict,
        misc_convs,
    )
}
