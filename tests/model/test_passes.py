"""A pass happens once per distinct input; draws, losses and gradients do not depend on who asks first."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import permutations

import pytest
import torch
from torch import Tensor

from tests.builders import RECIPES, tiny_batch, tiny_model, tiny_streams
from vlpkit.assemble import Assembly
from vlpkit.errors import AssemblyError
from vlpkit.fusion import Fusion
from vlpkit.layers.embed import PatchEmbed
from vlpkit.streams import Streams
from vlpkit.types import Batch, Pairing, TextInput

# passes of one step through the image trunk, the text trunk, the fusion and the decoder; then the teacher's
BUDGET = {
    "clip": {"vision": 1, "text": 1},
    "siglip": {"vision": 1, "text": 1},
    "align": {"text": 1},   # its backbone is one embed
    "albef": {"vision": 1, "text": 2, "fusion": 2, "teacher.vision": 1, "teacher.text": 2, "teacher.fusion": 1},
    "blip": {"vision": 1, "text": 1, "fusion": 1, "decoder": 1, "teacher.vision": 1, "teacher.text": 1},
    "beit3": {"vision": 1, "text": 1, "fusion": 1, "codebook": 1},
    "vlmo": {"vision": 1, "vision.vl": 1, "text": 1, "text.vl": 1, "fusion": 2},
    "meter": {"vision": 1, "text": 2, "fusion": 2},
    "git": {"vision": 1, "fusion": 1},
    "coca": {"vision": 1, "text": 1, "decoder": 1},   # both losses read one pass
    "uniter": {"fusion": 3},   # masked words; hidden regions, of three tasks; matching, which the alignment shares
    "visualbert": {"fusion": 1},
    "vilt": {"fusion": 2},   # no encoder; matching and alignment share a pass
    "lxmert": {"vision": 1, "text": 1, "fusion": 1},   # hidden words, hidden regions and mismatches in one
    "flamingo": {"vision": 1, "decoder": 2},   # documents of several images, and of one
    "simvlm": {"fusion": 1, "decoder": 1},   # its stem is one embed
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def passes(made: Assembly, s: Streams) -> dict[str, int]:
    """Passes through trunks; an embedding alone is not one."""
    taught = s.teacher.counts if made.teacher is not None else {}
    both = {**s.counts, **{f"teacher.{name}": count for name, count in taught.items()}}
    return {name: count for name, count in both.items() if not name.endswith(".embed")}


@pytest.mark.parametrize("recipe", BUDGET)
def test_a_step_makes_the_passes_of_its_budget(recipe: str) -> None:
    made, words = tiny_model(f"model={recipe}")
    s = tiny_streams(made, tiny_batch(words))
    for objective in made.objectives.values():
        objective(s)
        objective.after_batch(s)
    assert passes(made, s) == BUDGET[recipe]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_trunks_really_run_that_often(recipe: str) -> None:
    made, words = tiny_model(f"model={recipe}")
    runs: Counter[int] = Counter()
    expected: Counter[int] = Counter()

    def tally(which: int, *_: object) -> None:
        runs[which] += 1

    for prefix, model in (("", made.model), ("teacher.", made.teacher.model if made.teacher else None)):
        for name in () if model is None else model.names:
            part = model.part(name)
            trunks = [part.v, part.w, part.joint.trunk if part.joint else None] if isinstance(part, Fusion) else [getattr(part, "trunk", None)]
            for trunk in filter(None, trunks):
                if id(trunk) not in expected:   # one trunk may play several parts, and then runs for each
                    trunk.blocks[0].register_forward_hook(partial(tally, id(trunk)))
                expected[id(trunk)] += BUDGET[recipe].get(f"{prefix}{name}", 0)
    s = tiny_streams(made, tiny_batch(words))
    for objective in made.objectives.values():
        objective(s)
    assert runs == expected


def test_equal_tensors_under_another_name_share_their_pass() -> None:
    made, words = tiny_model("model=albef")
    batch = tiny_batch(words)
    clean = batch.images["clean"]
    twice = Batch({"clean": clean, "again": replace(clean), "second": replace(clean, pixels=clean.pixels.clone())}, batch.texts, {}, batch.pair_id)
    s = tiny_streams(made, twice)
    assert s.v("again") is s.v("clean")
    assert s.v("second") is not s.v("clean")
    assert s.counts["vision"] == 2
    s.fused("again", "clean")
    s.fused("clean", "clean")
    assert s.counts["fusion"] == 1


@pytest.mark.parametrize("fusion", ["cross", "co", "merged"])
def test_images_paired_behind_their_keys_equal_images_paired_before(fusion: str) -> None:
    made, words = tiny_model("model=albef", f"fusion={fusion}")
    part = made.model.part("fusion")
    s = tiny_streams(made, tiny_batch(words))
    pairs = Pairing(torch.tensor([0, 3, 3, 1, 2, 0]), torch.tensor([0, 1, 2, 3, 0, 0]), torch.zeros(6, dtype=torch.int64))
    late, early = s.fused(pairing=pairs), part(s.v().rows(pairs.image), s.w().rows(pairs.text))
    grads = []
    for found in (late, early):
        made.model.zero_grad()
        (found.w.x * torch.arange(6).view(6, 1, 1)).square().sum().backward(retain_graph=True)
        grads.append({name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None})
    assert torch.allclose(late.w.x, early.w.x, atol=1e-6)
    assert torch.allclose(late.v.x, early.v.x, atol=1e-6)
    assert equal_but_for_rounding(*grads)


def test_an_image_in_many_pairs_has_its_keys_made_once() -> None:
    made, words = tiny_model("model=albef")
    rows: list[int] = []
    made.model.part("fusion").w.blocks[0].cross.body.kv.register_forward_hook(lambda kv, given, out: rows.append(len(given[0])))
    s = tiny_streams(made, tiny_batch(words))
    s.fused(pairing="hard.pairing")
    two = torch.tensor([1, 2])
    s.fused(pairing=Pairing(two, two, two))   # fewer pairs than images: only what is asked for
    assert rows == [4, 2]


def step_of(made: Assembly, batch: Batch, names: tuple[str, ...], *, before: str = "") -> tuple[dict[str, Tensor], dict[str, Tensor], Streams]:
    made.model.zero_grad()
    s = tiny_streams(made, batch)
    if before:
        with torch.no_grad():
            s.drawn(before)
    losses = {name: made.objectives[name](s).value for name in names}
    torch.stack([losses[name] for name in sorted(names)]).sum().backward()
    grads = {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, grads, s


def equal_but_for_rounding(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Sums of the same terms in another order, against the largest number of each tensor; a key bias is rounding alone."""
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=0, atol=1e-5 * float(a[name].abs().max()) + 1e-7) for name in a)


