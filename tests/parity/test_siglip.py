"""SigLIP with transformers' and open_clip's weights: points, loss and gradients; padding read as words."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.loss import SigLipLoss
from torch import Tensor
from transformers import SiglipConfig, SiglipModel

from tests.parity.beside import CLOSE, IMAGE, LENGTH, SPECIAL, VOCAB, Beside, apart, ours, probe
from vlpkit.assemble import Assembly
from vlpkit.tables.siglip import open_clip_siglip, transformers_siglip
from vlpkit.types import TextInput


@pytest.fixture
def made() -> Assembly:
    return ours("model=siglip", f"size.words={LENGTH}")


def their_transformers() -> SiglipModel:
    size = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 4, "attention_dropout": 0.0}
    return SiglipModel(SiglipConfig(
        text_config={**size, "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "projection_size": 48, "eos_token_id": SPECIAL["sep"],
                     "bos_token_id": SPECIAL["cls"], "pad_token_id": SPECIAL["pad"]},
        vision_config={**size, "image_size": IMAGE, "patch_size": 8},
    ))


def their_open_clip() -> open_clip.CustomTextCLIP:
    tower = open_clip.CustomTextCLIP(
        48, vision_cfg={"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none", "image_size": IMAGE},
        text_cfg={"context_length": LENGTH, "vocab_size": VOCAB, "width": 48, "heads": 4, "layers": 2, "no_causal_mask": True, "pool_type": "last",
                  "proj_bias": True, "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}},
        init_logit_scale=2.3, init_logit_bias=-10.0,
    )
    tower.visual.trunk = type(tower.visual.trunk)(
        img_size=IMAGE, patch_size=8, embed_dim=48, depth=2, num_heads=4, class_token=False, global_pool="map", num_classes=0, act_layer="gelu_tanh",
    )  # the same model at a width that timm has no name for
    return tower


def test_transformers_gives_the_same_points_loss_and_gradients(made: Assembly) -> None:
    both = Beside(made, their_transformers(), transformers_siglip())
    answer = both.theirs(input_ids=both.text.ids, pixel_values=both.pixels, return_loss=True)
    z = both.s.aligned()
    assert apart(z.v, answer.image_embeds) < CLOSE
    assert apart(z.w, answer.text_embeds) < CLOSE
    loss = both.loss("sigmoid")
    assert apart(loss, answer.loss) < 1e-6
    assert both.gradients_apart(loss, answer.loss) == {}
    assert both.report.fresh == ()


def test_open_clip_gives_the_same_points_loss_and_gradients(made: Assembly) -> None:
    both = Beside(made, their_open_clip(), open_clip_siglip())
    v, w, scale, bias = both.theirs(both.pixels, both.text.ids)
    z = both.s.aligned()
    assert apart(z.v, v) < CLOSE
    assert apart(z.w, w) < CLOSE
    loss, expected = both.loss("sigmoid"), SigLipLoss()(v, w, scale, bias)
    assert apart(loss, expected) < 1e-6
    assert both.gradients_apart(loss, expected) == {}
    assert both.report.fresh == ()


def test_the_probe_stands_before_the_patches_it_read(made: Assembly) -> None:
    both = Beside(made, their_transformers(), transformers_siglip())
    answer, seen = both.theirs.vision_model(pixel_values=both.pixels), both.s.v()
    assert seen.parts == (("v_cls", 1), ("v", 16))
    assert apart(seen.part("v").x, answer.last_hidden_state) < CLOSE
    assert apart(seen.part("v_cls").x[:, 0], answer.pooler_output) < CLOSE
    assert both.gradients_apart(probe(seen.part("v_cls").x[:, 0]), probe(answer.pooler_output)) == {}


def test_a_text_is_filled_up_to_the_full_length_before_it_is_read(made: Assembly) -> None:
    """The model was trained so, and a batch that is padded to its longest text would give other points."""
    both = Beside(made, their_transformers(), transformers_siglip())
    text = both.text.rows(torch.tensor([2]))
    short = int(text.mask.sum())
    cut = TextInput(text.ids[:, :short], text.mask[:, :short])

    def theirs(ids: Tensor) -> Tensor:
        return torch.nn.functional.normalize(both.theirs.text_model(input_ids=ids).pooler_output, dim=-1)

    point = made.model.encode_text(cut)
    assert apart(point, theirs(text.ids)) < CLOSE
    assert apart(point, theirs(cut.ids)) > 100 * CLOSE


def test_a_scale_beyond_a_hundred_survives_a_step(made: Assembly) -> None:
    with torch.no_grad():
        made.model.part("align").log_scale.fill_(torch.tensor(117.0).log())
    made.model.after_step()
    assert float(made.model.part("align").temper()[0]) == pytest.approx(117.0)
