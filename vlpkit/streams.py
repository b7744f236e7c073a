"""One step's forward passes of one source, computed on demand and once: equal questions share one pass.
A pass is known by its part, its tap and the identity of the tensors it reads, never by the name it was asked under."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

import torch
from torch import Generator, Tensor

from vlpkit.align import Align
from vlpkit.encoders.codebook import Codebook
from vlpkit.encoders.encoder import Encoder
from vlpkit.errors import AssemblyError, no_draw
from vlpkit.fusion import Fusion
from vlpkit.model import Read, VLModel, parse_reads
from vlpkit.types import Aligned, Batch, Fused, ImageInput, Pairing, Side, Stream, TextInput

if TYPE_CHECKING:  # brings decoders, which few recipes need
    from vlpkit.encoders.detector import Detector

T = TypeVar("T")
Drawn = ImageInput | TextInput | Pairing | Tensor


class Draw(Protocol):
    """Corrupted inputs, pairings and labels from inputs, other draws and streams; made once a step, without gradient."""

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """Named results; `rng` is a CPU generator of this draw's own, so a draw is the same on every device."""


def seed_of(*words: int | str) -> int:
    """A 63-bit seed that is a pure function of its words, equal on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=8).digest(), "big") >> 1


class Streams:
    """Passes of one micro-batch of one source.

    Args:
        model: whose parts run.
        batch: what they read.
        draws: by name; results are asked for as `name.key`.
        seed: words that, with a draw's name, seed its generator: (seed, step, micro-batch, rank, source).
        step: the optimiser step, counted from 0.
        teacher: model with momentum weights, run without gradient over the same batch and the same draws.
        corrupt: whether draws hide words and regions and add rows of their own; an evaluation reads what there is, and all of it.
    """

    def __init__(
        self, model: VLModel, batch: Batch, *, draws: Mapping[str, Draw] | None = None, seed: tuple[int | str, ...] = (), step: int = 0,
        teacher: VLModel | None = None, corrupt: bool = True, _drawn: dict[str, Drawn] | None = None,
    ) -> None:
        self.model, self.batch, self.step, self.corrupt = model, batch, step, corrupt
        self.counts: Counter[str] = Counter()
        self._draws, self._seed, self._memo = dict(draws or {}), seed, dict[Hashable, tuple[Any, Any]]()
        self._student = _drawn is None
        self._drawn: dict[str, Drawn] = {} if _drawn is None else _drawn
        self._waiting: list[str] = []
        self._grad = torch.is_grad_enabled() and self._student
        self._device = batch.pair_id.device.type
        self._amp = torch.is_autocast_enabled(self._device) if self._device != "meta" else False
        self._teacher = None if teacher is None else Streams(teacher, batch, step=step, _drawn=self._drawn)

    @property
    def teacher(self) -> Streams:
        """The same batch and draws under momentum weights. Raises AssemblyError when the recipe has no teacher."""
        if self._teacher is None:
            raise AssemblyError("asks for a teacher, but none is configured. Add one (teacher=ema) or choose an objective without (objective=[itc])")
        return self._teacher

    # -- inputs and draws ------------------------------------------------------------------------------------------

    def drawn(self, name: str) -> Drawn:
        """What a draw made, as `draw.key`; drawn on first demand. Raises AssemblyError for an unknown name or a circle."""
        if name not in self._drawn:
            draw = name.partition(".")[0]
            if not self._student:
                raise AssemblyError(f"{name!r}: the teacher draws nothing; the student must ask first")
            if draw not in self._draws:
                raise AssemblyError(no_draw(name, self._draws))
            if draw in self._waiting:
                raise AssemblyError(f"draws wait for each other: {' -> '.join([*self._waiting, draw])}")
            self._waiting.append(draw)
            rng = torch.Generator().manual_seed(seed_of(*self._seed, draw))
            with ExitStack() as mode:
                mode.enter_context(torch.no_grad())
                if self._amp:  # inputs keep their types: autocast refuses to join fp16 features under bf16, and passes have a mode of their own
                    mode.enter_context(torch.autocast(self._device, enabled=False))
                made = self._draws[draw](self, rng)
            self._waiting.pop()
            self._drawn.update({f"{draw}.{key}": value for key, value in made.items()})
            if name not in self._drawn:
                raise AssemblyError(f"reads {name!r}, but the draw {draw!r} makes {', '.join(f'{draw}.{key}' for key in made)}")
        return self._drawn[name]

    def image(self, name: str = "clean") -> ImageInput:
        """An image input of the batch, or a drawn one; with its regions, where the recipe has a detector. Raises AssemblyError when there is none of that name."""
        given = self._given(name, self.batch.images, ImageInput, "image")
        return given if given.regions is not None or "detector" not in self.model.names else self._detected(given)[0]

    def text(self, name: str = "clean") -> TextInput:
        """A text input of the batch, or a drawn one. Raises AssemblyError when there is none of that name."""
        return self._given(name, self.batch.texts, TextInput, "text")

    def _given(self, name: str, have: Mapping[str, T], kind: type[T], what: str) -> T:
        if "." in name:
            found = self.drawn(name)
            if not isinstance(found, kind):
                raise AssemblyError(f"reads {name!r} as {what}, but it is a {type(found).__name__}")
            return found
        if name not in have:
            raise AssemblyError(f"reads the {what} {name!r}, but the source delivers {', '.join(have) or 'none'}")
        return have[name]

    def pairing(self, name: str | Pairing) -> Pairing:
        """A drawn pairing, or the given one. Raises AssemblyError when the name is something else."""
        if not isinstance(name, str):
            return name
        found = self.drawn(name)
        if not isinstance(found, Pairing):
            raise AssemblyError(f"reads {name!r} as a pairing, but it is a {type(found).__name__}")
        return found

    def target(self, name: str) -> Tensor:
        """A label tensor that the source delivers, or the recipe's detector. Raises AssemblyError when there is none of that name."""
        have = self.batch.targets
        if name not in have and "detector" in self.model.names:
            have = {**have, **self._detected(self._given("clean", self.batch.images, ImageInput, "image"))[1]}
        if name not in have:
            raise AssemblyError(f"reads the target {name!r}, but the source delivers {', '.join(have) or 'none'}")
        return have[name]

    def labels(self, name: str) -> Tensor:
        """Drawn labels. Raises AssemblyError when the name is something else."""
        found = self.drawn(name)
        if not isinstance(found, Tensor):
            raise AssemblyError(f"reads {name!r} as labels, but it is a {type(found).__name__}")
        return found

    # -- passes ----------------------------------------------------------------------------------------------------

    def _once(self, key: Hashable, keep: object, run: Callable[[], T], count: str | None = None) -> T:
        """The memo: `keep` holds the tensors whose identity is in the key, so that no id is given to another tensor."""
        if key not in self._memo:
            self._memo[key] = (self._run(run, count), keep)
        found: T = self._memo[key][0]
        return found

    def _run(self, run: Callable[[], T], count: str | None) -> T:
        with ExitStack() as mode:
            # Passes run in the mode of the Streams, not of whoever asks first: a draw asks without gradient.
            mode.enter_context(torch.set_grad_enabled(self._grad))
            if self._device != "meta" and torch.is_autocast_enabled(self._device) != self._amp:
                mode.enter_context(torch.autocast(self._device, enabled=self._amp))
            made = run()
        if count is not None:
            self.counts[count] += 1
        return made

    def _encoded(self, part: str, given: ImageInput | TextInput, tap: str) -> Stream:
        encoder: Encoder = self.model.part(part)
        if not encoder.has(tap):
            numbers = "" if encoder.trunk is None else f", 0..{encoder.trunk.depth}"
            raise AssemblyError(f"{part}.{tap} is no tap of {part} (it has: {', '.join(encoder.taps)}{numbers})")
        key = given.key()
        s: Stream = self._once((part, "embed", key), given, lambda: encoder.embed(given), f"{part}.embed")
        if encoder.trunk is None and encoder.neck is None:
            return s
        runs = encoder.runs(tap)
        for i, run in enumerate(runs):
            # A tail through experts of its own is a pass of its own; what it goes on from is shared.
            count = part if i == 0 else f"{part}.{tap}" if run.route is not None and runs[i - 1].route is None else None
            s = self._once((part, tuple(runs[: i + 1]), key), given, partial(encoder.play, s, run), count)
        if tap == "embed" or tap.isdigit():
            return s
        return self._once((part, tuple(runs), "finish", key), given, partial(encoder.finish, s, tap), None if runs else part)

    def v(self, image: str = "clean", tap: str = "encode") -> Stream:
        """(R, M, D) stream of an image input."""
        return self._encoded("vision", self.image(image), tap)

    def w(self, text: str = "clean", tap: str = "encode") -> Stream:
        """(B, N, D) stream of a text input."""
        return self._encoded("text", self.text(text), tap)

    def read(self, reads: str, image: str, text: str, pairing: str | Pairing, given: str | None = None) -> Stream:
        """What a part reads on one side: (P, L, D), rows re-paired where the reads end; `given` is the text behind fusions."""
        streams = [self._term(term, image, text, pairing, given) for term in parse_reads(reads)]
        return streams[0] if len(streams) == 1 else Stream.cat(*streams)

    def _term(self, term: Read, image: str, text: str, pairing: str | Pairing, given: str | None) -> Stream:
        part, tap, run = term
        if isinstance(self.model.part(part), Fusion):
            fused = self.fused(image, given or text, pairing, by=part)
            s: Stream = fused.v if tap == "v" else fused.w
        elif part == "vision" and self._seen(image) is None:
            encoder: Encoder = self.model.part(part)
            rows = len(self.text(text)) if pairing == "aligned" else len(self.pairing(pairing).text)
            s = Stream.empty(rows, encoder.width(tap), "v", next(encoder.parameters()))
        else:
            s = self._encoded(part, self.image(image) if part == "vision" else self.text(text), tap)
            if pairing != "aligned":
                pairs = self.pairing(pairing)
                s = s.rows(pairs.image if part == "vision" else pairs.text)
            elif part == "vision" and self.batch.of is not None:
                s = s.rows(self.batch.of)
        return s.part(run) if run else s

    def _seen(self, image: str) -> ImageInput | None:
        """The image input that a fusion reads; None where the source delivers texts alone."""
        return self.image(image) if self.batch.images or "." in image else None

    def fused(
        self, image: str = "clean", text: str = "clean", pairing: str | Pairing = "aligned", *, by: str = "fusion", given: str | None = None
    ) -> Fused:
        """Both sides after the fusion `by`: P rows, one pass. A pairing of the caller's own is run anew and not kept.

        `given` names the text that stands behind another fusion in what `by` reads, such as a prefix; left out, it is `text`, too. Of a source
        without images, v is a stream of length 0.
        """
        fusion: Fusion = self.model.part(by)
        rows = pairing if not isinstance(pairing, str) else None if pairing == "aligned" else self.pairing(pairing)
        seen, words, prefix = self._seen(image), self.text(text), None if given is None else self.text(given)
        # Images are re-paired behind their keys and values, so one that stands in many pairs costs no more than one that stands in one.
        late = rows is not None and seen is not None and len(seen) <= len(rows.image) and all(term.part == "vision" for term in parse_reads(fusion.reads["v"]))
        late = late and rows is not None and rows.image.ndim == 1 and self.batch.of is None

        def run() -> Fused:
            v = self.read(fusion.reads["v"], image, text, "aligned" if late else pairing, given)
            return fusion(v, self.read(fusion.reads["w"], image, text, pairing, given), of=rows.image if late and rows is not None else None)

        if not isinstance(pairing, str):
            return self._run(run, by)
        inputs = [one for one in (seen, words, prefix) if one is not None]
        return self._once((by, *(one.key() for one in inputs), tuple(id(t) for t in rows or ())), (inputs, rows), run, by)

    def side(self, side: Side, image: str = "clean", text: str = "clean", pairing: str | Pairing = "aligned", *, by: str = "fusion") -> Stream:
        """(P, L, D) one side behind the fusion `by`, or the encoder of that side alone, which sees nothing of the other."""
        if isinstance(self.model.part(by), Fusion):
            fused = self.fused(image, text, pairing, by=by)
            return fused.v if side == "v" else fused.w
        return self._encoded(by, self.image(image) if side == "v" else self.text(text), "encode")

    def _detected(self, given: ImageInput) -> tuple[ImageInput, Mapping[str, Tensor]]:
        """What the recipe's frozen detector finds in images, and what it calls that; once."""
        detector: Detector = self.model.part("detector")
        with torch.no_grad():
            return self._once(("detector", given.key()), given, lambda: detector(given), "detector")

    def codes(self, image: str = "clean") -> Tensor:
        """(R, M) int64 code of each patch, from the frozen codebook of the recipe."""
        book: Codebook = self.model.part("codebook")
        given = self.image(image)
        with torch.no_grad():
            return self._once(("codebook", given.key()), given, lambda: book(given), "codebook")

    @overload
    def point(self, side: Literal["v"], name: str = "clean", *, by: str = "align") -> Tensor: ...
    @overload
    def point(self, side: Literal["w"], name: str = "clean", *, by: str = "align") -> Tensor: ...
    def point(self, side: Side, name: str = "clean", *, by: str = "align") -> Tensor:
        """(B, E) unit vectors of one side in the shared space."""
        align: Align = self.model.part(by)
        given: ImageInput | TextInput = self.image(name) if side == "v" else self.text(name)
        projector = align.v if side == "v" else align.w
        image, text = (name, "clean") if side == "v" else ("clean", name)
        return self._once((by, side, given.key()), given, lambda: projector(self.read(align.reads[side], image, text, "aligned")))

    def aligned(self, image: str = "clean", text: str = "clean", *, by: str = "align") -> Aligned:
        """Both sides in the shared space, with scale and bias."""
        align: Align = self.model.part(by)
        scale, bias = self._once((by, "temper"), None, align.temper)
        return Aligned(self.point("v", image, by=by), self.point("w", text, by=by), scale, bias)

    def head(self, name: str, *given: Stream | Tensor) -> Any:
        """A head of the model over streams or states."""
        with torch.set_grad_enabled(self._grad):
            return self.model.head(name)(*given)
