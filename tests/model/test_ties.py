"""What is shared is one object: after assembly, after a step, after saving and loading, and in the teacher's copy."""

from __future__ import annotations

import io

import pytest
import torch

from tests.builders import tiny_batch, tiny_model, tiny_streams
from vlpkit.assemble import Assembly
from vlpkit.errors import AssemblyError
from vlpkit.model import VLModel


def blip_ties(model: VLModel) -> list[bool]:
    text, fusion, decoder = model.part("text"), model.part("fusion"), model.part("decoder")
    return [
        fusion.w is text.trunk,
        *(mine.get_submodule(name) is theirs.get_submodule(name) for mine, theirs in zip(decoder.w.blocks, text.trunk.blocks) for name in ("ffn", "cross")),
        *(mine.get_submodule("self") is not theirs.get_submodule("self") for mine, theirs in zip(decoder.w.blocks, text.trunk.blocks)),
        model.head("lm").out.weight is text.embed.word.weight,
    ]


def step(made: Assembly, words: object) -> None:
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1)
    s = tiny_streams(made, tiny_batch(words))  # type: ignore[arg-type]
    torch.stack([objective(s).value for objective in made.objectives.values()]).sum().backward()
    optimizer.step()
    if made.teacher is not None:
        made.teacher.after_step(made.model)


def saved_and_loaded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return loaded


def test_blip_shares_one_text_stack() -> None:
    made, _ = tiny_model("model=blip")
    assert all(blip_ties(made.model))


def test_ties_outlive_a_step_a_save_and_a_load() -> None:
    made, words = tiny_model("model=blip")
    step(made, words)
    assert all(blip_ties(made.model))
    fresh, _ = tiny_model("model=blip", seed=1)
    fresh.model.load_state_dict(saved_and_loaded(made.model.state_dict()))
    assert all(blip_ties(fresh.model))
    s, again = tiny_streams(made, tiny_batch(words)), tiny_streams(fresh, tiny_batch(words))
    assert torch.equal(s.fused("clean", "match.text").w.x, again.fused("clean", "match.text").w.x)


def test_a_shared_parameter_is_optimised_once() -> None:
    made, _ = tiny_model("model=blip")
    names = [name for name, _ in made.model.named_parameters()]
    assert "text.embed.word.weight" in names
    assert "heads.lm.out.weight" not in names
    assert not [name for name in names if name.startswith("fusion.")]


def test_the_word_table_of_albef_is_its_output_table_also_in_the_teacher() -> None:
    made, words = tiny_model("model=albef")
    assert made.teacher is not None
    for _ in range(2):
        for model in (made.model, made.teacher.model):
            assert model.head("mlm").out.weight is model.part("text").embed.word.weight
        step(made, words)
    assert made.teacher.model.part("text").embed.word.weight is not made.model.part("text").embed.word.weight


def test_a_teacher_of_tied_parts_is_tied_in_the_same_way() -> None:
    made, words = tiny_model("model=blip", "teacher.parts=[vision,text,fusion,decoder,align,heads.lm]")
    assert made.teacher is not None
    assert all(blip_ties(made.teacher.model))
    step(made, words)
    made.teacher.load_state_dict(saved_and_loaded(made.teacher.state_dict()))
    assert all(blip_ties(made.teacher.model))


def test_a_teacher_moves_a_shared_tensor_once_a_step() -> None:
    made, _ = tiny_model("model=albef", "teacher.momentum=0.9")
    assert made.teacher is not None
    table = made.teacher.model.part("text").embed.word.weight
    before = table.clone()
    with torch.no_grad():
        made.model.part("text").embed.word.weight.add_(1.0)
    made.teacher.after_step(made.model)
    assert torch.allclose(table, before + 0.1, atol=1e-6)


def test_no_teacher_tensor_is_the_students() -> None:
    made, _ = tiny_model("model=blip")
    assert made.teacher is not None
    students = {p.data_ptr() for p in made.model.parameters()}
    assert not [name for name, p in made.teacher.named_parameters() if p.data_ptr() in students]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.ties=['text.trunk.blocks.*.gate -> decoder.w.blocks.*.ffn']", r"model\.ties\[0\].*matches nothing"),
        ("model.ties=['vision.trunk.blocks.0.ffn -> text.embed']", r"a tie needs equal shapes"),
        ("teacher.parts=[vision,text,align,heads.nothing]", r"teacher\.parts: heads\.nothing not found"),
        ("teacher.momentum=1.0", r"teacher\.momentum: 1\.0"),
    ],
)
def test_a_wrong_tie_or_teacher_is_refused(override: str, message: str) -> None:
    with pytest.raises(AssemblyError, match=message):
        tiny_model("model=albef", override)
