"""Evaluators over real shards and tiny models: what they report is what a slow loop over single images and captions finds."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders import tiny_batch, tiny_model, tiny_streams
from tests.evals.runs import VAL, Model, data_of, world
from vlpkit.build import build
from vlpkit.data.module import DataModule
from vlpkit.data.shapes.write import write_world
from vlpkit.errors import AssemblyError, ConfigError, DataError
from vlpkit.evals.base import Evaluator, fitting
from vlpkit.evals.caption import Captions, opening
from vlpkit.evals.heldout import HeldOut
from vlpkit.evals.pairs import HardPairs
from vlpkit.evals.retrieval import Retrieval
from vlpkit.generate import greedy
from vlpkit.objectives.itm import Match
from vlpkit.objectives.lm import NextWord
from vlpkit.streams import Streams
from vlpkit.types import Batch, ImageInput, Pairing, TextInput

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("evals"))


@pytest.fixture(scope="module", params=["clip", "albef", "blip", "vlmo"])
def any_model(request: pytest.FixtureRequest, where: Path) -> tuple[Model, DataModule]:
    return loaded(request.param, where)


def loaded(name: str, where: Path, **changes: Any) -> tuple[Model, DataModule]:
    assembly, words = tiny_model(f"model={name}")
    # weights of a fresh model hardly tell texts apart; larger ones make the numbers speak
    for number, p in enumerate(assembly.model.parameters()):
        p.data.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    return Model(assembly), data_of(where, words, **changes)


def everything(data: DataModule) -> tuple[list[ImageInput], list[str], list[int], list[dict[str, Any]]]:
    """Images one by one, all captions with the row of their image, records."""
    images, captions, owner, records = [], [], [], []
    for batch in data.eval_batches(batch=1):
        owner += [len(images)] * len(batch.captions[0])
        captions += batch.captions[0]
        images.append(batch.images)
        records += batch.records
    return images, captions, owner, records


def hits(scores: torch.Tensor, owner: list[int], k: int) -> tuple[float, float]:
    """Image-to-text and text-to-image hit rates of (R, T) scores by sorting, one query after another."""
    by_image = [any(owner[t] == i for t in row.argsort(descending=True)[:k].tolist()) for i, row in enumerate(scores)]
    by_text = [owner[t] in column.argsort(descending=True)[:k].tolist() for t, column in enumerate(scores.T)]
    return 100 * sum(by_image) / len(by_image), 100 * sum(by_text) / len(by_text)


def cosines(model: Model, data: DataModule, images: list[ImageInput], captions: list[str]) -> torch.Tensor:
    assert data.words is not None
    parts = model.assembly.model.eval()
    v = torch.cat([parts.encode_image(image) for image in images])
    return v @ torch.cat([parts.encode_text(data.words.encode([caption])) for caption in captions]).T


def odds(model: Model, data: DataModule, image: ImageInput, caption: str) -> torch.Tensor:
    """(2,) matching logits of one image and one caption, by hand."""
    assert data.words is not None
    parts, text = model.assembly.model.eval(), data.words.encode([caption])
    if parts.name == "blip":  # the matcher reads a text that opens with its own word
        text.ids[:, 0] = data.words.special["enc"]
    fusion = parts.part("fusion")
    w = parts.part("text")(text, tap="encode" if parts.name == "albef" else "embed")
    v = parts.part("vision")(image, tap="embed" if parts.name == "vlmo" else "encode")
    logits: torch.Tensor = parts.head("itm")(fusion(v, w).w)
    return logits[0]


@torch.no_grad()
def test_retrieval_finds_what_a_slow_loop_finds(any_model: tuple[Model, DataModule]) -> None:
    model, data = any_model
    images, captions, owner, _ = everything(data)
    scores = cosines(model, data, images, captions)
    found = dict(Retrieval(batch=5)(model, data))
    for k in (1, 5, 10):
        assert (found[f"i2t_R@{k}"], found[f"t2i_R@{k}"]) == pytest.approx(hits(scores, owner, k))
    assert all(0 <= value <= 100 for name, value in found.items() if "@" in name)


def test_the_record_tells_how_much_was_ranked(any_model: tuple[Model, DataModule]) -> None:
    task = Retrieval(batch=7)
    dict(task(*any_model))
    assert (task.facts["images"], task.facts["texts"], task.facts["not_finite"]) == (VAL, 5 * VAL, 0)
    assert task.protocol == "retrieval-all-pessimistic@1"


@pytest.mark.parametrize("name", ["albef", "blip"])
@torch.no_grad()
def test_re_ranking_every_candidate_orders_by_the_matching_head_alone(name: str, where: Path) -> None:
    model, data = loaded(name, where)
    task = Retrieval(batch=4, k_test=1000, limit=11, captions=2)
    found = dict(task(model, data))
    images, captions, owner, _ = everything(data)
    images, kept = images[:11], [t for t, i in enumerate(owner) if i < 11 and t - owner.index(i) < 2]
    scores = torch.tensor([[float(odds(model, data, image, captions[t])[1]) for t in kept] for image in images])
    for k in (1, 5, 10):
        both = found[f"rerank_i2t_R@{k}"], found[f"rerank_t2i_R@{k}"]
        assert both == pytest.approx(hits(scores, [owner[t] for t in kept], k))
    assert task.facts["pairs"] == 11 * 22


@torch.no_grad()
def test_adding_the_similarity_changes_the_order_as_published(where: Path) -> None:
    model, data = loaded("blip", where)
    found = dict(Retrieval(batch=4, k_test=1000, limit=8, captions=1, score="itm+itc")(model, data))
    images, captions, owner, _ = everything(data)
    kept = [owner.index(i) for i in range(8)]
    scores = cosines(model, data, images[:8], [captions[t] for t in kept])
    scores += torch.tensor([[float(odds(model, data, image, captions[t])[1]) for t in kept] for image in images[:8]])
    assert (found["rerank_i2t_R@1"], found["rerank_t2i_R@1"]) == pytest.approx(hits(scores, list(range(8)), 1))


def test_re_ranked_hits_stay_within_the_candidates(where: Path) -> None:
    found = dict(Retrieval(batch=6, k_test=10)(*loaded("albef", where)))
    for side in ("i2t", "t2i"):
        assert found[f"rerank_{side}_R@10"] == pytest.approx(found[f"{side}_R@10"])  # ten candidates: the same ten
        assert found[f"rerank_{side}_R@5"] <= found[f"{side}_R@10"]


def test_numbers_do_not_depend_on_the_batch(any_model: tuple[Model, DataModule]) -> None:
    for task in (Retrieval, HardPairs):
        assert dict(task(batch=3)(*any_model)) == dict(task(batch=64)(*any_model))


@torch.no_grad()
def test_hard_pairs_are_judged_one_by_one(any_model: tuple[Model, DataModule]) -> None:
    model, data = any_model
    assert data.words is not None
    dual, fusion, parts = [], [], model.assembly.model.eval()
    for batch in data.eval_batches(batch=1):
        v = parts.encode_image(batch.images)[0]
        for true, false in batch.records[0]["hard"]:
            w = parts.encode_text(data.words.encode([true, false]))
            dual.append(bool(v @ w[0] > v @ w[1]))
            if "itm" in model.assembly.objectives:
                a, b = odds(model, data, batch.images, true), odds(model, data, batch.images, false)
                fusion.append(bool(a[1] - a[0] > b[1] - b[0]))
    found = dict(HardPairs(batch=5)(model, data))
    assert found["count"] == len(dual) > 50
    assert found["dual_acc"] == pytest.approx(100 * sum(dual) / len(dual), abs=100.1 / len(dual))  # one pair may tie but for rounding
    if fusion:
        assert found["fusion_acc"] == pytest.approx(100 * sum(fusion) / len(fusion), abs=100.1 / len(fusion))
    assert ("fusion_acc" in found) == ("itm" in model.assembly.objectives)


def test_kinds_of_hard_pairs_add_up(any_model: tuple[Model, DataModule]) -> None:
    task = HardPairs(batch=8)
    found = dict(task(*any_model))
    kinds = task.facts["by_kind"].values()
    assert sum(kind["count"] for kind in kinds) == found["count"]
    assert sum(kind["count"] * kind["dual_acc"] for kind in kinds) / found["count"] == pytest.approx(found["dual_acc"])


def test_data_without_hard_pairs_give_a_count_of_0_and_a_line(where: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert dict(HardPairs()(*loaded("clip", where, val_shards="train-*.tar"))) == {"count": 0.0}
    assert "evals.pairs: no sample of data.val_shards has hard pairs" in caplog.text


def test_a_matching_pass_over_rows_of_ones_own_equals_the_drawn_one() -> None:
    for name in ("albef", "blip"):
        assembly, words = tiny_model(f"model={name}")
        assembly.model.eval()
        itm = assembly.objectives["itm"]
        assert isinstance(itm, Match)
        with torch.no_grad():
            s = tiny_streams(assembly, tiny_batch(words))
            drawn = itm.logits(s, itm.pairing)
            rows = s.pairing(itm.pairing)
            encoded = s.counts["vision"], s.counts["text.embed"]
            for part in (slice(0, 5), slice(5, 12)):
                own = itm.logits(s, Pairing(rows.image[part], rows.text[part], rows.match[part]))
                torch.testing.assert_close(own, drawn[part], rtol=1e-5, atol=1e-6)  # fp32 products of other shapes
        assert encoded == (s.counts["vision"], s.counts["text.embed"])
        assert s.counts["fusion"] == 3


@pytest.mark.parametrize(
    ("name", "by", "start"),
    [("blip", "decoder", "dec"), ("git", "fusion", "cls"), ("coca", "decoder", "cls"), ("simvlm", "decoder", "cls"), ("flamingo", "decoder", "image")],
)
@torch.no_grad()
def test_captions_are_the_greedy_ones_whatever_the_batch(name: str, by: str, start: str, where: Path) -> None:
    model, data = loaded(name, where)
    words, task = data.words, Captions(batch=4, length=7)
    assert words is not None
    found = dict(task(model, data))
    assert found["count"] == VAL == len(task.predictions)
    assert [record["index"] for record in task.predictions] == list(range(VAL))
    for record, batch in zip(task.predictions, data.eval_batches(batch=1)):
        said = greedy(
            model.assembly.model.eval(), batch.images, start=words.special[start], stop=words.stop, pad=words.pad, length=7, by=by, cached=False
        )  # fmt: skip
        assert record["caption"] == words.decode(said.ids)[0]
        assert record["references"] == batch.captions[0]
        assert record["exact"] == any(record["caption"] == words.decode(words.encode([caption]).ids)[0] for caption in batch.captions[0])


def test_a_model_that_knows_its_captions_matches_them_exactly(where: Path) -> None:
    assembly, words = tiny_model("model=blip")
    model, data = Model(assembly), data_of(where, words)
    (batch,) = data.eval_batches(batch=3, limit=3)
    pairs = Batch({"clean": batch.images}, {"clean": words.encode([group[0] for group in batch.captions])}, {}, torch.arange(3))
    lm, step = assembly.objectives["lm"], torch.optim.Adam(assembly.model.parameters(), lr=3e-3)
    for number in range(150):
        step.zero_grad()
        lm(tiny_streams(assembly, pairs, step=number)).value.backward()
        step.step()
    task = Captions(limit=3)
    found = dict(task(model, data))
    assert (found["exact_match"], task.facts["distinct"]) == (100.0, 3)
    assert [record["caption"] for record in task.predictions] == words.decode(pairs.texts["clean"].ids)


def test_captions_begin_with_the_word_that_opens_the_text_of_their_objective() -> None:
    """That of the draw; the first of the template where the objective reads the data's own text; none where texts begin with any word."""
    for recipe, word in (("blip", "dec"), ("git", "cls"), ("coca", "cls")):
        assembly, words = tiny_model(f"model={recipe}")
        lm = assembly.objectives["lm"]
        assert isinstance(lm, NextWord)
        assert opening(assembly, lm) == words.special[word]
    open_ended, _ = tiny_model("model=coca", "model.text.words.template='{caption} [sep]'")
    assert Captions().lacks(open_ended) == (
        "captions need a word that opens every text, but 'clean' begins with none (a draw like Opening or a template like '[cls] {caption} [sep]' gives one)"
    )
    masked, _ = tiny_model("model=coca", "objective=[itc,mlm,lm_clean]", "objectives.lm.text=mask.text", "++objectives.mlm.by=text")
    assert Captions().lacks(masked) == (
        "captions need a word that opens every text, but 'mask.text' begins with none (a draw like Opening or a template like '[cls] {caption} [sep]' gives one)"
    )


