"""Experts, gates, scales, places, groups and taps: what a stream carries decides who computes and who looks."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.builders import tiny_batch, tiny_model, tiny_streams
from vlpkit.errors import AssemblyError
from vlpkit.layers.attention import Cache, look_across
from vlpkit.layers.bias import RelativeTable
from vlpkit.layers.experts import Experts, sides
from vlpkit.layers.trunk import Trunk
from vlpkit.types import ImageInput, Stream, TextInput, full_mask

BOTH = (("w", 2), ("v_cls", 1), ("v", 3))
EXACT = 1e-6   # of states of about unit size: sums may be taken in another order


def stream(parts: tuple[tuple[str, int], ...] = BOTH, *, rows: int = 2, dim: int = 16, seed: int = 0) -> Stream:
    length = sum(n for _, n in parts)
    return Stream(torch.randn(rows, length, dim, generator=torch.Generator().manual_seed(seed)), full_mask(rows, length, "cpu"), parts)


def shake(module: nn.Module) -> None:
    """Every parameter away from a neutral start."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=rng))


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def experts(*names: str) -> Experts:
    factors = iter(range(2, 9))
    return Experts(lambda: Times(next(factors)), sets=names)


@pytest.mark.parametrize(
    ("parts", "sets", "route", "factors"),
    [
        (BOTH, ("v", "w"), None, [3, 3, 2, 2, 2, 2]), (BOTH, ("v", "w", "vw"), None, [4] * 6), ((("v", 2),), ("v", "w", "vw"), None, [2, 2]),
        ((("v", 2),), ("v", "w", "vw"), "vw", [4, 4]), ((("v", 2),), ("v", "w"), "vw", [2, 2]), ((("v", 0), ("w", 2)), ("v", "w", "vw"), None, [3, 3]),
    ],
)  # fmt: skip
def test_a_run_goes_to_the_set_of_its_side(parts: tuple[tuple[str, int], ...], sets: tuple[str, ...], route: str | None, factors: list[int]) -> None:
    ones = torch.ones(1, sum(n for _, n in parts), 1)
    assert experts(*sets)(ones, parts, route).flatten().tolist() == factors


def test_a_stream_without_tokens_has_no_side_and_comes_out_empty() -> None:
    assert sides((("v", 0),)) == ""
    assert experts("v", "w")(torch.ones(2, 0, 4), (("v", 0),)).shape == (2, 0, 4)


@pytest.mark.parametrize("sets", [{"ffn": ["v", "w", "vw:1-"]}, {"attn": ["v", "w"], "norm": ["v", "w"], "ffn": ["v", "w"]}], ids=["vlmo", "beit3"])
@pytest.mark.parametrize("place", ["pre", "post"])
def test_equal_experts_are_one_shared_module(sets: dict[str, list[str]], place: str) -> None:
    """Wherever a token is sent, equal weights give the same state."""
    plain = Trunk(16, depth=2, heads=2, place=place, inner_norm=True)   # type: ignore[arg-type]
    shake(plain)
    routed = Trunk(16, depth=2, heads=2, place=place, inner_norm=True, experts=sets)   # type: ignore[arg-type]
    known = plain.state_dict()
    routed.load_state_dict({name: known[".".join(word for word in name.split(".") if word not in ("v", "w", "vw"))] for name in routed.state_dict()})
    for route in (None, "vw"):
        assert torch.allclose(routed(stream(), route=route).x, plain(stream()).x, atol=EXACT)


def test_the_order_of_concatenation_has_no_effect() -> None:
    trunk = Trunk(16, depth=2, heads=2, experts={"ffn": ["v", "w"]})
    shake(trunk)
    v, w = stream((("v", 3),)), stream((("w", 2),), seed=1)
    a, b = trunk(Stream.cat(v, w)), trunk(Stream.cat(w, v))
    assert torch.allclose(a.side("v").x, b.side("v").x, atol=EXACT)
    assert torch.allclose(a.side("w").x, b.side("w").x, atol=EXACT)


