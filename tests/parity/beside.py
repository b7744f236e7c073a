"""Our recipe and another library's model side by side: weights carried over, outputs and gradients compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.builders import CLOCK, composed
from tests.vocabulary import numbered_words
from vlpkit.assemble import Assembly, assemble
from vlpkit.data.tokenize import Words
from vlpkit.rows import Row
from vlpkit.streams import Streams
from vlpkit.types import Batch, ImageInput, TextInput
from vlpkit.weights import load, revert

CLOSE = 1e-5        # of the largest value of an array: sums in fp32 that are taken in another order
CLOSE_GRAD = 5e-5   # those sums are longer
VOCAB, LENGTH, IMAGE = 60, 12, 32
SPECIAL = {"pad": 0, "cls": 56, "sep": 59, "mask": 55, "enc": 57, "dec": 58}   # sep is the highest id: CLIP finds it by argmax


def ours(*overrides: str, words: Words | None = None) -> Assembly:
    """A recipe at tiny width, in training mode without dropout."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = ["size.dim=48", "size.heads=4", "size.depth=2", "size.half=2", "size.narrow.dim=32", "size.narrow.heads=2", "size.space=16",
             f"size.image={IMAGE}", "size.patch=8", "size.queue=8", f"size.positions={LENGTH}", "size.dropout=0.0"]
    return assemble(composed(*sizes, *overrides), words=words or numbered_words(VOCAB, SPECIAL, length=LENGTH), clock=CLOCK)


def shake(module: nn.Module) -> None:
    """Every parameter random, also those that start at a neutral value such as biases and norms."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for owner in module.modules():
            for name, p in owner.named_parameters(recurse=False):
                if p.ndim:
                    scales = isinstance(owner, nn.LayerNorm) and name == "weight"
                    p.copy_(float(scales) + 0.2 * torch.randn(p.shape, generator=rng))


def batch(*, rows: int = 3) -> Batch:
    """Pictures beside texts of different length: cls, words, sep, padding."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.rand(rows, 3, IMAGE, IMAGE, generator=rng)
    ids = torch.randint(1, 50, (rows, LENGTH), generator=rng)
    lengths, places = torch.tensor([LENGTH - 3 * i for i in range(rows)]), torch.arange(LENGTH)
    ids[:, 0] = SPECIAL["cls"]
    ids = torch.where(places == lengths[:, None] - 1, SPECIAL["sep"], ids)
    mask = places < lengths[:, None]
    return Batch({"clean": ImageInput(pixels)}, {"clean": TextInput(torch.where(mask, ids, SPECIAL["pad"]), mask)}, {}, torch.arange(rows))


def probe(x: Tensor) -> Tensor:
    """A scalar () that depends on every number of x in its own way, for gradients."""
    return (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))).sum()


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the largest value of b."""
    return float((a.detach() - b.detach()).abs().max() / b.detach().abs().max().clamp(min=1e-12))


class Beside:
    """Both models with the weights of theirs, and one batch.

    Args:
        made: our recipe.
        theirs: their model; its weights are made random first.
        table: their names beside ours; every key on both sides is accounted for.
    """

    def __init__(self, made: Assembly, theirs: nn.Module, table: list[Row]) -> None:
        shake(theirs)
        self.made, self.theirs, self.batch = made, theirs.train(), batch()
        self.report = load(made.model, {name: tensor.detach() for name, tensor in theirs.state_dict().items()}, table)
        self.text = self.batch.texts["clean"]
        self.pixels = made.model.part("vision").embed.normalise(self.batch.images["clean"].pixels)
        self.s = Streams(made.model, self.batch, draws=made.draws, seed=(0,), teacher=made.teacher.model if made.teacher else None)

    def loss(self, name: str) -> Tensor:
        """An objective of ours."""
        value: Tensor = self.made.objectives[name](self.s).value
        return value

    def gradients_apart(self, a: Tensor, b: Tensor, *, without: str = "-") -> dict[str, float]:
        """Backward of both scalars; every gradient that differs too much, under their names. {} is what a test wants to see."""
        a.backward()
        b.backward()
        back = revert({name: p.grad for name, p in self.made.model.named_parameters(remove_duplicate=False) if p.grad is not None}, self.report)
        far: dict[str, float] = {}
        compared = [(name, p.grad) for name, p in self.theirs.named_parameters() if without not in name]
        for name, grad in compared:
            error = gradient_error(name, back[name], grad) if grad is not None else float(name in back)
            if not error <= CLOSE_GRAD:
                far[name] = error
        assert sum(grad is not None for _, grad in compared) > 10
        return far


def gradient_error(name: str, grad: Tensor, expected: Tensor) -> float:
    """Relative difference; the bias of attention keys has no gradient but noise, so its difference is absolute."""
    if name.endswith(("key.bias", "k_proj.bias")):
        return float((grad - expected).abs().max())
    if name.endswith(("in_proj_bias", "qkv.bias")):   # the middle third is the keys'
        (q, k, v), (eq, ek, ev) = grad.chunk(3), expected.chunk(3)
        return max(apart(q, eq), apart(v, ev), float((k - ek).abs().max()))
    return apart(grad, expected)
