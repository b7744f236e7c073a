"""Captions of unseen images by greedy decoding, compared with the references as the tokenizer spells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch

from vlpkit import dist
from vlpkit.assemble import Assembly
from vlpkit.data.module import DataModule
from vlpkit.data.tokenize import Template, Words
from vlpkit.errors import DataError
from vlpkit.evals.base import Evaluator, Subject, words_of
from vlpkit.evals.gallery import batches
from vlpkit.evals.textmetrics import TOKENIZER, caption_scores
from vlpkit.fusion import Fusion
from vlpkit.generate import greedy
from vlpkit.model import parse_reads
from vlpkit.objectives.lm import NextWord
from vlpkit.types import TextInput


@runtime_checkable
class Opens(Protocol):
    """A draw whose texts all begin with one word.

    Attributes:
        start: id of that word.
    """

    start: int


def opening(assembly: Assembly, objective: NextWord) -> int | None:
    """Id of the word that captions begin with: that of the draw which opens the objective's text or, where it reads the data's own
    text, the first of the template. None: its texts begin with any word."""
    draw, dot, _ = objective.text.partition(".")
    if dot:
        found = assembly.draws.get(draw)
        return found.start if isinstance(found, Opens) else None
    words: Words | None = assembly.model.part("text").words
    before = () if words is None else Template.read(words.template, words.special).before
    return words.special[before[0]] if words is not None and before else None


class Captions(Evaluator):
    """Greedy captions with the cache.

    Gives `exact_match`, the percent of captions that equal one of their references after both went through the model's
    tokenizer; `bleu4`, `rouge_l` and `cider` (CIDEr-D), each times 100, over words as `textmetrics.split_words` splits
    them; and `count`. Every caption is a prediction.

    Args:
        name: of the task.
        batch: images of one pass.
        limit: the first so many samples of the split; None: all.
        length: most words of a caption in tokens; the tokenizer's own length bounds it.
        objective: name of the captioning objective, whose decoder, head and opening word are used.
        cached: keep keys and values between words; the captions are the same without.
        prompt: words that the encoder behind the decoder is given first, such as "a picture of" (SimVLM); captions go on from there.
    """

    protocol = f"caption-greedy-{TOKENIZER}@1"

    def __init__(
        self, *, name: str = "caption", batch: int = 128, limit: int | None = None, length: int = 40, objective: str = "lm", cached: bool = True,
        prompt: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if batch < 1 or length < 1 or (limit is not None and limit < 1):
            raise ValueError(f"batch={batch}, length={length} and limit={limit} must each be at least 1 (limit may be null)")
        self.batch, self.limit, self.length, self.objective, self.cached, self.prompt = batch, limit, length, objective, cached, prompt

    def lacks(self, assembly: Assembly) -> str | None:
        """A captioning objective, its decoder and the word that opens its texts."""
        model, found = assembly.model, assembly.objectives.get(self.objective)
        if not isinstance(found, NextWord):
            return (
                f"captions need a decoder and the objective {self.objective!r}, but {model.name!r} builds {', '.join(model.names)} and has "
                f"{', '.join(assembly.objectives)}. Use a model that captions (model=blip)"
            )
        if opening(assembly, found) is None:
            return f"captions need a word that opens every text, but {found.text!r} begins with none (a draw like Opening or a template like '[cls] {{caption}} [sep]' gives one)"
        behind = [read.part for read in parse_reads(model.part(found.by).reads["v"]) if isinstance(model.part(read.part), Fusion)]
        if self.prompt is not None and not behind:
            return f"a prompt is read by an encoder of image and words, but {found.by!r} reads {model.part(found.by).reads['v']} (prompt=null)"
        return None

    def measure(self, module: Subject, data: DataModule) -> Mapping[str, float]:
        """The numbers; `predictions` holds one record an image, in the order of the split."""
        mine = [record for batch in batches(data, batch=self.batch, limit=self.limit) for record in self._captioned(module, data, batch)]
        said: list[dict[str, Any]] = sorted((record for part in dist.gather_object(mine) for record in part), key=lambda record: record["index"])
        if not said:
            raise DataError("data.val_shards: there is no usable sample to evaluate on")
        self.predictions = said
        captions, references = [record["caption"] for record in said], [record["references"] for record in said]
        self.facts = {"images": len(said), "references": sum(map(len, references)), "distinct": len(set(captions)), "length": self.length} | ({} if self.prompt is None else {"prompt": self.prompt})
        exact = 100.0 * sum(record["exact"] for record in said) / len(said)
        return {"exact_match": exact, **caption_scores(captions, references), "count": float(len(said))}

    def _prompt(self, words: Words, rows: int) -> TextInput | None:
        """The words of the prompt at the places that they have in a caption, without what opens and closes one, R times."""
        if self.prompt is None:
            return None
        text = words.encode([self.prompt] * rows)
        special = torch.isin(text.ids, torch.tensor(words.special_ids))
        return replace(text, mask=text.mask & ~special)

    def _captioned(self, module: Subject, data: DataModule, batch: Any) -> list[dict[str, Any]]:
        assembly, words = module.assembly, words_of(data)
        objective = assembly.objectives[self.objective]
        assert isinstance(objective, NextWord)
        start = opening(assembly, objective)
        assert start is not None  # `lacks` has refused everything else
        prompt = self._prompt(words, len(batch.captions))
        first = 0 if prompt is None else int(prompt.mask[0].sum())
        found = greedy(
            assembly.model, batch.images.to(module.device), start=start, stop=words.stop, pad=words.pad,
            length=min(self.length, words.length - 1 - first), by=objective.by, head=objective.name, cached=self.cached,
            given=None if prompt is None else prompt.to(module.device), first=first,
        )  # fmt: skip
        captions = words.decode(found.ids.cpu())
        rows = zip(batch.index.tolist(), batch.keys, captions, batch.captions, strict=True)
        # A reference as the model could have said it at best: cleaned, cut and spelled by its own tokenizer.
        return [
            {"index": i, "key": key, "caption": said, "references": accepted, "exact": said in words.decode(words.encode(accepted).ids)}
            for i, key, said, accepted in rows
        ]
