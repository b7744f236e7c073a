"""CoCa with open_clip's weights, in both forms of its pools: states, logits, both losses and gradients."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from open_clip.loss import CoCaLoss
from torch import Tensor

from tests.parity.beside import CLOSE, IMAGE, LENGTH, VOCAB, Beside, apart, ours, probe
from vlpkit.tables.coca import open_clip_coca
from vlpkit.types import TextInput

WIDE = {"width": 32, "heads": 2, "layers": 2}
CASCADE = ("vision=vit_cascade", "size.dim=32", "size.heads=2")   # open_clip norms before its pools, which takes equal widths


def theirs(*, pool: bool | str = True, width: int = 48, correct: bool = True) -> open_clip.CoCa:
    made = open_clip.CoCa(
        32, multimodal_cfg={**WIDE, "context_length": LENGTH, "vocab_size": VOCAB},
        text_cfg={**WIDE, "context_length": LENGTH, "vocab_size": VOCAB, "embed_cls": True, "output_tokens": True},
        vision_cfg={"image_size": IMAGE, "patch_size": 8, "width": width, "layers": 2, "head_width": 12 if width == 48 else 16, "attentional_pool": pool,
                    "attn_pooler_queries": 6, "attn_pooler_heads": 2, "output_tokens": True},
    )
    made.text.correct_cls_mask = correct   # which no setting of it reaches
    return made


def beside(*overrides: str, cascade: bool = False, **their: Any) -> Beside:
    made = ours("model=coca", f"size.positions={LENGTH + 1}", "size.queries.all=6", "size.queries.rest=5", *overrides)
    return Beside(made, theirs(**their), open_clip_coca(split=not cascade, cascade=cascade))


@pytest.fixture(params=["first query", "cascade", "class shifted"])
def both(request: pytest.FixtureRequest) -> Beside:
    if request.param == "cascade":
        return beside(*CASCADE, cascade=True, pool="cascade", width=32)
    if request.param == "class shifted":
        return beside("model.text.embed.cls=last_shifted", correct=False)
    return beside()


def losses(both: Beside) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Their contrast and captioning loss, unweighted, and what they come from."""
    out = both.theirs(both.pixels, both.text.ids)
    out["image_features"] = out["image_features"].view(len(both.pixels), -1)   # its cascade keeps the one query as a sequence
    contrast, caption = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=1.0)(
        out["image_features"], out["text_features"], out["logits"], out["labels"], out["logit_scale"]
    )  # fmt: skip
    return contrast, caption, out


def test_the_same_points_memory_and_logits(both: Beside) -> None:
    _, _, out = losses(both)
    z = both.s.aligned()
    assert apart(z.v, out["image_features"]) < CLOSE
    assert apart(z.w, out["text_features"]) < CLOSE
    memory = both.theirs.visual(both.pixels)[1]
    assert apart(both.s.v().part("v").x, memory) < CLOSE
    logits = both.s.head("lm", both.s.fused(by="decoder").w.x)[:, : LENGTH - 1]
    real = both.text.mask[:, :-1]
    assert apart(logits[real], out["logits"][real]) < CLOSE


def test_the_same_losses_and_gradients_of_their_sum(both: Beside) -> None:
    contrast, caption, _ = losses(both)
    found = [both.loss("itc"), both.loss("lm")]
    assert apart(found[0], contrast) < 1e-6
    assert apart(found[1], caption) < 1e-6
    assert both.gradients_apart(found[0] + 2 * found[1], contrast + 2 * caption) == {}
    assert both.report.fresh == ()


def test_the_words_leave_the_text_tower_without_a_norm(both: Beside) -> None:
    depth = both.made.model.part("text").trunk.depth
    tokens = both.theirs.text(both.text.ids)[1]
    seen = both.s.w(tap=str(depth)).part("w").x
    assert apart(seen[both.text.mask], tokens[both.text.mask]) < CLOSE
    assert both.gradients_apart(probe(seen[both.text.mask]), probe(tokens[both.text.mask]), without="-") == {}


def test_a_text_that_is_padded_less_gives_the_same_point() -> None:
    """The class token has a row of its own, whatever the length of the text before it."""
    made = beside()
    short = TextInput(made.text.ids[2:, :7], made.text.mask[2:, :7])
    assert not made.text.mask[2, 7:].any()
    assert apart(made.made.model.encode_text(short), made.theirs.encode_text(made.text.ids)[2:]) < CLOSE


def test_a_shifted_class_token_reads_the_first_padding_as_theirs_does() -> None:
    shifted, right = beside("model.text.embed.cls=last_shifted", correct=False), beside()
    full = shifted.text.mask.all(1)
    a, b = shifted.made.model.encode_text(shifted.text), right.made.model.encode_text(right.text)
    assert torch.equal(full, torch.tensor([True, False, False]))
    assert apart(a[full], b[full]) < CLOSE
    assert apart(a[~full], b[~full]) > 100 * CLOSE
    short = TextInput(shifted.text.ids[1:, :9], shifted.text.mask[1:, :9])   # row 1 ends here: its first padding has to be made
    assert apart(shifted.made.model.encode_text(short), a[1:]) < CLOSE


def test_another_norm_of_the_memory_is_seen() -> None:
    made = beside()
    with torch.no_grad():
        made.made.model.part("decoder").w.blocks[0].cross.body.norm_memory.weight.add_(1.0)
    logits = made.s.head("lm", made.s.fused(by="decoder").w.x)[:, : LENGTH - 1]
    assert apart(logits, made.theirs(made.pixels, made.text.ids)["logits"]) > 100 * CLOSE
