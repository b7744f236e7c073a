"""Who may see whom is data: padding, orders, rows that see nothing, layer ranges, empty streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.builders import CONF, RECIPES, tiny_batch, tiny_model, tiny_streams
from vlpkit.assemble import Assembly
from vlpkit.layers.attention import Attention, Cache, Memory, Sight, causal_order, look_across, look_within
from vlpkit.layers.block import Call, FeedForward, Sublayer
from vlpkit.layers.trunk import Trunk, layer_range
from vlpkit.types import Batch, Stream, TextInput, full_mask

TEXTS = sorted(path.stem for path in Path(CONF, "text").glob("*.yaml"))
WRAPPED = ("roberta", "electra", "deberta", "albert", "t5", "gpt2")
ORDERED = [name for name in TEXTS if name not in (*WRAPPED, "siglip")]   # what is wrapped, or reads padding, takes no order from outside
EXACT = 1e-6   # of states of about unit size: padding has weight exactly 0, only sums may be taken in another order


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def stream(rows: int = 2, length: int = 6, dim: int = 16, *, seed: int = 0, mask: Tensor | None = None, order: Tensor | None = None) -> Stream:
    x = torch.randn(rows, length, dim, generator=torch.Generator().manual_seed(seed))
    return Stream(x, full_mask(rows, length, "cpu") if mask is None else mask, (("w", length),), order)


def trunk(block: Sequence[str] = ("self", "ffn"), *, place: str = "pre", depth: int = 4) -> Trunk:
    torch.manual_seed(0)
    made = Trunk(16, depth=depth, heads=4, block=block, place=place)  # type: ignore[arg-type]
    for p in made.parameters():   # norms and biases, too
        torch.nn.init.normal_(p, std=0.3)
    return made


def with_text(batch: Batch, text: TextInput) -> Batch:
    return replace(batch, texts={**batch.texts, "clean": text})


def other_padding(text: TextInput) -> TextInput:
    """Garbage where nothing real stands."""
    assert not text.mask.all()
    return replace(text, ids=torch.where(text.mask, text.ids, 7))


# -- padding -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("option", TEXTS)
def test_padding_never_reaches_a_real_word(option: str) -> None:
    made, words = tiny_model("model=clip", f"text={option}", "align=first")
    made.model.eval()
    batch = tiny_batch(words)
    text = batch.texts["clean"]
    changed = with_text(batch, other_padding(text))
    a, b = tiny_streams(made, batch).w().x, tiny_streams(made, changed).w().x
    assert torch.allclose(a[text.mask], b[text.mask], atol=EXACT, rtol=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_padding_never_reaches_a_loss_or_a_gradient(recipe: str) -> None:
    made, words = tiny_model(f"model={recipe}")
    batch = tiny_batch(words)
    found = []
    for given in (batch, with_text(batch, other_padding(batch.texts["clean"]))):
        made.model.zero_grad()
        s = tiny_streams(made, given)
        losses = torch.stack([objective(s).value for objective in made.objectives.values()])
        losses.sum().backward()
        found.append((losses.detach(), {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}))
    (losses, grads), (again, grads_again) = found
    assert torch.allclose(losses, again, rtol=1e-6)
    assert all(torch.allclose(grads[name], grads_again[name], atol=1e-6) for name in grads)


@pytest.mark.parametrize("option", ORDERED)
def test_longer_padding_changes_no_real_word(option: str) -> None:
    made, words = tiny_model("model=clip", f"text={option}", "align=first")
    batch = tiny_batch(words)
    text = batch.texts["clean"]
    pad = torch.full((len(text), 5), words.pad)
    longer = TextInput(torch.cat([text.ids, pad], 1), torch.cat([text.mask, torch.zeros_like(pad, dtype=torch.bool)], 1))
    a, b = tiny_streams(made, batch).w().x, tiny_streams(made, with_text(batch, longer)).w().x
    assert torch.allclose(a[text.mask], b[:, : text.ids.shape[1]][text.mask], atol=1e-5)


def test_a_wrapped_language_model_reads_only_what_stands_before_and_says_so() -> None:
    made, words = tiny_model("model=clip", "text=gpt2")
    made.model.eval()
    batch = tiny_batch(words)
    text = batch.texts["clean"]
    changed = replace(text, ids=torch.cat([text.ids[:, :4], text.ids[:, 4:].flip(1)], 1))
    a, b = (tiny_streams(made, with_text(batch, given)).w() for given in (text, changed))
    assert torch.allclose(a.x[:, :4], b.x[:, :4], atol=EXACT)
    assert not torch.allclose(a.x[:, 4:], b.x[:, 4:], atol=1e-3)
    assert a.order is causal_order(*text.ids.shape, text.ids.device)


def test_a_masked_image_token_never_reaches_the_text() -> None:
    made = trunk(["self", "cross", "ffn"])
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    v, w = stream(seed=1, mask=mask), stream()
    changed = replace(v, x=torch.where(mask[..., None], v.x, torch.tensor(9.0)))
    assert torch.allclose(made(w, memory=v).x, made(w, memory=changed).x, atol=EXACT)
    assert not torch.allclose(made(w, memory=v).x[0], made(w, memory=replace(v, mask=torch.ones_like(mask))).x[0], atol=1e-3)


def test_a_row_of_the_memory_is_masked_as_that_row() -> None:
    made, of = trunk(["self", "cross", "ffn"]), torch.tensor([1, 0, 1])
    v, w = stream(seed=1, mask=torch.tensor([[True] * 6, [True] * 3 + [False] * 3])), stream(rows=3)
    assert torch.allclose(made(w, memory=v, of=of).x, made(w, memory=v.rows(of)).x, atol=EXACT)
    cache, parts = Cache(), []
    ordered = replace(w, order=causal_order(3, 6, "cpu"))
    for start in (0, 3):
        piece = Stream(w.x[:, start : start + 3], w.mask[:, start : start + 3], (("w", 3),), ordered.order[:, start : start + 3])
        parts.append(made(piece, memory=v, of=of, cache=cache).x)
    assert torch.allclose(torch.cat(parts, 1), made(ordered, memory=v.rows(of)).x, atol=1e-5)


# -- order -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize(
    "order", [[1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 2, 3], [7, 0, 0, 0, 0, 0], [3, 1, 2, 2, 9, 0]], ids=["causal", "prefix", "class last", "any"]
)
def test_changing_a_word_changes_only_rows_that_may_read_it(order: list[int], place: str) -> None:
    made = trunk(place=place)
    given = torch.tensor([order] * 2)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4] = False
    s = stream(mask=mask, order=given)
    before = made(s).x
    for j in range(6):
        x = s.x.clone()
        x[:, j] = torch.randn(16, generator=torch.Generator().manual_seed(100 + j))   # a mere shift would be lost in the norms
        moved = (made(replace(s, x=x)).x - before).abs().amax(-1) > EXACT
        reads = (given[:, j, None] <= given) & mask[:, j, None]
        reads[:, j] = True   # its own state changes, whoever may read it
        assert torch.equal(moved, reads)


def test_the_causal_constant_is_the_same_as_its_values() -> None:
    made = trunk()
    constant = causal_order(2, 6, "cpu")
    a = made(stream(order=constant)).x                                             # the kernel's own triangle
    b = made(stream(order=constant.clone(), mask=torch.ones(2, 6, dtype=torch.bool))).x   # a boolean mask
    assert torch.allclose(a, b, atol=1e-5)


def test_a_text_whose_padding_is_read_refuses_an_order() -> None:
    made, words = tiny_model("model=siglip")
    batch = tiny_batch(words)
    text = batch.texts["clean"]
    with pytest.raises(ValueError, match="padding is read as words"):
        tiny_streams(made, with_text(batch, replace(text, order=torch.zeros_like(text.ids)))).w()


@pytest.mark.parametrize("option", ORDERED)
def test_an_order_given_with_the_input_comes_first(option: str) -> None:
    made, words = tiny_model("model=clip", f"text={option}", "align=first")
    batch = tiny_batch(words)
    text = batch.texts["clean"]
    ordered = replace(text, order=torch.arange(text.ids.shape[1]).expand_as(text.ids))
    changed = replace(ordered, ids=torch.cat([ordered.ids[:, :4], ordered.ids[:, 4:].flip(1)], 1))
    a, b = (tiny_streams(made, with_text(batch, given)).w().x for given in (ordered, changed))
    assert torch.allclose(a[:, :4], b[:, :4], atol=EXACT)
    assert not torch.allclose(a[:, 4:], b[:, 4:], atol=1e-3)


def test_the_captioner_reads_nothing_that_follows() -> None:
    made, words = tiny_model("model=blip")
    batch = tiny_batch(words)
    text = batch.texts["clean"]
    changed = replace(text, ids=torch.cat([text.ids[:, :5], text.ids[:, 5:].flip(1)], 1), mask=text.mask)
    spoken = [tiny_streams(made, with_text(batch, given)).fused("clean", "caption.text", by="decoder").w.x for given in (text, changed)]
    assert torch.allclose(spoken[0][:, :5], spoken[1][:, :5], atol=EXACT)
    assert not torch.allclose(spoken[0][:, 5:], spoken[1][:, 5:], atol=1e-3)


# -- nothing to see ----------------------------------------------------------------------------------------------------

def test_a_row_without_a_visible_key_gives_exactly_zero() -> None:
    torch.manual_seed(0)
    attention = Attention(16, heads=4)
    torch.nn.init.normal_(attention.out.bias)
    mask = torch.tensor([[False] * 6, [True] * 6])
    s = stream(mask=mask)
    y = attention(s.x, look_within(s))
    assert torch.equal(y[0], torch.zeros(6, 16))
    assert (y[1] != 0).all()
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())


def test_only_the_queries_that_see_nothing_give_zero() -> None:
    torch.manual_seed(0)
    attention = Attention(16, heads=4)
    torch.nn.init.normal_(attention.out.bias)
    mask = torch.tensor([[False, False, True, True, True, True]] * 2)
    s = stream(mask=mask, order=torch.arange(6).expand(2, -1))   # the first two read only padding
    y = attention(s.x, look_within(s))
    assert torch.equal(y[:, :2], torch.zeros(2, 2, 16))
    assert (y[:, 2:] != 0).all()


def test_a_memory_of_padding_alone_and_an_empty_memory_give_exactly_zero() -> None:
    torch.manual_seed(0)
    attention = Attention(16, heads=4, memory_dim=16)
    torch.nn.init.normal_(attention.out.bias)
    w = stream()
    blind = stream(seed=1, mask=torch.zeros(2, 6, dtype=torch.bool))
    empty = Stream.empty(2, 16, "v", w.x)
    for memory in (blind, empty):
        assert torch.equal(attention(w.x, look_across(memory), memory=Memory(memory.x)), torch.zeros_like(w.x))


@pytest.mark.parametrize("place", ["pre", "post"])
def test_an_empty_stream_passes_through_every_trunk(place: str) -> None:
    made = trunk(["self", "cross", "ffn"], place=place)
    empty = Stream.empty(2, 16, "w", torch.zeros(1))
    assert made(empty, memory=stream()).x.shape == (2, 0, 16)


@pytest.mark.parametrize("fusion", ["cross", "co", "merged"])
def test_a_fusion_takes_an_absent_image(fusion: str) -> None:
    made, words = tiny_model("model=albef", f"fusion={fusion}")
    w = tiny_streams(made, tiny_batch(words)).w()
    fused = made.model.part("fusion")(Stream.empty(4, 32, "v", w.x), w)
    assert fused.w.x.shape == w.x.shape
    assert fused.w.x.isfinite().all()
    assert len(fused.v) == 0


# -- layers ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_range_of_layers_continued_equals_the_whole_bit_for_bit(place: str, cut: int) -> None:
    made, w, v = trunk(["self", "cross", "ffn"], place=place), stream(order=causal_order(2, 6, "cpu")), stream(seed=1)
    whole = made(w, memory=v).x
    first = made(w, memory=v, layers=layer_range(f"0-{cut - 1}", 4))
    assert torch.equal(made(first, memory=v, layers=layer_range(f"{cut}-", 4)).x, whole)
    assert not torch.equal(first.x, whole)


def test_a_joint_operation_in_two_steps_equals_one_bit_for_bit() -> None:
    whole, words = tiny_model("model=albef", "fusion=merged", "size.half=2")
    parts, _ = tiny_model("model=albef", "fusion=merged", "size.half=2", "model.fusion.steps=[{joint: 0},{joint: 1-}]")
    a, b = (tiny_streams(made, tiny_batch(words)).fused() for made in (whole, parts))
    assert torch.equal(a.w.x, b.w.x)
    assert torch.equal(a.v.x, b.v.x)


def test_a_range_that_stops_early_is_raw_and_the_last_is_closed() -> None:
    made, s = trunk(), stream()
    raw = made(s, layers=range(4), close=False)
    assert torch.equal(made.close(raw).x, made(s).x)
    assert torch.equal(made(s, layers=range(3)).x, made(s, layers=range(3), close=False).x)


@pytest.mark.parametrize(("text", "expected"), [("all", [0, 1, 2, 3]), ("3", [3]), (2, [2]), ("0-2", [0, 1, 2]), ("2-", [2, 3])])
def test_layer_ranges_are_read(text: str | int, expected: list[int]) -> None:
    assert list(layer_range(text, 4)) == expected


@pytest.mark.parametrize("text", ["4", "2-9", "3-1", "x", "-1", ""])
def test_layers_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"layer"):
        layer_range(text, 4)


# -- cache -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("pieces", [[1] * 6, [3, 3], [4, 1, 1]])
def test_cached_pieces_equal_the_whole(place: str, pieces: list[int]) -> None:
    made, v = trunk(["self", "cross", "ffn"], place=place), stream(seed=1, mask=torch.tensor([[True] * 6, [True] * 4 + [False] * 2]))
    w = stream(order=causal_order(2, 6, "cpu"))
    whole, cache, parts, start = made(w, memory=v).x, Cache(), [], 0
    for length in pieces:
        piece = Stream(w.x[:, start : start + length], w.mask[:, start : start + length], (("w", length),), w.order[:, start : start + length])
        memory = Stream.empty(2, 16, "v", w.x) if start else v   # the image is kept already
        parts.append(made(piece, memory=memory, cache=cache).x)
        start += length
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


def test_reordered_caches_go_on_like_reordered_rows() -> None:
    made, v, w = trunk(["self", "cross", "ffn"]), stream(seed=1), stream(order=causal_order(2, 6, "cpu"))
    cache, turn = Cache(), torch.tensor([1, 1])
    made(Stream(w.x[:, :5], w.mask[:, :5], (("w", 5),), w.order[:, :5]), memory=v, cache=cache)
    cache.rows(turn)
    last = made(Stream(w.x[turn, 5:], w.mask[:, 5:], (("w", 1),), w.order[:, 5:]), memory=Stream.empty(2, 16, "v", w.x), cache=cache)
    assert torch.allclose(last.x, made(w, memory=v).x[turn, 5:], atol=1e-5)


def everything_of(made: Assembly, batch: Batch) -> Tensor:
    s = tiny_streams(made, batch)
    return torch.stack([objective(s).value.detach() for objective in made.objectives.values()])


@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluation_is_deterministic(recipe: str) -> None:
    made, words = tiny_model(f"model={recipe}", "size.dropout=0.5", "+model.vision.trunk.drop_path=0.5")
    batch = tiny_batch(words)
    made.model.eval()
    if made.teacher is not None:
        made.teacher.eval()
    assert torch.equal(everything_of(made, batch), everything_of(made, batch))


def test_a_skipped_branch_leaves_its_row_and_the_others_make_up_for_it() -> None:
    torch.manual_seed(0)
    body = FeedForward(16, hidden=32)
    layer = Sublayer(body, nn.LayerNorm(16), place="pre", dim=16, dropout=0.0, drop_path=0.25, scale=None, gate=False)
    call = Call(Sight(), Sight())
    x = torch.randn(400, 2, 16)
    branch, y = body(layer.norm(x)), layer(x, "ffn", call, None)
    kept = torch.isclose(y, x + branch / 0.75, atol=1e-5).flatten(1).all(1)
    assert torch.equal(y[~kept], x[~kept])
    assert 0.68 < float(kept.float().mean()) < 0.82   # three standard deviations
    layer.eval()
    assert torch.allclose(layer(x, "ffn", call, None), x + branch)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recomputed_activations_give_the_same_gradients(recipe: str) -> None:
    made, words = tiny_model(f"model={recipe}")
    batch, found = tiny_batch(words), []
    for recompute in (False, True):
        for module in made.model.modules():
            if isinstance(module, Trunk):
                module.recompute = recompute
        made.model.zero_grad()
        s = tiny_streams(made, batch)
        torch.stack([objective(s).value for objective in made.objectives.values()]).sum().backward()
        found.append({name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])


@pytest.mark.parametrize("override", ["size.dropout=0.5", "+model.vision.trunk.drop_path=0.5"])
def test_training_drops(override: str) -> None:
    made, words = tiny_model("model=albef", override)
    made.model.train()
    assert not torch.equal(everything_of(made, tiny_batch(words)), everything_of(made, tiny_batch(words)))
