"""Retrieval in both directions with several captions an image: by the shared space, and re-ranked by the fusion where there is one.
Letters: R images, T texts, Q queries, K candidates, P pairs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlpkit import dist
from vlpkit.assemble import Assembly
from vlpkit.data.module import DataModule
from vlpkit.errors import AssemblyError, DataError
from vlpkit.evals.base import Evaluator, Subject, chunks, match_logits, matcher, streams, words_of
from vlpkit.evals.gallery import Gallery, batches, gather
from vlpkit.evals.metrics import (
    KS,
    Places,
    Score,
    candidates,
    hit_rates,
    image_places,
    optimistic,
    rerank,
    reranked_places,
    text_places,
)
from vlpkit.objectives.itm import Match

_TEXT_BATCHES = 8  # texts of a group, in batches: the images of a block are encoded once a group


class Retrieval(Evaluator):
    """R@1, R@5, R@10 in percent: a text finds its image (t2i), an image finds any of its texts (i2t).

    A rank counts candidates that score higher or the same, so equal scores never help. With `k_test`, the first candidates
    of each query are ordered anew by the matching head (Li et al. 2021, section 3.4); a right answer beyond them is a miss.

    Args:
        name: of the task.
        batch: images, texts or pairs of one pass.
        limit: the first so many samples of the split; None: all.
        captions: the first so many captions of each image; None: all.
        k_test: candidates of each query that are re-ranked, at least 10; 0: none.
        score: what orders them: itm is the match logit (ALBEF), itm+itc adds the similarity without temperature (BLIP).
        match: name of the objective whose fusion and head score a pair.
        by: the shared space.
        image: image input.
        text: text input.
    """

    def __init__(
        self, *, name: str = "retrieval", batch: int = 128, limit: int | None = None, captions: int | None = None, k_test: int = 0, score: Score = "itm",
        match: str = "itm", by: str = "align", image: str = "clean", text: str = "clean",
    ) -> None:
        super().__init__(name=name)
        if 0 < k_test < max(KS):
            raise ValueError(f"k_test is {k_test}; below {max(KS)} it would decide R@{max(KS)} by itself (accepted: 0, or at least {max(KS)})")
        if batch < 1 or (limit is not None and limit < 1) or (captions is not None and captions < 1):
            raise ValueError(f"batch={batch}, limit={limit} and captions={captions} must each be at least 1 (or null for no limit)")
        self.batch, self.limit, self.captions, self.k_test, self.score, self.match = batch, limit, captions, k_test, score, match
        self.by, self.image, self.text = by, image, text

    @property
    def protocol(self) -> str:  # type: ignore[override]
        """Such as `retrieval-all-pessimistic-itm128@1`."""
        return f"retrieval-{self.captions or 'all'}-pessimistic{f'-{self.score}{self.k_test}' if self.k_test else ''}@1"

    def lacks(self, assembly: Assembly) -> str | None:
        """A shared space."""
        model = assembly.model
        if self.by in model.names:
            return None
        return f"retrieval ranks by the shared space {self.by!r}, but {model.name!r} builds {', '.join(model.names)}"

    def check(self, assembly: Assembly) -> None:
        """Also refuses to re-rank without a matching objective."""
        super().check(assembly)
        if self.k_test and matcher(assembly, self.match) is None:
            raise AssemblyError(
                f"evals.{self.name}: k_test={self.k_test} re-ranks with the matching objective {self.match!r}, but {assembly.model.name!r} has "
                f"{', '.join(assembly.objectives)}. Use k_test=0, or a model with a fusion and that objective (model=albef, model=blip)."
            )

    def measure(self, module: Subject, data: DataModule) -> Mapping[str, float]:
        """R@K of the shared space and, when asked for, of the re-ranked candidates under names that begin with `rerank_`."""
        g = gather(module, data, by=self.by, image=self.image, text=self.text, batch=self.batch, limit=self.limit, captions=self.captions)
        # One rank scores and tells the others: digits must not depend on which machine multiplied.
        found = dist.broadcast_object(self._dual(g) if dist.once() else None)
        assert found is not None
        numbers, self.facts, chosen = found
        match = matcher(module.assembly, self.match)
        if self.k_test and match is not None:
            numbers = numbers | dist.broadcast_object(self._reranked(g, chosen, self._pairs(module, data, g, chosen, match)))
        return numbers

    def _dual(self, g: Gallery) -> tuple[dict[str, float], dict[str, object], tuple[Tensor, Tensor]]:
        sim = g.v @ g.w.T
        image, text = image_places(sim, g.owner), text_places(sim, g.owner)
        facts = {
            "images": len(g.v), "texts": len(g.w), "ties": {"i2t": image.ties, "t2i": text.ties}, "optimistic": optimistic(image, text),
            "not_finite": int((~torch.isfinite(sim)).sum()),
        }
        chosen = (candidates(sim, self.k_test), candidates(sim.T, self.k_test)) if self.k_test else (torch.zeros(0, 0), torch.zeros(0, 0))
        return hit_rates(image, text), facts, chosen

    # -- re-ranking ----------------------------------------------------------------------------------------------------

    def _pairs(self, module: Subject, data: DataModule, g: Gallery, chosen: tuple[Tensor, Tensor], match: Match) -> tuple[Tensor, Tensor]:
        """All pairs of both directions, each scored once: (P,) ascending numbers image * T + text, and (P,) match logits."""
        texts, images = chosen
        wanted = torch.cat([
            (torch.arange(len(g.v))[:, None] * len(g.w) + texts).flatten(),
            (images * len(g.w) + torch.arange(len(g.w))[:, None]).flatten(),
        ]).unique()  # fmt: skip
        numbers, logits = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, device=module.device)]
        for found in batches(data, batch=self.batch, limit=self.limit):
            rows = g.rows(found.index)
            mine = wanted[torch.isin(wanted // len(g.w), rows)]
            asked = (mine % len(g.w)).unique()
            for part in chunks(len(asked), _TEXT_BATCHES * self.batch):
                group = asked[part]
                pairs = mine[torch.isin(mine % len(g.w), group)]
                s = streams(module, images=found.images, texts=words_of(data).encode([g.captions[i] for i in group.tolist()]))
                image, text = torch.searchsorted(rows, pairs // len(g.w)), torch.searchsorted(group, pairs % len(g.w))
                numbers.append(pairs)
                logits.append(match_logits(s, match, image.to(module.device), text.to(module.device), self.batch)[:, 1])
        everything = dist.gather(torch.cat(numbers).to(module.device)).cpu()
        if len(everything) != len(wanted):
            raise DataError("data.val_shards: the samples changed during the evaluation. Run it again on files that stay.")
        order = everything.argsort()
        return everything[order], dist.gather(torch.cat(logits)).cpu()[order]

    def _reranked(self, g: Gallery, chosen: tuple[Tensor, Tensor], scored: tuple[Tensor, Tensor]) -> dict[str, float]:
        numbers, logits = scored
        count = len(g.w)
        texts, images = chosen
        places: list[Places] = []
        for image, text, among in (
            (torch.arange(len(g.v))[:, None].expand_as(texts), texts, count), (images, torch.arange(count)[:, None].expand_as(images), len(g.v)),
        ):  # fmt: skip
            own = g.owner[text] == image
            dual = torch.cat([(g.v[image[part]] * g.w[text[part]]).sum(-1) for part in chunks(len(image), 256)])
            match = logits[torch.searchsorted(numbers, image * count + text)]
            places.append(reranked_places(rerank(dual, match, self.score), own, among=among))
        self.facts["rerank_ties"] = {"i2t": places[0].ties, "t2i": places[1].ties}
        self.facts["pairs"] = len(numbers)
        return hit_rates(places[0], places[1], prefix="rerank_")