@pytest.mark.parametrize(("sets", "found"), [({"ffn": ["x"]}, "'x' is no set"), ({"mlp": ["v"]}, "'mlp' is no kind of module"), ({"ffn": ["v:7-"]}, "outside 0..1")])
def test_experts_that_do_not_exist_are_refused(sets: dict[str, list[str]], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        Trunk(16, depth=2, heads=2, experts=sets)


def test_closed_gates_leave_the_stream_as_it_was_bit_for_bit() -> None:
    gated = Trunk(16, depth=2, heads=2, block=["cross", "ffn", "self", "ffn"], gates=["cross", "ffn"])
    plain = Trunk(16, depth=2, heads=2)
    known = gated.state_dict()
    plain.load_state_dict({name: known[name.replace("ffn", "ffn2")] for name in plain.state_dict()})
    w, v = stream((("w", 4),)), stream((("v", 3),), seed=1)
    assert torch.equal(gated(w, memory=v).x, plain(w).x)
    with torch.no_grad():
        gated.blocks[0].cross.gate.fill_(0.5)   # type: ignore[union-attr,operator]
    assert not torch.equal(gated(w, memory=v).x, plain(w).x)
    with pytest.raises(ValueError, match="gates: no sublayer 'cros'"):
        Trunk(16, depth=1, heads=2, gates=["cros"])


def test_a_scale_of_nothing_is_the_identity() -> None:
    s = stream()
    assert torch.equal(Trunk(16, depth=2, heads=2, scale=0.0)(s, close=False).x, s.x)
    assert not torch.equal(Trunk(16, depth=2, heads=2, scale=0.1)(s, close=False).x, s.x)


def placed(s: Stream, at: list[tuple[int, int]]) -> Stream:
    return replace(s, at=torch.tensor(at)[None].expand(len(s.x), -1, -1))


def test_a_position_bias_knows_places_whatever_the_order_of_tokens() -> None:
    table = RelativeTable(heads=2, depth=1, image_size=8, patch=4, length=4)
    nn.init.normal_(table.table)
    image, words = placed(stream((("v_cls", 1), ("v", 4))), [(-1, -1), (0, 0), (0, 1), (1, 0), (1, 1)]), placed(stream((("w", 2),)), [(0, 0), (1, 0)])
    (a,), (b,) = table(Stream.cat(image, words)), table(Stream.cat(words, image))
    turn = torch.tensor([2, 3, 4, 5, 6, 0, 1])
    assert torch.equal(a, b[:, :, turn][:, :, :, turn])
    assert len({round(float(x), 5) for x in a[0, 0].flatten()}) > 15
    with pytest.raises(ValueError, match="do not fit the position bias of 4"):
        table(placed(stream((("w", 5),)), [(i, 0) for i in range(5)]))


def test_a_biased_trunk_has_no_cache() -> None:
    trunk = Trunk(16, depth=1, heads=2, relative=RelativeTable(heads=2, depth=1, image_size=8, patch=4, length=4))
    with pytest.raises(AssemblyError, match="decode without"):
        trunk(placed(stream((("w", 2),)), [(0, 0), (1, 0)]), cache=Cache())


def test_rows_side_by_side_are_groups_and_an_absent_one_is_masked() -> None:
    images = stream((("v", 2),), rows=3)
    beside = images.rows(torch.tensor([[2, 0], [1, -1]]))
    assert torch.equal(beside.x[0], torch.cat([images.x[2], images.x[0]]))
    assert beside.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert beside.group is not None
    assert beside.group.tolist() == [[0, 0, 1, 1]] * 2
    assert beside.parts == (("v", 2), ("v", 2))


@pytest.mark.parametrize("cached", [False, True])
def test_words_read_the_images_of_their_group_alone(cached: bool) -> None:
    trunk = Trunk(16, depth=1, heads=2, block=["cross"])
    shake(trunk)
    memory = stream((("v", 2),), rows=2).rows(torch.tensor([[0, 1]]))
    words = replace(stream((("w", 3),), rows=1), group=torch.tensor([[0, 1, -1]]))
    other = replace(memory, x=torch.cat([memory.x[:, :2], memory.x[:, 2:] + 1.0], 1))   # the second image changes
    a, b = (trunk(words, memory=m, cache=Cache() if cached else None, close=False).x for m in (memory, other))
    assert torch.equal(a[:, 0], b[:, 0])
    assert not torch.allclose(a[:, 1], b[:, 1])
    assert torch.equal(a[:, 2], words.x[:, 2])   # reads no image: exactly 0 is added
    assert look_across(memory, None, replace(words, group=None)).mask is not None   # only padding counts without groups


def test_a_numbered_tap_is_the_raw_stream_and_what_follows_goes_on_from_it() -> None:
    made, words = tiny_model("model=clip", "size.depth=3", "model.align.reads.v=vision.1")
    s = tiny_streams(made, tiny_batch(words))
    vision = made.model.part("vision")
    embedded = s.v(tap="embed")
    assert torch.allclose(s.v(tap="1").x, vision.trunk(embedded, layers=range(1), close=False).x, atol=EXACT)
    assert torch.allclose(s.v().x, vision.trunk(embedded).x, atol=EXACT)
    runs: list[int] = []
    for i, block in enumerate(vision.trunk.blocks):
        block.register_forward_hook(lambda *_, i=i: runs.append(i))
    fresh = tiny_streams(made, tiny_batch(words))
    fresh.v()
    fresh.v(tap="1")
    fresh.v(tap="2")
    assert runs == [0, 1, 2, 1]   # the cut at 1 is shared; nobody said that 2 would be read, too
    with pytest.raises(AssemblyError, match=r"vision\.4 is no tap of vision \(it has: embed, encode, 0\.\.3\)"):
        s.v(tap="4")


def test_a_model_reads_its_taps_as_its_streams_do() -> None:
    made, words = tiny_model("model=vlmo")
    made.model.eval()
    batch = tiny_batch(words)
    z = tiny_streams(made, batch).aligned(by="align_vl")
    assert torch.allclose(made.model.encode_image(batch.images["clean"], by="align_vl"), z.v, atol=EXACT)
    assert torch.allclose(made.model.encode_text(batch.texts["clean"], by="align_vl"), z.w, atol=EXACT)


def test_hidden_patches_are_never_seen_and_need_a_vector_in_their_place() -> None:
    made, words = tiny_model("model=beit3")
    clean = tiny_batch(words).images["clean"]
    assert clean.pixels is not None
    hidden = torch.zeros(len(clean), 16, dtype=torch.bool)
    hidden[:, 5] = True
    changed = clean.pixels.clone()
    changed[:, :, 8:16, 8:16] = 0   # the patch of row 1, column 1
    vision = made.model.part("vision")
    a, b = (vision(ImageInput(pixels, hidden=hidden)).x for pixels in (clean.pixels, changed))
    assert torch.equal(a, b)
    assert not torch.equal(vision(clean).x, vision(ImageInput(changed)).x)
    with pytest.raises(AssemblyError, match=r"vision\.embed\.hole=true"):
        tiny_model("model=clip")[0].model.part("vision")(replace(clean, hidden=hidden))


def test_codes_are_frozen_and_the_same_for_the_same_picture() -> None:
    made, words = tiny_model("model=beit3")
    made.model.train()
    s = tiny_streams(made, tiny_batch(words))
    codes, labels, hidden = s.codes(), s.labels("hole.labels"), s.image("hole.image").hidden
    assert hidden is not None
    assert not made.model.part("codebook").encoder.training
    assert torch.equal(labels, torch.where(hidden, codes, -100))
    assert len(codes.unique()) > 8
    assert all(not p.requires_grad for p in made.model.part("codebook").parameters())


def test_inputs_join_and_widen() -> None:
    text = TextInput(torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.bool))
    wide = text.widened(4)
    assert wide.ids.tolist() == [[5, 6, 0, 0]]
    assert wide.mask.tolist() == [[True, True, False, False]]
    assert text.widened(2) is text
    assert wide.join(wide).ids.shape == (2, 4)
    assert copy.copy(wide).order is None