def test_a_long_caption_stops_at_the_length_of_the_tokenizer(where: Path) -> None:
    model, data = loaded("blip", where)
    assert dict(Captions(batch=8, length=1000, limit=3)(model, data))["count"] == 3


def test_limit_takes_the_first_samples(any_model: tuple[Model, DataModule]) -> None:
    task = Retrieval(batch=4, limit=9)
    dict(task(*any_model))
    assert task.facts["images"] == 9


def test_an_evaluation_leaves_modes_and_gradients_alone(any_model: tuple[Model, DataModule]) -> None:
    model, data = any_model
    parts = model.assembly.model
    parts.train()
    parts.part("vision").eval()
    values = HardPairs(limit=3)(model, data)
    assert torch.is_grad_enabled()
    next(iter(values))
    assert torch.is_grad_enabled() and parts.training and not parts.part("vision").training
    assert parts.part("text").training
    parts.eval()


REFUSED = [
    (Captions(), "clip", r"^evals\.caption: captions need a decoder and the objective 'lm', but 'clip' builds vision, text, align and has itc\. .*model=blip"),
    (Retrieval(k_test=16), "clip", r"^evals\.retrieval: k_test=16 re-ranks with the matching objective 'itm', but 'clip' has itc\. Use k_test=0"),
    (Retrieval(by="shared"), "clip", r"^evals\.retrieval: retrieval ranks by the shared space 'shared', but 'clip' builds vision, text, align"),
]


