"""scripts/convert.py's job: outside weights, a run or one of our folders in; our folder, a transformers folder or an open_clip folder out."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlpkit.errors import ConfigError, VlpError

if TYPE_CHECKING:  # heavy: refused commands never get so far
    from omegaconf import DictConfig

    from vlpkit.data.tokenize import Words
    from vlpkit.model import VLModel

FORMS = ("folder", "transformers", "open_clip")
EPILOG = """\
in
  a run folder or a checkpoint of one, or a folder that this command wrote: it knows its own model
  outside weights (.safetensors, .pt, .pth, .bin, .ckpt, or a folder of transformers or open_clip): say which model they are
  for, as for train.py: model=blip size=base model.text.words.name=FOLDER; the layout is recognised by its keys

out (--to)
  folder        config.yaml, model.safetensors, tokenizer/, preprocessing.json, card.txt: for evaluate.py run= and train.py weights=
  transformers  CLIPModel; SiglipModel; BLIP as retrieval/ (BlipForImageTextRetrieval) and captioning/ (BlipForConditionalGeneration)
  open_clip     a folder for open_clip.create_model_and_transforms('local-dir:OUT'): CLIP, CoCa, and
                SigLIP of a size that timm has a name for

examples
  python scripts/convert.py runs/a exported/a
  python scripts/convert.py runs/a exported/clip --to transformers
  python scripts/convert.py model_base.pth blip model=blip size=base model.text.words.name=bert-base-uncased
"""


@dataclass(frozen=True, eq=False)
class Held:
    """A model with everything that a folder tells of it.

    Args:
        model: with its weights.
        words: the tokenizer.
        config: the resolved configuration.
        step: optimiser steps done.
        samples_seen: pairs consumed by them.
        account: of the weights that came in, every key; "" for our own.
    """

    model: VLModel
    words: Words
    config: Mapping[str, Any]
    step: int = 0
    samples_seen: int = 0
    account: str = ""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source", type=Path, metavar="IN", help="a run, a folder or a file of weights")
    p.add_argument("out", type=Path, metavar="OUT", help="folder that is made; nothing may be there")
    p.add_argument("--layout", help="of outside weights, where the keys do not tell")
    p.add_argument("--to", choices=FORMS, default="folder", help="default: %(default)s")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the model that outside weights are for, as for train.py")
    return p


def main(argv: Sequence[str], *, conf: Path) -> int:
    """Convert as the words say, and tell what was written.

    Returns:
        exit code: 0, or 2 when a VlpError was raised, whose message alone goes to the error stream. Other exceptions pass.
    """
    options = parser().parse_intermixed_args(list(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        lines = convert(options.source, options.out, to=options.to, layout=options.layout, overrides=options.overrides, conf=conf)
    except VlpError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def convert(source: Path, out: Path, *, to: str = "folder", layout: str | None = None, overrides: Sequence[str] = (), conf: Path) -> list[str]:
    """Read, then write; returns what to tell.

    Args:
        source: a run, one of our folders, or outside weights.
        out: folder that is made.
        to: one of FORMS.
        layout: of outside weights; recognised when left out.
        overrides: the model that outside weights are for.
        conf: folder of the option files.

    Raises:
        VlpError: what cannot be read, fits nothing, or cannot be expressed outside; then nothing is left under `out`.
    """
    if not source.exists():
        raise ConfigError(f"{source}: there is no such file or folder. Name a run, a folder or a file of weights; --help says which")
    from vlpkit import export, folder
    from vlpkit.source import is_run

    folder.check_new(out)
    own = is_run(source)
    if own and (layout or overrides):
        raise ConfigError(f"{source}: is our own and knows its model; leave out {' '.join([*overrides, *([f'--layout {layout}'] if layout else [])])}")
    held = _own(source) if own else _outside(source, layout, overrides, conf)
    text = _card(held)
    if to == "folder":
        folder.write(out, model=held.model, words=held.words, config=held.config, card=text, step=held.step, samples_seen=held.samples_seen)
        return [*held.account.splitlines(), f"{out}: {held.model.name} after {held.step} steps; evaluate.py run={out}, train.py weights={out}"]
    write = export.to_transformers if to == "transformers" else export.to_open_clip
    return [*held.account.splitlines(), *write(out, model=held.model, words=held.words, config=held.config, card=text)]


def _own(source: Path) -> Held:
    from vlpkit.restore import restore

    found = restore(source)
    return Held(found.model, found.words, found.config, found.step, found.samples_seen)


def _outside(source: Path, layout: str | None, overrides: Sequence[str], conf: Path) -> Held:
    import torch

    from vlpkit.assemble import assemble
    from vlpkit.check import settle
    from vlpkit.compose import look_ahead
    from vlpkit.durations import Clock
    from vlpkit.start import start

    if not any(word.startswith("model=") for word in overrides):
        raise ConfigError(f"{source}: which model are these weights for? Write it behind, as for train.py: model=clip size=base")
    seen: list[DictConfig] = []
    look_ahead(list(overrides), conf=conf, check=seen.append)
    config, _ = settle(seen[0], conf=conf)
    words = _words(source, config)
    with torch.random.fork_rng(devices=[]):
        made = assemble(config, words=words, clock=Clock(batch=1, samples_per_epoch=1, total_steps=1), with_teacher=False)
    taken = start(made.model.eval(), str(source), words=words, layout=layout)
    return Held(made.model, words, config, account="\n".join(map(str, taken)))


def _words(source: Path, config: Mapping[str, Any]) -> Words:
    """The tokenizer beside the weights, else the one that the configuration names; there is nothing to train one on."""
    from vlpkit.build import build

    node = dict(config["model"]["text"]["words"])
    if source.is_dir() and (source / "tokenizer.json").is_file():
        node |= {"name": str(source), "size": None}
    if node.get("size") is not None:
        raise ConfigError(
            f"model.text.words.size: {node['size']} would train a tokenizer on captions, and there are none here.\n"
            "  Name the tokenizer of the weights: size.vocab=null model.text.words.name=FOLDER"
        )
    config["model"]["text"]["words"] = node
    words: Words = build(node, None, where="model.text.words")
    return words


def _card(held: Held) -> str:
    from vlpkit.card import card
    from vlpkit.dry import dry_step
    from vlpkit.durations import Clock

    made, passes = dry_step(held.config, words=held.words, clock=Clock(batch=1, samples_per_epoch=1, total_steps=1))
    text = card(made, passes, (), {"trained": f"{held.step} steps, {held.samples_seen} pairs", "words": f"{held.words.size}, at most {held.words.length} a text"})
    return text + (f"\n{held.account}\n" if held.account else "")
