"""Fusion as steps over trunks: cross, co and merged attention, and every decoder, are presets of it in YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vlpkit.joint import Merged
from vlpkit.layers.attention import Cache
from vlpkit.layers.trunk import Trunk, layer_range
from vlpkit.types import Fused, Stream


class Fusion(nn.Module):
    """Blocks that move one side, both in lockstep, or both as one stream.

    Args:
        reads: what enters on each side, as `part.tap[:name]`.
        v: trunk of the image side; may be filled by a tie.
        w: trunk of the text side; may be filled by a tie.
        joint: operation over both sides.
        steps: layer ranges by trunk, such as `{w: all}`, `{v: all, w: all}` (lockstep: each side reads the other as it
            stood before the block) or `{joint: all}`; a borrowed trunk keeps its layer numbers.
        close: whether a trunk whose last block was played gets its closing norm.
    """

    v: Trunk | None
    w: Trunk | None
    joint: Merged | None

    def __init__(
        self, *, reads: Mapping[str, str], steps: Sequence[Mapping[str, str | int]], v: Trunk | None = None, w: Trunk | None = None,
        joint: Merged | None = None, close: bool = True,
    ) -> None:
        super().__init__()
        self.reads, self.steps, self.close = dict(reads), [dict(step) for step in steps], close
        for name, trunk in (("v", v), ("w", w), ("joint", joint)):
            self.register_module(name, trunk)  # a place that a tie fills is registered as empty

    def plan(self) -> list[dict[str, range]]:
        """The steps as layer numbers. Raises ValueError when a trunk is missing or ranges of one step differ in length."""
        plan: list[dict[str, range]] = []
        for i, step in enumerate(self.steps):
            rows: dict[str, range] = {}
            for name, layers in step.items():
                trunk = {"v": self.v, "w": self.w, "joint": self.joint}.get(name)
                if trunk is None:
                    raise ValueError(f"steps[{i}] plays {name!r}, which is not built (there are: {', '.join(self._built()) or 'none'})")
                rows[name] = layer_range(layers, trunk.depth)
            if len({len(r) for r in rows.values()}) > 1:
                raise ValueError(f"steps[{i}] plays {', '.join(f'{len(r)} blocks of {n}' for n, r in rows.items())}; lockstep needs equal numbers")
            plan.append(rows)
        return plan

    def _built(self) -> list[str]:
        return [n for n, t in (("v", self.v), ("w", self.w), ("joint", self.joint)) if t is not None]

    def forward(self, v: Stream, w: Stream, *, of: Tensor | None = None, cache: Cache | None = None) -> Fused:
        """Run the steps.

        Args:
            v: (R, M, Dv) stream.
            w: (P, N, Dw) stream.
            of: (P,) row of `v` for each row of `w`, where R images stand in P drawn pairs; P is R when left out.
            cache: kept keys and values.

        Returns:
            The fused pair, (P, M, Dv) and (P, N, Dw).
        """
        steps, last, still = self.plan(), dict[str, int](), v
        if of is not None:
            still = v.rows(of)
        if any(name != "w" for step in steps for name in step):  # what moves needs a row for each pair
            v, of = still, None
        for step in steps:
            if "joint" in step:
                assert self.joint is not None
                v, w = self.joint(v, w, layers=step["joint"], cache=cache)
            elif len(step) == 1:  # one side moves and the other stands still: all its blocks in one call
                ((name, layers),) = step.items()
                v, w = self._move(name, layers, v, w, cache, of)
            else:
                for i, j in zip(step["v"], step["w"]):
                    (v, _), (_, w) = self._move("v", range(i, i + 1), v, w, cache), self._move("w", range(j, j + 1), v, w, cache)
            last.update({name: layers.stop for name, layers in step.items()})
        if self.close:
            v = self.v.close(v) if self.v is not None and last.get("v") == self.v.depth else v
            w = self.w.close(w) if self.w is not None and last.get("w") == self.w.depth else w
        return Fused(v if of is None else still, w)

    def _move(self, name: str, layers: range, v: Stream, w: Stream, cache: Cache | None, of: Tensor | None = None) -> tuple[Stream, Stream]:
        if name == "v":
            assert self.v is not None
            return self.v(v, memory=w, layers=layers, cache=cache, close=False), w
        assert self.w is not None
        return v, self.w(w, memory=v, of=of, layers=layers, cache=cache, close=False)