@pytest.mark.parametrize(("task", "name", "message"), REFUSED, ids=["caption", "rerank", "space"])
def test_what_a_model_lacks_is_named(task: Evaluator, name: str, message: str, where: Path) -> None:
    with pytest.raises(AssemblyError, match=message):
        task(*loaded(name, where))


def test_a_recipe_keeps_the_tasks_that_its_parts_can_do(where: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = loaded("clip", where)
    with caplog.at_level("INFO"):
        kept = fitting([Retrieval(), HardPairs(), Captions()], model.assembly)
    assert [task.name for task in kept] == ["retrieval", "pairs"]
    assert "evals.caption is left out: captions need a decoder" in caplog.text
    with pytest.raises(AssemblyError, match="k_test=16 re-ranks"):
        fitting([Retrieval(k_test=16)], model.assembly)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"k_test": 5}, r"^evals\.x: Retrieval refused this: k_test is 5; below 10 it would decide R@10"),
        ({"k_test": "many"}, r"^evals\.x\.k_test: Retrieval takes a whole number here, found 'many'"),
        ({"score": "itc"}, r"^evals\.x\.score: Retrieval takes .*itm"),
        ({"batch": 0}, r"^evals\.x: Retrieval refused this: batch=0"),
        ({"ktest": 16}, r"k_test"),
    ],
)
def test_settings_that_cannot_be_are_refused(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"_target_": "vlpkit.evals.retrieval.Retrieval", **node}, where="evals.x")


