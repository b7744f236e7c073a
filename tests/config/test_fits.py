"""Sizes and devices that cannot work are refused by the command line itself, in the words of the part that would refuse them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.builders import composed
from vlpkit.errors import ConfigError
from vlpkit.fits import demand_cuda, misfits
from vlpkit.layers.attention import Attention
from vlpkit.layers.embed import PatchEmbed

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize(("override", "message"), [
    ("model.vision.trunk.heads=5", "model.vision.trunk: Trunk refused this: width 128 does not divide into 5 heads"),
    ("model.text.trunk.heads=0", "model.text.trunk: Trunk refused this: width 128 does not divide into 0 heads"),
    ("model.vision.embed.patch=7", "model.vision.embed: PatchEmbed refused this: image_size 64 is no multiple of patch 7"),
    ("model.align.v.out=32", "model.align: Align refused this: the sides project to 32 and 128 numbers; the shared space has one width"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_told(override: str, message: str) -> None:
    assert misfits(composed("model=clip", "size=tiny", override)["model"]) == [message]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_no_recipe_is_refused(recipe: str, size: str) -> None:
    assert misfits(composed(f"model={recipe}", f"size={size}")["model"]) == []


def test_the_parts_say_the_same() -> None:
    with pytest.raises(ValueError, match="width 128 does not divide into 5 heads"):
        Attention(128, heads=5)
    with pytest.raises(ValueError, match="image_size 64 is no multiple of patch 7"):
        PatchEmbed(8, image_size=64, patch=7)


@pytest.mark.parametrize(("trainer", "there", "refused"), [
    ({"accelerator": "cuda", "precision": "auto"}, False, "trainer.accelerator"),
    ({"accelerator": "auto", "precision": "fp16"}, False, "trainer.precision"),
    ({"accelerator": "cpu", "precision": "fp16"}, True, "trainer.precision"),
    ({"accelerator": "cuda", "precision": "fp16"}, True, None),
    ({"accelerator": "auto", "precision": "bf16"}, False, None),
])  # fmt: skip
def test_a_device_that_is_not_there_is_refused(trainer: dict[str, Any], there: bool, refused: str | None) -> None:
    if refused is None:
        demand_cuda(trainer, there=lambda: there)
        return
    with pytest.raises(ConfigError, match=refused):
        demand_cuda(trainer, there=lambda: there)


@pytest.mark.parametrize("override", ["model.vision.trunk.heads=5", "model.vision.embed.patch=7", "model.align.v.out=32"])
def test_none_of_it_needs_torch(override: str, tmp_path: Path) -> None:
    """The command with torch out of reach: it refuses in the same words."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('torch was imported')\n")
    run = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "model=clip", "size=tiny", override], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path), "PATH": ""}, timeout=60
    )
    assert run.returncode == 2 and "refused this" in run.stderr and "torch was imported" not in run.stderr