def same_draws(a: Streams, b: Streams) -> bool:
    names = a._drawn.keys() & b._drawn.keys()
    return bool(names) and all(_same(a._drawn[name], b._drawn[name]) for name in names)


def _same(a: object, b: object) -> bool:
    if isinstance(a, TextInput) and isinstance(b, TextInput):
        return torch.equal(a.ids, b.ids)
    if isinstance(a, Pairing) and isinstance(b, Pairing):
        return all(torch.equal(x, y) for x, y in zip(a, b))
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


@pytest.mark.parametrize("recipe", ["albef", "blip"])
def test_draws_losses_and_gradients_are_the_same_in_every_order(recipe: str) -> None:
    made, words = tiny_model(f"model={recipe}")
    batch = tiny_batch(words)
    names = tuple(made.objectives)
    losses, grads, s = step_of(made, batch, names)
    for order in permutations(names):
        again, grads_again, s_again = step_of(made, batch, order)
        assert same_draws(s, s_again)
        assert again == losses
        assert equal_but_for_rounding(grads, grads_again)


@pytest.mark.parametrize("recipe", ["albef", "blip"])
def test_mining_first_without_gradient_takes_no_gradient_away(recipe: str) -> None:
    made, words = tiny_model(f"model={recipe}")
    batch = tiny_batch(words)
    _, grads, _ = step_of(made, batch, tuple(made.objectives))
    _, mined, _ = step_of(made, batch, tuple(made.objectives), before="hard.pairing")
    assert equal_but_for_rounding(grads, mined)


