"""Captions of unseen images by greedy decoding, compared with the references as the tokenizer spells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlpkit import dist
from vlpkit.assemble import Assembly
from vlpkit.data.module import DataModule
from vlpkit.draws.words import Opening
from vlpkit.errors import DataError
from vlpkit.evals.base import Evaluator, Subject, words_of
from vlpkit.evals.gallery import batches
from vlpkit.evals.textmetrics import TOKENIZER, caption_scores
from vlpkit.generate import greedy
from vlpkit.objectives.lm import NextWord


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
    """

    protocol = f"caption-greedy-{TOKENIZER}@1"

    def __init__(
        self, *, name: str = "caption", batch: int = 128, limit: int | None = None, length: int = 40, objective: str = "lm", cached: bool = True
    ) -> None:
        super().__init__(name=name)
        if batch < 1 or length < 1 or (limit is not None and limit < 1):
            raise ValueError(f"batch={batch}, length={length} and limit={limit} must each be at least 1 (limit may be null)")
        self.batch, self.limit, self.length, self.objective, self.cached = batch, limit, length, objective, cached

    def lacks(self, assembly: Assembly) -> str | None:
        """A captioning objective, its decoder and the draw that opens its texts."""
        model, found = assembly.model, assembly.objectives.get(self.objective)
        if not isinstance(found, NextWord):
            return (
                f"captions need a decoder and the objective {self.objective!r}, but {model.name!r} builds {', '.join(model.names)} and has "
                f"{', '.join(assembly.objectives)}. Use a model that captions (model=blip)"
            )
        draw = found.text.partition(".")[0]
        if not isinstance(assembly.draws.get(draw), Opening):
            return f"captions need the opening word of {found.text!r}, but the draw {draw!r} is no Opening"
        return None

    def measure(self, module: Subject, data: DataModule) -> Mapping[str, float]:
        """The numbers; `predictions` holds one record an image, in the order of the split."""
        mine = [record for batch in batches(data, batch=self.batch, limit=self.limit) for record in self._captioned(module, data, batch)]
        said: list[dict[str, Any]] = sorted((record for part in dist.gather_object(mine) for record in part), key=lambda record: record["index"])
        if not said:
            raise DataError("data.val_shards: there is no usable sample to evaluate on")
        self.predictions = said
        captions, references = [record["caption"] for record in said], [record["references"] for record in said]
        self.facts = {"images": len(said), "references": sum(map(len, references)), "distinct": len(set(captions)), "length": self.length}
        exact = 100.0 * sum(record["exact"] for record in said) / len(said)
        return {"exact_match": exact, **caption_scores(captions, references), "count": float(len(said))}

    def _captioned(self, module: Subject, data: DataModule, batch: Any) -> list[dict[str, Any]]:
        assembly, words = module.assembly, words_of(data)
        objective = assembly.objectives[self.objective]
        assert isinstance(objective, NextWord)
        opening = assembly.draws[objective.text.partition(".")[0]]
        assert isinstance(opening, Opening)
        found = greedy(
            assembly.model, batch.images.to(module.device), start=opening.start, stop=words.special["sep"], pad=words.pad,
            length=min(self.length, words.length - 1), by=objective.by, head=objective.name, cached=self.cached,
        )  # fmt: skip
        captions = words.decode(found.ids.cpu())
        rows = zip(batch.index.tolist(), batch.keys, captions, batch.captions, strict=True)
        # A reference as the model could have said it at best: cleaned, cut and spelled by its own tokenizer.
        return [
            {"index": i, "key": key, "caption": said, "references": accepted, "exact": said in words.decode(words.encode(accepted).ids)}
            for i, key, said, accepted in rows
        ]
