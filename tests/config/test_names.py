"""Names without their parts or draws are refused before torch is imported; what might be read unseen is left to the dry step."""

from __future__ import annotations

import pytest

from tests.builders import CONF, RECIPES, composed
from vlpkit.names import astray, disordered, unbuilt, undrawn, unknown, unread, unsourced


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_part_of_a_recipe_is_named_and_every_draw_that_it_names_is_made(recipe: str) -> None:
    assert unread(composed(f"model={recipe}")) == []
    assert undrawn(composed(f"model={recipe}")) == []
    assert unsourced(composed(f"model={recipe}")) == []
    assert unbuilt(composed(f"model={recipe}")) == []
    assert disordered(composed(f"model={recipe}")) == []
    assert astray(composed(f"model={recipe}")) == []
    assert unknown(composed(f"model={recipe}")) == []


@pytest.mark.parametrize(("overrides", "part"), [
    (("model=clip", "fusion=cross"), "fusion"), (("model=clip", "decoder=cross"), "decoder"), (("model=albef", "objective=[itc_momentum]"), "fusion"),
    (("model=albef", "objective=[mlm]"), "align"),
])  # fmt: skip
def test_a_part_that_nobody_names_is_refused(overrides: tuple[str, ...], part: str) -> None:
    (line,) = unread(composed(*overrides))
    assert line.startswith(f"model.{part}: no objective reads it (")
    assert f"+model.freeze=[{part}]" in line


@pytest.mark.parametrize("overrides", [
    ("model=clip", "fusion=cross", "+model.freeze=[fusion]"),                    # it need not train
    ("model=blip", "objective=[itc_momentum,lm]"),                              # its blocks are those of the text
    ("model=clip", "fusion=cross", "+objectives.own._target_=examples.objectives.Evenness"),   # what that reads stands in its code
])  # fmt: skip
def test_a_part_that_may_be_read_is_not(overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlpkit.check._trusted", {"vlpkit", "examples"})
    assert unread(composed(*overrides)) == []


@pytest.mark.parametrize(("overrides", "message"), [
    (("model=blip", "objectives.itm.text=mtch.text"), "objectives.itm.text reads 'mtch.text', but no draw is called 'mtch' (there are: hard, caption, match). Did you mean 'match'?"),
    (("model=albef", "draws.mask=null"), "objectives.mlm.text reads 'mask.text', but no draw is called 'mask' (there are: hard)."),
    (("model=vlmo", "+draws.hard.image=hole.image"), "draws.hard.image reads 'hole.image', but no draw is called 'hole' (there are: hard, mask)."),
])  # fmt: skip
def test_a_draw_that_nobody_makes_is_refused(overrides: tuple[str, ...], message: str) -> None:
    assert message in [line.strip() for line in undrawn(composed(*overrides))]


def test_objectives_that_bring_a_missing_draw_are_named() -> None:
    mask, mix = undrawn(composed("model=lxmert", "objective=[mrfr]"), conf=CONF)
    assert mask == "objectives.mrfr.text reads 'mask.text', but no draw is called 'mask' (there are: hole). These bring it: objective=[..., mlm | mlm_text]"
    assert mix.endswith("no draw is called 'mix' (there are: hole). These bring it: objective=[..., itm | wpa | wra]")


def test_a_source_that_the_data_do_not_deliver_is_refused() -> None:
    (line,) = unsourced(composed("model=simvlm", "data.sources.texts=null"))
    assert line.startswith("objectives.lm_texts reads the source 'texts', but the data deliver pairs. Add it (+data.sources.texts.holds=texts)")


def test_an_objective_without_its_part_is_refused() -> None:
    (line,) = unbuilt(composed("model=clip", "vision=resnet50", "objective=[itc,itm]"))
    assert line.startswith("objectives.itm asks for the part 'fusion', but 'clip' builds vision, text, align.\n  Add one (fusion=..., see --help)")


@pytest.mark.parametrize(("overrides", "objective", "kind"), [
    (("model=clip", "text=roberta", "decoder=cross", "objective=[itc,lm]"), "lm", "roberta"),
    (("model=simvlm", "text=electra", "~model.text.embed.norm"), "lm", "electra"),
])  # fmt: skip
def test_an_ordered_text_before_a_transformers_encoder_is_refused(overrides: tuple[str, ...], objective: str, kind: str) -> None:
    lines = disordered(composed(*overrides))
    assert lines and lines[0].startswith(f"objectives.{objective} reads an ordered text, but text={kind} lets every word read every other.")


def test_a_transformers_encoder_whose_words_are_read_freely_is_not() -> None:
    assert disordered(composed("model=albef", "text=roberta")) == []


@pytest.mark.parametrize(("override", "message"), [
    ("+model.freeze=[vison.trunk]", "model.freeze[0]: 'vison.trunk' matches nothing: the model has no 'vison' (it has: vision, text, align, heads). Did you mean 'vision'?"),
    ("optim.groups=[{match: norm, decay: 0.0}, {match: '{vision,txt}.trunk', lr_scale: 2.0}]", "optim.groups[1].match: '{vision,txt}.trunk' matches nothing: the model has no 'txt'"),
    ("+model.ties=['text.trunk -> fusion.w']", "model.ties[0]: 'fusion.w' matches nothing: the model has no 'fusion'"),
])  # fmt: skip
def test_an_address_that_begins_with_no_part_is_refused(override: str, message: str) -> None:
    (line,) = astray(composed("model=clip", override))
    assert line.startswith(message)


def test_an_address_that_begins_anywhere_is_left_to_assembly() -> None:
    assert astray(composed("model=clip", "+model.freeze=['*.trunk.0-1']", "optim.groups=[{match: bias, decay: 0.0}]")) == []


@pytest.mark.parametrize(("overrides", "message"), [
    (("vision=resnet50", "model.vision.embed.name=renset50"), "model.vision.embed.name: timm has no 'renset50'. Did you mean 'resnet50'?"),
    (("vision=resnet50", "model.vision.embed.name=vit_base_patch16_223.augreg"), "model.vision.embed.name: timm has no 'vit_base_patch16_223.augreg'."),
    (("text=roberta", "model.text.embed.kind=robertta"), "model.text.embed.kind: transformers has no 'robertta'. Did you mean 'roberta'?"),
])  # fmt: skip
def test_a_backbone_that_the_library_lacks_is_refused(overrides: tuple[str, ...], message: str) -> None:
    (line,) = unknown(composed("model=clip", *overrides))
    assert line.startswith(message)


def test_every_model_of_timm_and_every_text_encoder_on_offer_is_known() -> None:
    import timm

    own = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")]  # other tests register models of their own
    for name in [*own, "resnet50.a1_in1k", "hf-hub:timm/resnet50.a1_in1k"]:
        assert unknown({"model": {"vision": {"embed": {"_target_": "vlpkit.encoders.timm.TimmBackbone", "name": name}}}}) == []
    for text in ("roberta", "albert", "electra", "deberta", "t5", "gpt2"):
        assert unknown(composed("model=clip", f"text={text}")) == []