@pytest.mark.parametrize("recipe", ["albef", "blip"])
def test_dropping_one_objective_leaves_the_draws_of_the_others_alone(recipe: str) -> None:
    made, words = tiny_model(f"model={recipe}")
    batch = tiny_batch(words)
    losses, _, s = step_of(made, batch, tuple(made.objectives))
    for dropped in made.objectives:
        kept = tuple(name for name in made.objectives if name != dropped)
        again, _, s_again = step_of(made, batch, kept)
        assert all(again[name] == losses[name] for name in kept)
        if s_again._drawn:
            assert same_draws(s, s_again)


@pytest.mark.parametrize("seed", [(1,), (0, 1)])
def test_other_seed_words_draw_otherwise(seed: tuple[int, ...]) -> None:
    made, words = tiny_model("model=albef", "draws.mask.rate=0.5")
    batch = tiny_batch(words)
    a, b = tiny_streams(made, batch), tiny_streams(made, batch, seed=seed)
    assert not torch.equal(a.text("mask.text").ids, b.text("mask.text").ids)


@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_reach_every_parameter(recipe: str) -> None:
    made, words = tiny_model(f"model={recipe}")
    with torch.no_grad():
        for p in made.model.parameters():   # gates and norms that start closed are open after a step
            if not p.any():
                p.normal_(std=0.02)
    step_of(made, tiny_batch(words, rows=8), tuple(made.objectives))
    dead = [name for name, p in made.model.named_parameters() if p.requires_grad and (p.grad is None or not bool((p.grad != 0).any()))]
    assert dead == []
    if made.teacher is not None:
        assert all(p.grad is None and not p.requires_grad for p in made.teacher.parameters())


@pytest.mark.parametrize("recipe", RECIPES)
def test_bf16_gives_fp32_losses_close_to_those_of_fp32(recipe: str) -> None:
    made, words = tiny_model(f"model={recipe}")
    batch = tiny_batch(words)
    expected, _, _ = step_of(made, batch, tuple(made.objectives))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, grads, _ = step_of(made, batch, tuple(made.objectives))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    if isinstance(made.model.part("vision").embed, PatchEmbed):   # a backbone's batch norms stand on four rows of one cell here, and say little
        assert all(float(losses[name]) == pytest.approx(float(expected[name]), rel=0.02) for name in expected)   # 2^-8 of a logit, some layers deep
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_objectives_own_no_parameters(recipe: str) -> None:
    made, _ = tiny_model(f"model={recipe}")
    assert [name for name, objective in made.objectives.items() if next(objective.parameters(), None) is not None] == []


def test_the_passes_of_a_teacher_have_no_gradient_and_draw_nothing() -> None:
    made, words = tiny_model("model=albef")
    s = tiny_streams(made, tiny_batch(words))
    assert not s.teacher.v().x.requires_grad
    with pytest.raises(AssemblyError, match="the teacher draws nothing"):
        s.teacher.text("mask.text")
    asked = s.text("mask.text")
    assert s.teacher.text("mask.text") is asked


def test_what_does_not_exist_is_named_with_what_does() -> None:
    made, words = tiny_model("model=clip")
    s = tiny_streams(made, tiny_batch(words))
    with pytest.raises(AssemblyError, match="no draw is called 'mask'"):
        s.text("mask.text")
    with pytest.raises(AssemblyError, match=r"asks for the part 'fusion', but 'clip' builds vision, text, align"):
        s.fused()
    with pytest.raises(AssemblyError, match=r"teacher=ema"):
        _ = s.teacher


