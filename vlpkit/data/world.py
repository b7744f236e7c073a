"""The embedded world as a source: written to the cache when it is not there yet, then streamed like any other shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlpkit.data.module import DataModule
from vlpkit.data.phrases import Phrases
from vlpkit.data.questions import Questions
from vlpkit.data.regions import Detections
from vlpkit.data.shapes.questions import ANSWERS
from vlpkit.data.shapes.write import ensure_world


class WorldData(DataModule):
    """A DataModule whose root is a generated world.

    Args:
        world: what `ensure_world` takes, such as train, val, noise and seed.
        cache: folder under which worlds and indexes are kept.
        regions: what is read of regions; with it, the world is one that has them.
        questions: how questions are mixed with captions; likewise. The world brings the list of answers.
        phrases: which phrase about a part of the image goes along; likewise.
        options: of the DataModule.
    """

    def __init__(
        self, *, world: Mapping[str, Any], cache: str, regions: Detections | None = None, questions: Questions | None = None,
        phrases: Phrases | None = None, **options: Any,
    ) -> None:
        wanted: dict[str, Any] = {} if regions is None else {"regions": regions.size}
        if phrases is not None:
            wanted["phrases"] = True
        if questions is not None:
            wanted["questions"] = True
            questions.know(ANSWERS)
        given: dict[str, Any] = {"regions": regions, "questions": questions, "phrases": phrases}
        super().__init__(root=str(ensure_world(Path(cache), **{**wanted, **world})), cache=cache, **given, **options)
