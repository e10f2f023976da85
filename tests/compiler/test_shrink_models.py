"""Models with dead heads, neurons and filters: masked and shrunk do the same in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import fxprune.functional
from fxprune.program.program import Program
from tests.models.zoo import QUICK, ZOO
from tests.tools.capture_helpers import program_of
from tests.tools.profiles import thorough_but
from tests.tools.shrink_checks import BOUND, gap, parameters, shrink_and_check

transformers = pytest.importorskip("transformers")


class UNet(nn.Module):
    """Two levels down, and up again through transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.d1, self.d2, self.mid = _block(3, 8), _block(8, 16), _block(16, 32)
        self.u2, self.c2 = nn.ConvTranspose2d(32, 16, 2, 2), _block(32, 16)
        self.u1, self.c1 = nn.ConvTranspose2d(16, 8, 2, 2), _block(16, 8)
        self.out, self.pool = nn.Conv2d(8, 2, 1), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.d1(x)
        b = self.d2(self.pool(a))
        b = self.c2(torch.cat([self.u2(self.mid(self.pool(b))), b], 1))
        return self.out(self.c1(torch.cat([self.u1(b), a], 1)))


def _block(channels: int, width: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def rows(program: Program, name: str, count: int) -> None:
    """Mask the first rows of a parameter."""
    mask = torch.ones_like(program.parameter(name))
    mask[:count] = 0
    fxprune.functional.custom_from_mask(program, name, mask)


def columns(program: Program, name: str, first: int, last: int) -> None:
    """Mask some columns of a matrix."""
    mask = torch.ones_like(program.parameter(name))
    mask[:, first:last] = 0
    fxprune.functional.custom_from_mask(program, name, mask)


def named(program: Program, *ends: str) -> Iterator[str]:
    return (name for name in program.aliases if name.endswith(ends))


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 60, (2, 7))}


def unet() -> Program:
    program = fxprune.capture(UNet().double(), (torch.randn(2, 3, 16, 16).double(),))
    for name in named(program, ".0.weight", ".1.weight", ".1.bias"):
        rows(program, name, program.parameter(name).shape[0] // 2)
    for up in ("u1", "u2"):
        half = program.parameter(f"{up}.bias").shape[0] // 2
        columns(program, f"{up}.weight", 0, half)
        rows(program, f"{up}.bias", half)
    return program


def encoder() -> Program:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    program = fxprune.capture(model, (torch.randn(2, 5, 32).double(),))
    for name in named(program, "out_proj.weight"):
        columns(program, name, 8, 16)
    for name in named(program, "linear1.weight"):
        rows(program, name, 20)
    return program


def bert() -> Program:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(**sizes, intermediate_size=48, vocab_size=60)
    model = transformers.BertModel(config).double()
    program = fxprune.capture(model, kwargs=tokens())
    for name in named(program, "attention.output.dense.weight"):
        columns(program, name, 8, 16)
        columns(program, name, 24, 32)
    for name in named(program, "intermediate.dense.weight", "intermediate.dense.bias"):
        rows(program, name, 20)
    return program


def llama() -> Program:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        **sizes, num_hidden_layers=2, intermediate_size=48, vocab_size=60, use_cache=False
    )
    program = fxprune.capture(transformers.LlamaForCausalLM(config).double(), kwargs=tokens())
    for name in named(program, "gate_proj.weight"):
        rows(program, name, 20)
    for name in named(program, "o_proj.weight"):
        columns(program, name, 0, 16)
    return program


def gpt2() -> Program:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=20, use_cache=False
    )
    config.bos_token_id = config.eos_token_id = 1
    program = fxprune.capture(transformers.GPT2LMHeadModel(config).double(), kwargs=tokens())
    for name in named(program, "c_fc.weight"):
        columns(program, name, 0, 40)
    for name in named(program, "attn.c_proj.weight"):
        mask = torch.ones_like(program.parameter(name))
        mask[8:16] = 0
        fxprune.functional.custom_from_mask(program, name, mask)
    return program


def t5() -> Program:
    sizes = {"d_model": 32, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**sizes, d_ff=48, vocab_size=60)
    program = fxprune.capture(transformers.T5EncoderModel(config).double(), kwargs=tokens())
    for name in named(program, "SelfAttention.o.weight"):
        columns(program, name, 8, 16)
    for name in named(program, "DenseReluDense.wi.weight"):
        rows(program, name, 20)
    return program


def vit() -> Program:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.ViTConfig(**sizes, intermediate_size=48, image_size=16, patch_size=4)
    model = transformers.ViTModel(config).double()
    program = fxprune.capture(model, (torch.randn(2, 3, 16, 16).double(),))
    for name in named(program, "attention.output.dense.weight", "attention.o_proj.weight"):
        columns(program, name, 0, 8)
    return program


# The most that is left of the parameters; heads of 8 of 32 channels, and halves of the rest.
MODELS: dict[str, tuple[Callable[[], Program], float]] = {
    "unet": (unet, 0.3),
    "encoder": (encoder, 0.75),
    "bert": (bert, 0.85),
    "llama": (llama, 0.7),
    "gpt2": (gpt2, 0.85),
    "t5": (t5, 0.8),
    "vit": (vit, 1.0),
}


@pytest.mark.parametrize("name", thorough_but(["unet", "encoder", "bert", "gpt2"], MODELS))
@pytest.mark.parametrize(
    "finalized", thorough_but([True], [False, True]), ids=["masked", "finalized"]
)
def test_dead_parts_go_and_the_function_stays(name: str, finalized: bool):
    make, most = MODELS[name]
    torch.manual_seed(0)
    masked = make().eval()
    program = fxprune.finalize(masked) if finalized else masked
    small, _ = shrink_and_check(program)
    assert gap(masked, small) < BOUND
    assert parameters(small) <= most * parameters(program)


@pytest.mark.parametrize("name", thorough_but(QUICK, ZOO))
def test_the_zoo_with_half_its_rows_masked(name: str):
    program = program_of(name)
    for parameter in program.aliases:
        if parameter not in program.captured.refused:
            rows(program, parameter, program.parameter(parameter).shape[0] // 2)
    small = fxprune.shrink(program)
    assert "largest difference" in small.captured.shrinks[-1].checked
    assert parameters(small) <= parameters(program)
