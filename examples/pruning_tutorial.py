"""The steps of PyTorch's pruning tutorial, each on a hooked model and on a Program side by side.

    python examples/pruning_tutorial.py

The tutorial (https://docs.pytorch.org/tutorials/intermediate/pruning_tutorial.html) prunes a LeNet
with torch.nn.utils.prune. Every call below is made twice, once there and once through
fxprune.functional. After each section masks, state dict and outputs are held to each other bit for
bit; a difference ends the script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

import fxprune
from fxprune import functional as prune

LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")


class LeNet(nn.Module):
    """Two convolutions and three linear layers, for images of 1 x 32 x 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of ten classes, (n, 10)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        # Python arithmetic on a size: capture keeps the batch dynamic all the same.
        x = x.view(-1, int(x.nelement() / x.shape[0]))
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


@dataclass(frozen=True)
class Pair:
    """One model twice: with torch's hooks, and as a Program.

    Args:
        hooked: what torch.nn.utils.prune works on.
        program: what fxprune works on.
        x: an input to compare outputs on.
    """

    hooked: LeNet
    program: fxprune.Program
    x: Tensor

    @classmethod
    def of_lenet(cls) -> Pair:
        """Make a LeNet and its Program; they share no tensor."""
        model, x = LeNet(), torch.randn(4, 1, 32, 32)
        return cls(model, fxprune.capture(model, (x,)), x)

    def check(self, section: str) -> None:
        """Print the section's name once all is equal.

        Raises:
            RuntimeError: something differs; names it.
        """
        for what, same in self.comparisons():
            if not same:
                raise RuntimeError(f"{section}: {what} differ from those of torch.nn.utils.prune")
        masks, keys = len(self.program.masks), len(self.program.state_dict())
        print(f"  equal bit for bit: {masks} masks, {keys} tensors of the state dict, outputs")

    def comparisons(self) -> Iterator[tuple[str, bool]]:
        """Give what is compared, and whether it is equal."""
        theirs, ours = self.hooked.state_dict(), self.program.state_dict()
        yield "the keys of the state dict, or their order,", list(theirs) == list(ours)
        yield "tensors of the state dict", all(same_bits(theirs[key], ours[key]) for key in theirs)
        masked = {key.removesuffix("_mask") for key in theirs if key.endswith("_mask")}
        yield "the names of masks", masked == set(self.program.masks)
        masks = self.program.masks
        yield "masks", all(same_bits(theirs[f"{name}_mask"], masks[name]) for name in masked)
        yield "outputs", same_bits(self.hooked(self.x), self.program(self.x))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Tell whether two float32 tensors are equal, the sign of zeros included."""
    return torch.equal(a.detach().view(torch.int32), b.detach().view(torch.int32))


def inspect_a_module(pair: Pair) -> None:
    """Nothing is pruned yet: conv1 has two parameters and no buffers."""
    conv1 = pair.program.conv1
    print("  parameters:", [name for name, _ in conv1.named_parameters()])
    print("  buffers:", [name for name, _ in conv1.named_buffers()])


def prune_entries(pair: Pair) -> None:
    """Prune 30 % of a weight at random, then the three smallest entries of a bias."""
    torch.manual_seed(1)
    torch_prune.random_unstructured(pair.hooked.conv1, "weight", amount=0.3)
    torch.manual_seed(1)  # both draw from torch's generator
    prune.random_unstructured(pair.program, "conv1.weight", amount=0.3)

    torch_prune.l1_unstructured(pair.hooked.conv1, "bias", amount=3)
    prune.l1_unstructured(pair.program, "conv1.bias", amount=3)

    conv1 = pair.program.conv1
    print("  parameters:", [name for name, _ in conv1.named_parameters()])
    print("  buffers:", [name for name, _ in conv1.named_buffers()])
    print("  hooks on the hooked conv1:", len(pair.hooked.conv1._forward_pre_hooks))
    print("  hooks on the program's conv1:", len(conv1._forward_pre_hooks))


def prune_again(pair: Pair) -> None:
    """Prune half of conv1's filters by their L2 norm; what is dead already stays dead."""
    torch_prune.ln_structured(pair.hooked.conv1, "weight", amount=0.5, n=2, dim=0)
    prune.ln_structured(pair.program, "conv1.weight", amount=0.5, n=2, dim=0)
    alive = pair.program.masks["conv1.weight"].flatten(1).sum(1)
    print("  entries alive in each filter of conv1:", [int(count) for count in alive])