def test_draws_that_wait_for_each_other_are_refused() -> None:
    made, words = tiny_model("model=clip")
    made.draws["a"] = lambda s, rng: {"x": s.drawn("b.x")}
    made.draws["b"] = lambda s, rng: {"x": s.drawn("a.x")}
    with pytest.raises(AssemblyError, match="draws wait for each other: a -> b -> a"):
        tiny_streams(made, tiny_batch(words)).drawn("a.x")


def test_mined_negatives_are_the_most_similar_to_the_teacher() -> None:
    made, words = tiny_model("model=albef", "model.align.temperature=0.002")   # so sharp that the draw is the best of the rest
    assert made.teacher is not None
    torch.manual_seed(1)
    with torch.no_grad():
        for p in (*made.teacher.parameters(), *made.model.part("vision").parameters(), *made.model.part("text").parameters()):
            p.add_(0.3 * torch.randn_like(p))   # points all over the sphere, and other ones in the teacher
    batch = tiny_batch(words, rows=6)
    s = tiny_streams(made, batch)
    z, t = s.aligned(), s.teacher.aligned()
    pairs = s.pairing("hard.pairing")
    assert pairs.image[:6].tolist() == pairs.text[:6].tolist() == list(range(6))
    assert pairs.match.tolist() == [1] * 6 + [0] * 12
    other = torch.eye(6, dtype=torch.bool)
    t2i, i2t = (z.w @ t.v.T).masked_fill(other, -9), (z.v @ t.w.T).masked_fill(other, -9)
    clear_t = t2i.topk(2).values.diff().abs().squeeze() > 0.03   # e^-15 at this temperature
    clear_i = i2t.topk(2).values.diff().abs().squeeze() > 0.03
    assert clear_t.any()
    assert clear_i.any()
    assert torch.equal(pairs.image[6:12][clear_t], t2i.argmax(-1)[clear_t])
    assert torch.equal(pairs.text[12:][clear_i], i2t.argmax(-1)[clear_i])
    assert pairs.text[6:12].tolist() == pairs.image[12:].tolist() == list(range(6))


def test_captions_of_the_same_image_are_never_negatives_of_each_other() -> None:
    made, words = tiny_model("model=albef")
    batch = tiny_batch(words, rows=6)
    batch = Batch(batch.images, batch.texts, {}, torch.tensor([0, 0, 0, 1, 1, 2]))
    for seed in range(5):
        pairs = tiny_streams(made, batch, seed=(seed,)).pairing("hard.pairing")
        assert (batch.pair_id[pairs.image[6:]] != batch.pair_id[pairs.text[6:]]).all()
        assert pairs.match[6:].sum() == 0


def test_random_mismatches_are_labelled_by_what_they_are() -> None:
    made, words = tiny_model("model=albef", "objective=[itc_momentum,itm,mlm]")
    batch = tiny_batch(words, rows=8)
    wrong = 0
    for seed in range(20):
        pairs = tiny_streams(made, batch, seed=(seed,)).pairing("mix.pairing")
        assert torch.equal(pairs.match == 1, pairs.image == pairs.text)
        wrong += int((pairs.match == 0).sum())
    assert 50 < wrong < 110   # of 160, half of them


@pytest.mark.parametrize(("rows", "wrong"), [(8, 4), (7, 4), (1, 1)])
def test_exactly_half_of_the_rows_are_mismatches_and_which_is_drawn(rows: int, wrong: int) -> None:
    made, words = tiny_model("model=meter")
    batch, seen = tiny_batch(words, rows=rows), set()
    for seed in range(10):
        pairs = tiny_streams(made, batch, seed=(seed,)).pairing("mix.pairing")
        assert torch.equal(pairs.match == 1, pairs.image == pairs.text)
        assert int((pairs.match == 0).sum()) == (wrong if rows > 1 else 0)   # one row alone has no other image
        seen.add(tuple(pairs.match.tolist()))
    assert len(seen) > 3 or rows == 1
