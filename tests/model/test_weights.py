"""Outside weights: every key accounted for on both sides, shapes checked, ties respected, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.builders import tiny_model
from tests.golden.recorded import build, recording
from vlpkit.errors import WeightsError
from vlpkit.rows import parse
from vlpkit.tables.albef import albef
from vlpkit.tables.bert import bert
from vlpkit.tables.blip import blip
from vlpkit.tables.clip import open_clip, transformers_clip
from vlpkit.tables.coca import open_clip_coca
from vlpkit.tables.siglip import open_clip_siglip, transformers_siglip
from vlpkit.tables.timm import vit
from vlpkit.weights import canonical, convert, everything, load, revert


def numbers(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name.replace("__", "."): torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, (name, shape) in enumerate(shapes.items())}


def test_stars_carry_over_and_braces_lay_rows_one_under_the_other() -> None:
    source = numbers(layer__0__query__weight=(2, 3), layer__0__value__weight=(2, 3), layer__0__key__weight=(2, 3))
    made, report = convert(source, parse(["layer.*.{query,key,value}.* -> blocks.*.qkv.*"]), {"blocks.0.qkv.weight": torch.zeros(6, 3)})
    expected = torch.cat([source[f"layer.0.{name}.weight"] for name in ("query", "key", "value")])
    assert torch.equal(made["blocks.0.qkv.weight"], expected)
    back = revert(made, report)
    assert back.keys() == source.keys()
    assert all(torch.equal(back[name], source[name]) for name in source)


def test_ranges_are_counted_from_their_first() -> None:
    source = numbers(**{f"layer__{i}__w": (1,) for i in range(5)})
    table = parse(["layer.0-1.w -> text.*.w", "layer.2-.w -> fusion.*.w"])
    made, _ = convert(source, table, {**{f"text.{i}.w": torch.zeros(1) for i in range(2)}, **{f"fusion.{i}.w": torch.zeros(1) for i in range(3)}})
    assert torch.equal(made["fusion.0.w"], source["layer.2.w"])
    assert torch.equal(made["text.1.w"], source["layer.1.w"])


def test_transforms_go_both_ways() -> None:
    source = numbers(proj=(2, 5), cls=(4,), pointer=(1,))
    table = parse(["proj -> a.weight | transpose", "cls -> b | squeeze", "pointer -> c | squeeze"])
    made, report = convert(source, table, {"a.weight": torch.zeros(5, 2), "b": torch.zeros(1, 1, 4), "c": torch.zeros((), dtype=torch.int64)})
    assert torch.equal(made["a.weight"], source["proj"].T)
    assert made["b"].shape == (1, 1, 4)
    assert made["c"].dtype == torch.int64
    back = revert(made, report)
    assert torch.equal(back["proj"], source["proj"])
    assert torch.equal(back["cls"], source["cls"])
    assert back["pointer"].shape == (1,)


def test_braces_in_a_target_cut_the_rows_of_one_source() -> None:
    source = numbers(block__0__in_proj=(6, 3))
    ours = {"0.q.weight": torch.zeros(2, 3), "0.kv.weight": torch.zeros(4, 3)}
    made, report = convert(source, parse(["block.*.in_proj -> *.{q,kv}.weight"]), ours)
    assert torch.equal(made["0.q.weight"], source["block.0.in_proj"][:2])
    assert torch.equal(made["0.kv.weight"], source["block.0.in_proj"][2:])
    assert torch.equal(revert(made, report)["block.0.in_proj"], source["block.0.in_proj"])
    with pytest.raises(WeightsError, match=r"block\.0\.in_proj has 6 rows, 0\.q\.weight, 0\.kv\.weight take 5"):
        convert(source, parse(["block.*.in_proj -> *.{q,kv}.weight"]), {**ours, "0.q.weight": torch.zeros(1, 3)})


def test_the_first_row_that_matches_decides() -> None:
    made, report = convert(numbers(a__x=(1,), a__y=(1,)), parse(["a.x -> (dropped)", "a.* -> b.*"]), {"b.y": torch.zeros(1)})
    assert report.dropped == ("a.x",)
    assert list(made) == ["b.y"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a -> b"], "no row of the table names extra"),
        (["a -> c", "extra -> (dropped)"], "a row leads to what is not here: a -> c"),
        (["a -> (dropped)", "extra -> (dropped)"], "nothing fills b"),
        (["{a,missing} -> b", "extra -> (dropped)"], "sources that do not add up: b needs 2 sources and has a"),
        (["* -> b"], "extra and a both claim b"),
    ],
)
def test_what_is_left_over_is_named(lines: list[str], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        convert(numbers(a=(2,), extra=(2,)), parse(lines), {"b": torch.zeros(2)})


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(WeightsError) as refused:
        convert(numbers(a=(2,), extra=(2,)), parse(["a -> c"]), {"b": torch.zeros(2)})
    assert str(refused.value) == (
        "the weights and the table disagree\n  no row of the table names extra\n  a row leads to what is not here: a -> c\n  nothing fills b"
    )


def test_another_shape_is_refused_with_both_shapes() -> None:
    with pytest.raises(WeightsError, match=r"a is \(2, 3\), b is \(3, 2\)"):
        convert(numbers(a=(2, 3)), parse(["a -> b"]), {"b": torch.zeros(3, 2)})
    with pytest.raises(WeightsError, match=r"a is \(2, 3\), b is \(3, 2\)"):
        convert(numbers(a=(2, 3)), parse(["a -> b | squeeze"]), {"b": torch.zeros(3, 2)})


@pytest.mark.parametrize(("line", "message"), [("a b", "is no row"), ("a ->", "is no row"), ("a -> b | transpos", r"Did you mean 'transpose'\?")])
def test_a_row_that_cannot_be_read_is_refused(line: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        parse([line])


class Tied(nn.Module):
    """One tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 3, bias=False)
        self.b = nn.Linear(2, 3, bias=False)
        self.b.weight = self.a.weight
        self.c = nn.Parameter(torch.zeros(1))