def test_a_record_with_odd_pairs_is_refused_by_key(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "w", seed=1, train=4, val=2, image_size=32, noise=0.0)
    whole = folder / "val-000000.tar"
    with tarfile.open(whole) as old, tarfile.open(folder / "odd-0.tar", "w") as new:
        for member in old:
            stream = old.extractfile(member)
            assert stream is not None
            payload = stream.read()
            if member.name.endswith("1.json"):
                payload = json.dumps(json.loads(payload) | {"hard": [["only one"]]}).encode()
            member.size = len(payload)
            new.addfile(member, io.BytesIO(payload))
    with pytest.raises(DataError, match=r"^data\.val_shards: the record of val0000001 has no proper `hard`; it is a list of \[true caption, false caption\]"):
        HardPairs()(*loaded("clip", folder, val_shards="odd-*.tar"))


def test_held_out_objectives_are_those_of_the_split(where: Path) -> None:
    sources = {"images": {"holds": "images"}, "texts": {"holds": "texts"}}
    model, data = loaded("beit3", where, sources=sources)
    found = dict(HeldOut(batch=7)(model, data))
    names = ("mim", "mlm", "mim_pair", "mlm_pair")
    assert found.keys() == {f"{name}_{what}" for name in names for what in ("loss", "acc")} | {"count"}
    assert found["count"] == VAL
    sums = dict.fromkeys(names, 0.0)
    model.assembly.model.eval()
    for number, batch in enumerate(data.eval_batches(batch=7)):
        assert data.words is not None
        texts = data.words.encode([captions[0] for captions in batch.captions])
        pairs = Batch({"clean": batch.images}, {"clean": texts}, {}, batch.index)
        sides = {"pairs": pairs, "images": replace(pairs, texts={}), "texts": replace(pairs, images={})}   # a source of one side has not the other
        for name in names:
            objective = model.assembly.objectives[name]
            s = Streams(model.assembly.model, sides[objective.on], draws=model.assembly.draws, seed=("evaluation", number, objective.on))
            with torch.no_grad():
                sums[name] += len(batch.index) * float(objective(s).value)
    assert {name: found[f"{name}_loss"] for name in names} == pytest.approx({name: value / VAL for name, value in sums.items()})
    assert dict(HeldOut(batch=7)(model, data)) == found   # asked the same again
    assert all(0 <= found[f"{name}_acc"] <= 100 for name in names)


