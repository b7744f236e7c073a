"""What `--help` prints: how a command is written, and every option of every group with the first line of its own file.
Read from the option files, so that it cannot go stale; nothing is composed and Hydra is not asked."""

from __future__ import annotations

import re
from pathlib import Path

WIDTH = 118

HEADER = """\
vlpkit trains vision-language models from YAML. A command is a list of choices: group=option, or key=value.

  python train.py                                         clip, tiny, on the embedded world
  python train.py model=albef total=300_steps run_dir=runs/a
  python train.py run_dir=runs/a resume=auto              continue, or start if there is nothing yet
  python train.py model=albef 'objective=[itc_momentum,mlm]' fusion=co
  python train.py -m model=clip,albef,blip seed=1,2       one after another
  python train.py model=blip debug=check                  build without memory, print the card, stop
  torchrun --nproc-per-node=8 train.py model=blip data=cc3m trainer=ddp

Groups and their options:
"""
FOOTER = """
Keys: total seed run_dir resume weights plugins; in blocks data.root data.shards data.batch (the global batch) trainer.precision
optim.lr; and every parameter of every part, such as model.vision.trunk.drop_path=0.1 or objectives.itm.weight=0.5.
group=null takes a group away. --cfg job shows the whole configuration of a command without running it; --hydra-help has the rest.
"""


def usage(conf: Path, name: str = "train") -> str:
    """The whole text of `--help`."""
    order = re.findall(r"^\s*- (?:optional )?(\w+):", (conf / f"{name}.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    there = [folder.name for folder in sorted(conf.iterdir()) if folder.is_dir() and folder.name != "hydra"]
    groups = sorted(there, key=lambda group: (order.index(group) if group in order else len(order), group))
    return HEADER + "".join(_group(conf / group) for group in groups) + FOOTER


def _group(folder: Path) -> str:
    files = sorted(folder.glob("*.yaml"))
    return "".join(f"  {folder.name if i == 0 else '':<10} {file.stem:<16} {_about(file)}".rstrip() + "\n" for i, file in enumerate(files))


def _about(file: Path) -> str:
    """The first comment of an option file that is meant for people, cut at a word to what fits on the line."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").strip()
        if text and not re.match(r"@package|size:", text):
            room = WIDTH - 30
            return text if len(text) <= room else text[: text.rfind(" ", 0, room - 3)].rstrip(",;:.") + " ..."
    return ""