def test_a_tied_tensor_is_filled_by_any_of_its_names() -> None:
    module, source = Tied(), numbers(x=(3, 2))
    assert canonical(everything(module)) == {"a.weight": "a.weight", "b.weight": "a.weight", "c": "c"}
    report = load(module, source, parse(["x -> b.weight", "(fresh) -> c"]))
    assert torch.equal(module.a.weight, source["x"])
    assert module.a.weight is module.b.weight
    assert report.fresh == ("c",)


def test_a_file_that_holds_a_tied_tensor_twice_must_hold_it_equal() -> None:
    module, table = Tied(), parse(["x -> a.weight", "y -> b.weight", "(fresh) -> c"])
    source = numbers(x=(3, 2), y=(3, 2))
    with pytest.raises(WeightsError, match=r"y differs from another source of a\.weight, though they are one tensor here"):
        load(module, source, table)
    load(module, {**source, "y": source["x"].clone()}, table)


def test_a_refused_load_changes_nothing() -> None:
    made, _ = tiny_model("model=clip")
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    with pytest.raises(WeightsError):
        load(made.model, {"visual.ln_post.weight": torch.zeros(32), "strange": torch.zeros(1)}, open_clip())
    assert all(torch.equal(before[name], tensor) for name, tensor in made.model.state_dict().items())


@pytest.mark.parametrize("recipe", ["albef", "blip"])
def test_a_released_checkpoint_starts_a_model_without_its_twins(recipe: str) -> None:
    r = recording(f"{recipe}_a")
    made, _, _ = build(recipe, r)
    report = load(made.model, r.group("param/"), albef(lower=2) if recipe == "albef" else blip())
    assert report.fresh == ()
    assert {name.partition(".")[0] for name in report.dropped} >= {"visual_encoder_m", "text_encoder_m", "image_queue", "queue_ptr"}
    assert not [name for name in report.dropped if "_m." not in name and "queue" not in name and not name.endswith("position_ids")]
    words = r["param/text_encoder.bert.embeddings.word_embeddings.weight" if recipe == "albef" else "param/text_encoder.embeddings.word_embeddings.weight"]
    assert torch.equal(made.model.part("text").embed.word.weight, words)
    assert str(report).startswith(f"{len(r.group('param/')) - len(report.dropped)} source keys fill ")


@pytest.mark.parametrize("recipe", ["albef", "blip"])
def test_weights_go_out_under_the_names_they_came_in_with(recipe: str) -> None:
    r = recording(f"{recipe}_a")
    _, held, table = build(recipe, r)
    report = load(held, r.group("param/"), table)
    back = revert(held, report)
    assert set(back) == {name for name in r.group("param/") if not name.endswith("position_ids")}
    assert all(torch.equal(back[name].detach().to(value.dtype), value) for name, value in r.group("param/").items() if name in back)


@pytest.mark.parametrize("table", [open_clip(), transformers_clip(), albef(), albef(whole=True), blip(), blip(whole=True), bert(lower=6), vit(), open_clip_coca(), open_clip_coca(split=False, cascade=True),
                                   open_clip_siglip(), transformers_siglip()])
def test_no_row_of_a_table_hides_behind_an_earlier_one(table: list[object]) -> None:
    sources = [row.source for row in table if row.source != "(fresh)"]  # type: ignore[attr-defined]
    assert len(sources) == len(set(sources))
