"""ALIGN with transformers' weights: an EfficientNet of timm beside theirs, points, loss and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AlignConfig, AlignModel

from tests.parity.beside import CLOSE, IMAGE, LENGTH, SPECIAL, VOCAB, Beside, apart, ours
from vlpkit.tables.align import STAGES_B0, transformers_align
from vlpkit.weights import load


def their_align() -> AlignModel:
    return AlignModel(AlignConfig(
        text_config={"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192,
                     "max_position_embeddings": LENGTH, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": SPECIAL["pad"]},
        vision_config={"image_size": IMAGE, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 320, "drop_connect_rate": 0.0},
        projection_dim=320,
    ))


@pytest.fixture
def both() -> Beside:
    """With batch norms that pass signals on and keep their statistics: the last cells of three images of 32 pixels are too few for new ones."""
    table = transformers_align(stages=STAGES_B0, segments=True)
    found = Beside(ours("model=align", "+model.text.embed.segments=2"), their_align(), table)
    norms = [module for module in found.theirs.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.add_(1.0)
            norm.momentum = 1.0
        found.theirs.vision_model(pixel_values=torch.randn(32, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(2)))
    load(found.made.model, {name: tensor.detach() for name, tensor in found.theirs.state_dict().items()}, table)
    for norm in (*norms, *found.made.model.part("vision").modules()):
        norm.eval()
    return found


def test_transformers_gives_the_same_points_loss_and_gradients(both: Beside) -> None:
    answer = both.theirs(
        input_ids=both.text.ids, attention_mask=both.text.mask.long(), token_type_ids=torch.zeros_like(both.text.ids), pixel_values=both.pixels,
        return_loss=True,
    )
    z = both.s.aligned()
    assert apart(both.s.v().part("v_cls").x[:, 0], answer.vision_model_output.pooler_output) < CLOSE
    assert apart(z.v, answer.image_embeds) < CLOSE
    assert apart(z.w, answer.text_embeds) < CLOSE
    loss = both.loss("itc")
    assert apart(loss, answer.loss) < 1e-6
    assert both.gradients_apart(loss, answer.loss, without="pooler.dense") == {}
    assert both.report.fresh == ()


def test_images_differ_in_what_they_become(both: Beside) -> None:
    """A tower that lets nothing through would agree with any other."""
    v = both.s.aligned().v.detach()
    assert float((v @ v.T - torch.eye(len(v))).max()) < 0.99
