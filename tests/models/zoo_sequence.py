"""Small sequence models of the zoo: attention, recurrent layers, embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TransformerEncoder(nn.Module):
    """Token embedding, learned positions, torch's own encoder, mean pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.positions = nn.Parameter(torch.randn(1, 6, 8) * 0.1)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions
        return self.head(self.encoder(x).mean(1))


class Attention(nn.Module):
    """Self attention, then a linear layer; attention reads its `out_proj` without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.fc(self.norm(x + y))


class LSTM(nn.Module):
    """A two-layer bidirectional LSTM that is read at its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc(out[:, -1])


class GRU(nn.Module):
    """A GRU of one layer that gives its outputs and its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 6, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, state = self.rnn(x)
        return self.fc(out), state


class RNN(nn.Module):
    """A two-layer Elman network with relu."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 6, num_layers=2, nonlinearity="relu", batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc(out.mean(1))


class TiedEmbedding(nn.Module):
    """A language model whose output weight is its embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(15, 6)
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 15, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        return self.out(x + torch.tanh(self.hidden(x)))


class Bags(nn.Module):
    """Sums of embedding rows, and rows scaled one by one, beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(12, 4, mode="sum")
        self.emb = nn.Embedding(12, 4, padding_idx=0)
        self.fc = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.emb(tokens).amax(1)
        return self.fc(torch.cat([self.bag(tokens), rows], 1))