def save_and_load(pair: Pair) -> None:
    """Masks are buffers, so that they are saved; each side loads what the other has saved."""
    print("  keys of conv1:", [key for key in pair.program.state_dict() if "conv1" in key])
    pair.program.load_state_dict(pair.hooked.state_dict(), strict=True)
    pair.hooked.load_state_dict(pair.program.state_dict(), strict=True)


def make_it_permanent(pair: Pair) -> None:
    """Fold the mask into the weight: conv1.weight is a plain parameter again."""
    torch_prune.remove(pair.hooked.conv1, "weight")
    prune.remove(pair.program, "conv1.weight")
    print("  keys of conv1:", [key for key in pair.program.state_dict() if "conv1" in key])


def prune_many(pair: Pair) -> None:
    """Prune 20 % of each convolution and 40 % of each linear layer: one rule for each kind."""
    for module in pair.hooked.children():
        amount = 0.2 if isinstance(module, nn.Conv2d) else 0.4
        torch_prune.l1_unstructured(module, "weight", amount=amount)
    rules = [
        {"select": {"op": op, "param": "weight"}, "method": "l1_unstructured", "amount": amount}
        for op, amount in (("conv2d", 0.2), ("linear", 0.4))
    ]
    fxprune.prune(pair.program, {"rule": rules}, inplace=True)
    print("  masks:", list(pair.program.masks))


def prune_globally(pair: Pair) -> None:
    """Prune the 20 % of all weights that are smallest, wherever they are."""
    torch_prune.global_unstructured(
        [(getattr(pair.hooked, layer), "weight") for layer in LAYERS],
        pruning_method=torch_prune.L1Unstructured,
        amount=0.2,
    )
    prune.global_unstructured(
        [(pair.program, f"{layer}.weight") for layer in LAYERS],
        pruning_method=prune.L1Unstructured,
        amount=0.2,
    )
    report = fxprune.report(pair.program)
    print(report.lines("conv1.weight"))
    told = {layer: report.sparsity(f"{layer}.weight") for layer in LAYERS}
    if sparsities(pair.hooked) != {**told, "all": report.sparsity()}:
        raise RuntimeError("the report's sparsities differ from those of the hooked model")


def sparsities(model: nn.Module) -> dict[str, float]:
    """Count by hand the share of zeros in each layer's weight, and in all of these."""
    weights = {layer: getattr(model, layer).weight for layer in LAYERS}
    zeros = {layer: int((weight == 0).sum()) for layer, weight in weights.items()}
    sizes = {layer: weight.nelement() for layer, weight in weights.items()}
    shares = {layer: zeros[layer] / sizes[layer] for layer in LAYERS}
    return {**shares, "all": sum(zeros.values()) / sum(sizes.values())}


class EveryOther(torch_prune.BasePruningMethod):
    """A method of one's own: every other entry is pruned."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return `default_mask` with zeros at the entries 0, 2, 4, ..."""
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


class EveryOtherOfProgram(EveryOther, prune.BasePruningMethod):
    """The same for Programs: fxprune's base class has an `apply` that takes one."""


def use_your_own_method(pair: Pair) -> None:
    """Prune the bias of fc3 by a class that neither library knows."""
    EveryOther.apply(pair.hooked.fc3, "bias")
    EveryOtherOfProgram.apply(pair.program, "fc3.bias")
    print("  mask of fc3.bias:", pair.program.masks["fc3.bias"].int().tolist())


SECTIONS: tuple[tuple[Callable[[Pair], None], ...], ...] = (
    # Sections of one group work on the same pair, one after another.
    (inspect_a_module, prune_entries, prune_again, save_and_load, make_it_permanent),
    (prune_many,),
    (prune_globally,),
    (use_your_own_method,),
)


def main() -> list[str]:
    """Run every section, and return the names of those that agree with torch: all of them."""
    torch.manual_seed(0)
    agreed: list[str] = []
    for group in SECTIONS:
        pair = Pair.of_lenet()
        for section in group:
            title = section.__name__.replace("_", " ")
            print(f"{title}: {(section.__doc__ or '').strip()}")
            section(pair)
            pair.check(title)
            agreed.append(title)
    return agreed


if __name__ == "__main__":
    main()
