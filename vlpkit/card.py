"""The assembly card: what was built, what is shared, frozen and tied, and the passes that each step will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from vlpkit.assemble import Assembly


def count(module: nn.Module) -> tuple[int, int]:
    """Parameters and trainable parameters, each shared tensor once."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)


def _human(n: int) -> str:
    return f"{n / 1e6:.2f}M" if n >= 1e5 else f"{n / 1e3:.1f}k"


def card(assembly: Assembly, counts: Mapping[str, Counter[str]], dropped: Sequence[str] = (), facts: Mapping[str, str] | None = None) -> str:
    """A page of text.

    Args:
        assembly: on any device.
        counts: passes of one step by source, as `dry_step` counted them.
        dropped: blocks of the recipe whose option was not chosen.
        facts: further lines, such as batch and precision.
    """
    model = assembly.model
    whole, trains = count(model)
    lines = [f"{model.name}: {_human(whole)} parameters, {_human(trains)} of them trained", "", "parts"]
    seen: set[int] = set()
    for name in [*model.names, "heads"]:
        part = model.heads if name == "heads" else model.part(name)
        if name == "heads" and not model.heads:
            continue
        own = [p for p in part.parameters() if id(p) not in seen]
        shared = sum(p.numel() for p in part.parameters() if id(p) in seen)
        seen.update(id(p) for p in own)
        note = f", {_human(shared)} shared with parts above" if shared else ""
        names = f" ({', '.join(model.heads)})" if name == "heads" else ""
        lines.append(f"  {name:<10} {_human(sum(p.numel() for p in own)):>9}{note}{names}")
    if assembly.ties:
        lines += ["", f"ties ({len(assembly.ties)})", *[f"  {a} is {b}" for a, b in assembly.ties[:6]]]
        lines += [f"  ... and {len(assembly.ties) - 6} more"] if len(assembly.ties) > 6 else []
    if assembly.frozen:
        lines += ["", "frozen", *[f"  {path}" for path in assembly.frozen]]
    lines += ["", "objectives"]
    lines += [f"  {name:<10} {type(objective).__name__} on {objective.on}, weight {objective.weight:g}" for name, objective in assembly.objectives.items()]
    if assembly.teacher is not None:
        lines += ["", f"teacher: momentum {assembly.teacher.momentum:g} of {', '.join([*assembly.teacher.model.names, *(f'heads.{h}' for h in assembly.teacher.model.heads)])}"]
    lines += ["", "passes a step"]
    for source, passes in counts.items():
        lines.append(f"  {source:<10} " + ", ".join(f"{name} {n}" for name, n in sorted(passes.items())))
    if dropped:
        lines += ["", "left out, because their option was not chosen", *[f"  {name}" for name in dropped]]
    if facts:
        lines += ["", *[f"{name}: {value}" for name, value in facts.items()]]
    return "\n".join(lines) + "\n"