@pytest.mark.parametrize("changes", [{"batch": 1}, {"limit": 0}])
def test_a_held_out_batch_of_one_has_no_other_pair(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        HeldOut(**changes)   # type: ignore[arg-type]


@pytest.mark.parametrize("holds", ["texts", "pairs"])
def test_a_source_of_texts_is_held_out_without_images(where: Path, holds: str) -> None:
    model, data = loaded("simvlm", where, sources={"texts": {"holds": holds, "share": 0.25}})
    found = dict(HeldOut(batch=VAL)(model, data))
    model.assembly.model.eval()
    (batch,) = data.eval_batches(batch=VAL)
    assert data.words is not None
    texts = data.words.encode([captions[0] for captions in batch.captions])
    for source, name in (("pairs", "lm"), ("texts", "lm_texts")):
        images = {} if source == holds == "texts" else {"clean": batch.images}
        s = Streams(model.assembly.model, Batch(images, {"clean": texts}, {}, batch.index), draws=model.assembly.draws, seed=("evaluation", 0, source))
        with torch.no_grad():
            assert found[f"{name}_loss"] == pytest.approx(float(model.assembly.objectives[name](s).value))
    assert s.counts["vision.embed"] == (holds == "pairs")


@torch.no_grad()
@pytest.mark.parametrize("cached", [True, False])
def test_a_prompt_stands_in_the_encoder_and_the_caption_goes_on_from_there(where: Path, cached: bool) -> None:
    """Each word is the best of a whole pass over a text cut behind the prompt, as in training."""
    model, data = loaded("simvlm", where)
    task, plain = (Captions(batch=4, limit=4, length=5, prompt=prompt, cached=cached) for prompt in ("a red circle", None))
    task(model, data)
    plain(model, data)
    assert task.facts["prompt"] == "a red circle"
    assert [record["caption"] for record in task.predictions] != [record["caption"] for record in plain.predictions]
    words, net = data.words, model.assembly.model.eval()
    assert words is not None
    (batch,) = data.eval_batches(batch=4, limit=4)
    ids = words.encode(["a red circle"]).ids[:, 1:-1].expand(4, -1)   # without what opens and closes a caption
    places = torch.arange(1, 1 + ids.shape[1]).expand_as(ids)
    memory = net.memory(batch.images, given=TextInput(ids, torch.ones_like(ids, dtype=torch.bool), at=places))
    said = torch.full((4, 1), words.special["cls"])
    for _ in range(5):
        at = torch.arange(said.shape[1]).expand_as(said) + ids.shape[1]
        logits = net.next_words(memory, TextInput(said, torch.ones_like(said, dtype=torch.bool), order=at, at=at))
        said = torch.cat([said, logits[:, -1:].argmax(-1)], 1)
    assert [record["caption"] for record in task.predictions] == words.decode(said)


def test_a_prompt_that_nobody_reads_is_refused() -> None:
    assembly, _ = tiny_model("model=blip")
    assert Captions(prompt="a picture of").lacks(assembly) == "a prompt is read by an encoder of image and words, but 'decoder' reads vision.encode (prompt=null)"
    assert Captions(prompt="a picture of").lacks(tiny_model("model=simvlm")[0]) is None
