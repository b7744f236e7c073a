"""Who sees whom in generative models, by finite perturbation: what changes elsewhere may only change what may look there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.builders import tiny_batch, tiny_model, tiny_streams
from vlpkit.assemble import Assembly
from vlpkit.data.tokenize import Words
from vlpkit.errors import ConfigError
from vlpkit.layers.trunk import Trunk
from vlpkit.model import VLModel
from vlpkit.optim import Optim
from vlpkit.streams import Streams
from vlpkit.types import IGNORE, Batch, Fused, ImageInput, TextInput


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def changed_word(batch: Batch, words: Words, place: int) -> Batch:
    """The batch with another word at one place of every text."""
    text = batch.texts["clean"]
    ids = text.ids.clone()
    ids[:, place] = (ids[:, place] + 7) % words.size
    return replace(batch, texts={"clean": replace(text, ids=ids)})


def changed_image(batch: Batch) -> Batch:
    """The batch with other pictures."""
    pixels = batch.images["clean"].pixels
    assert pixels is not None
    return replace(batch, images={"clean": ImageInput(255 - pixels)})


def moved(a: Tensor, b: Tensor) -> list[bool]:
    """Which of the L positions of (B, L, D) differ."""
    return [bool(x) for x in (a - b).abs().amax((0, 2)) > 1e-5]


class TestGit:
    """One stack: the image sees itself, each word the image and what stands before it."""

    @pytest.fixture
    def made(self) -> tuple[Assembly, Words]:
        found = tiny_model("model=git")
        found[0].model.eval()
        return found

    @pytest.mark.parametrize("place", [2, 5])
    def test_a_word_moves_itself_and_what_follows_and_never_the_image(self, made: tuple[Assembly, Words], place: int) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        before, after = (tiny_streams(assembly, b).fused("clean", "caption.text") for b in (batch, changed_word(batch, words, place)))
        real = before.w.mask.all(0)
        assert torch.equal(before.v.x, after.v.x)
        shifts = moved(before.w.x, after.w.x)
        assert shifts[:place] == [False] * place
        assert all(shift for i, shift in enumerate(shifts) if i >= place and real[i])

    def test_the_image_moves_everything(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        before, after = (tiny_streams(assembly, b).fused("clean", "caption.text") for b in (batch, changed_image(batch)))
        assert all(moved(before.v.x, after.v.x))
        assert all(moved(before.w.x, after.w.x))

    def test_only_words_carry_positions(self, made: tuple[Assembly, Words]) -> None:
        assembly, _ = made
        assert assembly.model.part("fusion").joint.types is None
        assert assembly.model.part("text").trunk is None

    def test_the_output_table_is_the_word_table(self, made: tuple[Assembly, Words]) -> None:
        assembly, _ = made
        assert assembly.model.head("lm").out.weight is assembly.model.part("text").embed.word.weight




class TestCoca:
    """A causal text tower with a class token at its end, and a decoder over it that reads the image."""

    @pytest.fixture(params=["vit_pool", "vit_cascade"])
    def made(self, request: pytest.FixtureRequest) -> tuple[Assembly, Words]:
        found = tiny_model("model=coca", f"vision={request.param}")
        found[0].model.eval()
        return found

    @pytest.mark.parametrize("place", [2, 5])
    def test_a_word_moves_itself_what_follows_and_the_class_token(self, made: tuple[Assembly, Words], place: int) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        before, after = (tiny_streams(assembly, b) for b in (batch, changed_word(batch, words, place)))
        real = batch.texts["clean"].mask.all(0)
        assert before.w().parts == (("w", len(real)), ("w_cls", 1))
        for a, b in ((before.w(), after.w()), (before.fused(by="decoder").w, after.fused(by="decoder").w)):
            shifts = moved(a.part("w").x, b.part("w").x)
            assert shifts[:place] == [False] * place
            assert all(shift for i, shift in enumerate(shifts) if i >= place and real[i])
        assert moved(before.w().part("w_cls").x, after.w().part("w_cls").x) == [True]

    def test_no_word_reads_the_class_token(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        before = tiny_streams(assembly, batch).w()
        with torch.no_grad():
            assembly.model.part("text").embed.cls.normal_()
        after = tiny_streams(assembly, batch).w()
        assert torch.equal(before.part("w").x, after.part("w").x)
        assert moved(before.part("w_cls").x, after.part("w_cls").x) == [True]

    def test_the_image_moves_every_word_of_the_decoder_and_none_of_the_text_tower(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        before, after = (tiny_streams(assembly, b) for b in (batch, changed_image(batch)))
        assert torch.equal(before.w().x, after.w().x)
        assert all(moved(before.fused(by="decoder").w.x, after.fused(by="decoder").w.x))

    def test_the_first_query_is_for_contrast_and_the_others_for_words(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        s = tiny_streams(assembly, tiny_batch(words))
        chained = assembly.model.part("vision").trunk.norm is not None   # the cascade has a norm before its pools, and all queries for the words
        assert s.v().parts == (("v_cls", 1), ("v", 32 if chained else 31))
        assert len(s.fused(by="decoder").v) == (32 if chained else 31)

    def test_the_queries_for_words_learn_from_contrast_only_in_the_cascade(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        assembly.objectives["itc"](tiny_streams(assembly, tiny_batch(words))).value.backward()
        neck = assembly.model.part("vision").neck
        chained = assembly.model.part("vision").trunk.norm is not None
        query = (neck.necks[0] if chained else neck).query.grad[0]
        assert [bool(row.any()) for row in query] == ([True] * 32 if chained else [True, *[False] * 31])

    def test_a_text_is_one_token_shorter_than_the_position_table(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        length = assembly.model.part("text").embed.length
        batch = tiny_batch(words)
        ids = torch.ones(len(batch), length, dtype=torch.int64)
        longer, fitting = (replace(batch, texts={"clean": TextInput(ids[:, :n], ids[:, :n].bool())}) for n in (length, length - 1))
        assert tiny_streams(assembly, fitting).w().at[0, -2:, 0].tolist() == [length - 2, length - 1]
        with pytest.raises(ValueError, match=f"texts of {length} tokens do not fit the position table of {length}, whose last row is the class token's"):
            tiny_streams(assembly, longer).w()

    def test_the_class_token_has_the_last_place_behind_a_text_of_any_length(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        w = tiny_streams(assembly, tiny_batch(words)).w()
        assert w.part("w_cls").at[:, 0, 0].tolist() == [assembly.model.part("text").embed.length - 1] * 4

    def test_an_order_of_the_text_s_own_keeps_the_class_token_behind_it(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        text = batch.texts["clean"]
        backwards = replace(text, order=torch.arange(text.ids.shape[1]).flip(0).expand_as(text.ids))
        s = tiny_streams(assembly, replace(batch, texts={"clean": backwards}))
        assert s.w().order[0, -1] == text.ids.shape[1]
        assert s.w().order[0, 0] == text.ids.shape[1] - 1


def test_the_words_of_the_text_itself_are_what_its_captions_ask_for() -> None:
    """As a draw that opens the text with the word it has already would ask for them."""
    clean, words = tiny_model("model=coca")
    drawn, _ = tiny_model("model=coca", "objective=[itc,lm]")
    drawn.model.load_state_dict(clean.model.state_dict())
    batch = tiny_batch(words)
    s, t = tiny_streams(clean, batch), tiny_streams(drawn, batch)
    a, b = clean.objectives["lm"](s).value, drawn.objectives["lm"](t).value
    assert torch.allclose(a, b, atol=1e-6)
    drawn.objectives["itc"](t)
    assert (s.counts["text"], t.counts["text"]) == (1, 2)   # the drawn text is another tensor, and its pass another pass
    assert torch.equal(s.text("clean").ids[:, 0], torch.full((4,), words.special["cls"]))


def test_masked_words_of_a_text_tower_leave_its_class_token_out() -> None:
    made, words = tiny_model("model=coca", "objective=[itc,mlm,lm_clean]", "++objectives.mlm.by=text")
    s = tiny_streams(made, tiny_batch(words))
    loss, labels = made.objectives["mlm"](s).value, s.labels("mask.labels")
    states = s.w("mask.text").part("w").x[labels != IGNORE]
    expected = torch.nn.functional.cross_entropy(s.head("mlm", states), labels[labels != IGNORE])
    assert torch.allclose(loss, expected, atol=1e-6)


def cut_at(made: tuple[Assembly, Words], batch: Batch, cut: int) -> Streams:
    """The streams of a step whose draw cuts every text before the word at place `cut`."""
    assembly, words = made
    text = batch.texts["clean"]
    places = torch.arange(text.ids.shape[1])
    suffix = replace(text, ids=torch.where(places == cut - 1, words.special["cls"], text.ids), mask=text.mask & (places >= cut - 1))
    found = {
        "split.prefix": replace(text, mask=text.mask & (places > 0) & (places < cut)),
        "split.suffix": replace(suffix, order=(places + 1).expand_as(text.ids)),
        "split.labels": torch.where(text.mask & (places >= cut), text.ids, IGNORE),
    }
    s = tiny_streams(assembly, batch)
    s._drawn.update(found)
    return s


def decoded(s: Streams) -> Fused:
    return s.fused("clean", "split.suffix", by="decoder", given="split.prefix")


class TestSimvlm:
    """An encoder reads the image and the prefix both ways; a decoder reads that and, one way, the rest."""

    @pytest.fixture
    def made(self) -> tuple[Assembly, Words]:
        found = tiny_model("model=simvlm")
        found[0].model.eval()
        with torch.no_grad():   # the table of displacements starts at 0
            found[0].model.part("fusion").joint.trunk.relative.table.normal_(std=0.5)
        return found

    @pytest.mark.parametrize("place", [6, 8])
    def test_a_word_of_the_rest_moves_itself_and_what_follows_and_never_the_encoder(self, made: tuple[Assembly, Words], place: int) -> None:
        batch = tiny_batch(made[1])
        a, b = (cut_at(made, given, 5) for given in (batch, changed_word(batch, made[1], place)))
        before, after = decoded(a), decoded(b)
        assert torch.equal(before.v.x[:, before.v.mask.any(0)], after.v.x[:, after.v.mask.any(0)])
        shifts = moved(before.w.x, after.w.x)
        assert shifts[4:place] == [False] * (place - 4)
        assert all(shift for i, shift in enumerate(shifts) if i >= place and before.w.mask.all(0)[i])

    @pytest.mark.parametrize("place", [1, 4])
    def test_the_prefix_is_read_both_ways_and_moves_image_and_rest(self, made: tuple[Assembly, Words], place: int) -> None:
        batch = tiny_batch(made[1])
        a, b = (cut_at(made, given, 5) for given in (batch, changed_word(batch, made[1], place)))
        before, after = (s.fused("clean", "split.prefix") for s in (a, b))
        assert all(moved(before.v.x, after.v.x))
        assert all(moved(before.w.x, after.w.x)[1:5])   # also what stands before it
        assert all(moved(decoded(a).w.x, decoded(b).w.x)[4:8])

    def test_the_opening_of_the_text_is_read_by_nobody(self, made: tuple[Assembly, Words]) -> None:
        batch = tiny_batch(made[1])
        a, b = (cut_at(made, given, 5) for given in (batch, changed_word(batch, made[1], 0)))
        assert not any(moved(decoded(a).w.x, decoded(b).w.x)[4:])

    def test_the_image_moves_everything(self, made: tuple[Assembly, Words]) -> None:
        batch = tiny_batch(made[1])
        a, b = (cut_at(made, given, 5) for given in (batch, changed_image(batch)))
        assert all(moved(a.fused("clean", "split.prefix").w.x, b.fused("clean", "split.prefix").w.x)[1:5])
        assert all(moved(decoded(a).w.x, decoded(b).w.x)[4:])

    def test_a_cut_before_all_words_is_captioning(self, made: tuple[Assembly, Words]) -> None:
        batch = tiny_batch(made[1])
        text, model = batch.texts["clean"], made[0].model
        s = cut_at(made, batch, 1)
        spoken = replace(text, order=torch.arange(text.ids.shape[1]).expand_as(text.ids) + 1)
        logits = model.next_words(model.memory(batch.images["clean"]), spoken)
        assert torch.allclose(logits[text.mask], s.head("lm", decoded(s).w.x)[text.mask], atol=1e-5)

    def test_a_prefix_may_be_given_where_words_are_asked_for(self, made: tuple[Assembly, Words]) -> None:
        batch = tiny_batch(made[1])
        s, model = cut_at(made, batch, 5), made[0].model
        logits = model.next_words(model.memory(batch.images["clean"], given=s.text("split.prefix")), s.text("split.suffix"))
        real = s.text("split.suffix").mask
        assert torch.allclose(logits[real], s.head("lm", decoded(s).w.x)[real], atol=1e-5)
        assert not torch.allclose(logits[real], model.next_words(model.memory(batch.images["clean"]), s.text("split.suffix"))[real], atol=1e-3)

    def test_the_loss_is_that_of_each_text_cut_by_hand(self, made: tuple[Assembly, Words]) -> None:
        """Each row alone, without padding: the encoder gets the words before the cut, the decoder the start and the words behind it."""
        assembly, words = made
        batch, model = tiny_batch(words), assembly.model
        s, total, count = tiny_streams(assembly, batch), torch.zeros(()), 0
        for row in range(len(batch)):
            ids = batch.texts["clean"].ids[row][batch.texts["clean"].mask[row]].tolist()
            cut = next(i for i, label in enumerate(s.labels("split.labels")[row].tolist()) if label != IGNORE)
            total = total + self._asked(model, ImageInput(batch.images["clean"].pixels[row : row + 1]), ids, cut, words.special["cls"])  # type: ignore[index]
            count += len(ids) - cut
        assert torch.allclose(assembly.objectives["lm"](s).value, total / count, atol=1e-5)

    @staticmethod
    def _asked(model: VLModel, image: ImageInput, ids: list[int], cut: int, start: int) -> Tensor:
        def text(words: list[int], first: int, *, causal: bool) -> TextInput:
            at = torch.arange(first, first + len(words))[None]
            given = torch.tensor([words], dtype=torch.int64)
            return TextInput(given, torch.ones_like(given, dtype=torch.bool), order=at if causal else None, at=at)

        memory = model.memory(image, given=text(ids[1:cut], 1, causal=False))
        logits = model.next_words(memory, text([start, *ids[cut:-1]], cut - 1, causal=True))
        return F.cross_entropy(logits[0], torch.tensor(ids[cut:]), reduction="sum")

    def test_cells_alone_carry_the_bias_of_the_plane(self, made: tuple[Assembly, Words]) -> None:
        relative = made[0].model.part("fusion").joint.trunk.relative
        seen: list[Tensor] = []
        relative.register_forward_hook(lambda part, given, out: seen.extend(out))
        decoded(cut_at(made, tiny_batch(made[1]), 5))
        grid, table = relative.grid, relative.table.view(2 * relative.grid - 1, -1, 2, 2)   # rows, columns, depth, heads
        assert len(seen) == 2
        for block, bias in enumerate(seen):
            for i, j in [(0, 0), (0, 5), (7, 2), (15, 12)]:
                down, right = i // grid - j // grid, i % grid - j % grid
                assert torch.equal(bias[0, :, i, j], table[down + grid - 1, right + grid - 1, block])
            assert not bias[0, :, grid * grid :].any()
            assert not bias[0, :, :, grid * grid :].any()

    def test_a_source_of_texts_alone_has_the_same_loss_without_an_image(self, made: tuple[Assembly, Words]) -> None:
        """The same text with images that nobody may look at."""
        assembly, words = made
        batch = tiny_batch(words)
        alone = replace(batch, images={})
        s, empty = tiny_streams(assembly, batch), tiny_streams(assembly, alone)
        loss = assembly.objectives["lm"](empty).value
        assert empty.counts == {"text.embed": 2, "fusion": 1, "decoder": 1}
        assert len(empty.fused("clean", "split.prefix").v) == 0
        part = assembly.model.part("vision").embed
        part.register_forward_hook(lambda embed, given, out: replace(out, mask=torch.zeros_like(out.mask)))
        assert torch.allclose(loss, assembly.objectives["lm"](s).value, atol=1e-5)
        loss.backward()
        reached = {name.partition(".")[0] for name, p in assembly.model.named_parameters() if p.grad is not None}
        assert "vision" not in reached
        assert {"text", "fusion", "decoder"} <= reached


def opened(gate: float = 0.7, *overrides: str) -> tuple[Assembly, Words]:
    """A narrow Flamingo whose gates stand open."""
    found = tiny_model("model=flamingo", "draws.docs.images=3", "size.positions=96", *overrides)
    found[0].model.eval()
    with torch.no_grad():
        for block in found[0].model.part("decoder").w.blocks:
            block.cross.gate.fill_(gate)
            block.ffn.gate.fill_(gate)
    return found


def documents(assembly: Assembly, batch: Batch) -> tuple[Streams, Fused]:
    s = tiny_streams(assembly, batch)
    return s, s.fused("clean", "docs.text", "docs.pairing", by="decoder")


def other_picture(batch: Batch, row: int) -> Batch:
    """The batch with one other picture."""
    pixels = batch.images["clean"].pixels
    assert pixels is not None
    other = pixels.clone()
    other[row] = 255 - other[row]
    return replace(batch, images={"clean": ImageInput(other)})


class TestFlamingo:
    """Documents of three pairs; each word reads the last image before it, by gated layers between frozen blocks."""

    @pytest.mark.parametrize("row", [0, 1, 2])
    def test_an_image_is_read_by_what_follows_it_up_to_the_next(self, row: int) -> None:
        """With the language model's self-attention silent, nothing else can carry it on."""
        assembly, words = opened()
        with torch.no_grad():
            for block in assembly.model.part("decoder").w.blocks:
                block.self.body.out.weight.zero_()
                block.self.body.out.bias.zero_()
        batch = tiny_batch(words, rows=3)
        (s, before), (_, after) = (documents(assembly, b) for b in (batch, other_picture(batch, row)))
        text = s.text("docs.text")
        assert text.group is not None
        shifts = (before.w.x - after.w.x).abs().amax(-1)[0] > 1e-5
        assert torch.equal(shifts[text.mask[0]], (text.group[0] == row)[text.mask[0]])

    @pytest.mark.parametrize("row", [0, 1, 2])
    def test_an_image_never_reaches_the_words_before_it(self, row: int) -> None:
        assembly, words = opened()
        batch = tiny_batch(words, rows=3)
        (s, before), (_, after) = (documents(assembly, b) for b in (batch, other_picture(batch, row)))
        group = s.text("docs.text").group
        assert group is not None
        shifts = ((before.w.x - after.w.x).abs().amax(-1) > 1e-5)[0]
        earlier = group[0] < row
        assert not shifts[earlier].any()
        assert shifts[(group[0] >= row) & s.text("docs.text").mask[0]].all()   # the language model carries it on

    def test_documents_never_read_each_other(self) -> None:
        assembly, words = opened()
        batch = tiny_batch(words, rows=6)
        (_, before), (_, after) = (documents(assembly, b) for b in (batch, other_picture(batch, 4)))
        assert torch.equal(before.w.x[0], after.w.x[0])
        assert not torch.equal(before.w.x[1], after.w.x[1])

    def test_words_before_the_first_image_see_none(self) -> None:
        assembly, words = opened()
        batch = tiny_batch(words, rows=2)
        ids = torch.cat([batch.texts["clean"].ids[:, 1:6], batch.texts["clean"].ids], 1)   # words, then the image token
        shown = (ids == words.special["image"]).long().cumsum(1) - 1
        text = TextInput(ids, torch.ones_like(ids, dtype=torch.bool), group=shown)
        of = torch.tensor([[0], [1]])
        seen, changed = (
            Streams(assembly.model, Batch(images, {"clean": text}, {}, torch.arange(2), of=of)).fused(by="decoder").w.x
            for images in (batch.images, changed_image(batch).images)
        )
        blind = Streams(assembly.model, Batch({}, {"clean": text}, {}, torch.arange(2))).fused(by="decoder").w.x
        assert torch.equal(seen[:, :5], changed[:, :5])
        assert torch.allclose(seen[:, :5], blind[:, :5], atol=1e-6)
        assert not torch.allclose(seen[:, 5:], blind[:, 5:], atol=1e-3)

    def test_the_images_of_a_text_may_come_with_the_source(self) -> None:
        """`of` says what the drawn pairing says."""
        assembly, words = opened()
        batch = tiny_batch(words, rows=5)
        s, found = documents(assembly, batch)
        of = torch.tensor([[0, 1, 2], [3, 4, -1]])
        given = Batch(batch.images, {"clean": s.text("docs.text")}, {}, torch.arange(2), of=of)
        assert torch.equal(s.pairing("docs.pairing").image, of)
        assert torch.allclose(Streams(assembly.model, given).fused(by="decoder").w.x, found.w.x, atol=1e-6)

    def test_gates_start_closed_and_leave_the_language_model_untouched(self) -> None:
        assembly, words = tiny_model("model=flamingo", "draws.docs.images=3", "size.positions=96")
        trunk = assembly.model.part("decoder").w
        plain = Trunk(32, depth=2, heads=2, eps=1e-5, activation="gelu_tanh")
        plain.load_state_dict({name.replace("ffn2", "ffn"): tensor for name, tensor in trunk.state_dict().items() if ".cross." not in name and ".ffn." not in name})
        s, found = documents(assembly, tiny_batch(words))
        assert torch.equal(s.head("lm", found.w.x), s.head("lm", plain(s.w("docs.text")).x))
        s, found = documents(opened()[0], tiny_batch(words))
        assert not torch.allclose(found.w.x, plain(s.w("docs.text")).x, atol=1e-2)

    def test_what_is_frozen_gets_no_gradient_and_does_not_move(self) -> None:
        assembly, words = opened()
        model, before = assembly.model.train(), {name: p.detach().clone() for name, p in assembly.model.named_parameters()}
        optimizer, _ = Optim(total=10, lr=1e-2, decay=0.1).build(model)
        for step in range(2):
            optimizer.zero_grad()
            assembly.objectives["lm"](tiny_streams(assembly, tiny_batch(words), step=step)).value.backward()
            optimizer.step()
        moved_on = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved_on == {
            name for name in before if name.startswith("vision.neck.") or name == "text.embed.extra" or ".cross." in name or (".ffn." in name and "decoder" in name)
        }
        assert all((p.grad is None) == (name not in moved_on) for name, p in model.named_parameters())
        assert model.part("text").embed.word.weight is model.head("lm").out.weight

    def test_what_is_frozen_has_no_dropout_while_the_rest_trains(self) -> None:
        assembly, words = opened(0.0, "size.dropout=0.5")   # gates closed: the frozen half alone
        batch = tiny_batch(words)
        assembly.model.train()
        assert torch.equal(documents(assembly, batch)[1].w.x, documents(assembly, batch)[1].w.x)
        assembly, words = opened(0.7, "size.dropout=0.5")
        assembly.model.train()
        assert not torch.equal(documents(assembly, batch)[1].w.x, documents(assembly, batch)[1].w.x)

    def test_added_words_have_rows_of_their_own(self) -> None:
        assembly, words = opened()
        embed, ids = assembly.model.part("text").embed, torch.tensor([[words.special["image"], 40, words.special["chunk"]]])
        x = embed(TextInput(ids, torch.ones_like(ids, dtype=torch.bool))).x - embed.position.weight[:3]
        assert torch.allclose(x[0, 0], embed.extra[0], atol=1e-6)
        assert torch.allclose(x[0, 1], embed.word.weight[40], atol=1e-6)
        assert torch.allclose(x[0, 2], embed.extra[1], atol=1e-6)

    def test_the_loss_is_that_of_each_document_by_hand(self) -> None:
        """One document at a time, its texts laid end to end; no image token is asked for."""
        assembly, words = opened()
        batch, image = tiny_batch(words, rows=5), words.special["image"]
        loss = assembly.objectives["lm"](tiny_streams(assembly, batch)).value
        total, count = torch.zeros(()), 0
        for rows in ([0, 1, 2], [3, 4]):
            pieces = [batch.texts["clean"].ids[row][batch.texts["clean"].mask[row]].tolist() for row in rows]
            ids, group = [i for piece in pieces for i in piece], [t for t, piece in enumerate(pieces) for _ in piece]
            text = TextInput(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool), group=torch.tensor([group]))
            pixels = batch.images["clean"].pixels
            assert pixels is not None
            one = Batch({"clean": ImageInput(pixels[rows])}, {"clean": text}, {}, torch.arange(1), of=torch.arange(len(rows))[None])
            s = Streams(assembly.model, one)
            logits = s.head("lm", s.fused(by="decoder").w.x)[0, :-1]
            asked = torch.tensor([i if i != image else IGNORE for i in ids[1:]])
            total = total + F.cross_entropy(logits, asked, reduction="sum", ignore_index=IGNORE)
            count += int((asked != IGNORE).sum())
        assert torch.allclose(loss, total / count, atol=1e-5)

    def test_gated_layers_may_stand_before_every_other_block(self) -> None:
        assembly, words = tiny_model("model=flamingo", "model.decoder.w.every={cross: 2, ffn: 2}")
        blocks = assembly.model.part("decoder").w.blocks
        assert [[name for name, _ in block.kinds] for block in blocks] == [["self", "ffn2"], ["cross", "ffn", "self", "ffn2"]]
        assert assembly.objectives["lm"](tiny_streams(assembly, tiny_batch(words))).value.isfinite()
        for name, n, complaint in [("crux", 1, "every: no sublayer 'crux'"), ("ffn2", 0, "every: 'ffn2' stands in each n-th block, and n is at least 1")]:
            with pytest.raises(ConfigError, match=complaint):
                tiny_model("model=flamingo", f"+model.decoder.w.every.{name}={n}")
