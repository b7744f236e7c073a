"""A further source beside the pairs: what its samples hold, its own shards and order, and its share of every step.
Its place in the data follows from the number of the step, so a run that resumes has nothing more to remember."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from vlpkit.data.faults import Ledger
from vlpkit.data.index import Index
from vlpkit.data.mixture import Sequenced
from vlpkit.data.wishes import Wish
from vlpkit.types import Batch


@dataclass(frozen=True)
class Stock:
    """A source that is there: its samples, and which stands at which position.

    Args:
        wish: what was asked for.
        index: its samples.
        order: over them.
        ledger: books what was refused.
    """

    wish: Wish
    index: Index
    order: Sequenced
    ledger: Ledger = field(compare=False)


class Together:
    """Several loaders in step: of each item one, under the names of their sources, until the first one ends.

    Args:
        loaders: by source, the pairs first.
    """

    def __init__(self, loaders: Mapping[str, Iterable[dict[str, Batch]]]) -> None:
        self.loaders = dict(loaders)

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        for found in zip(*self.loaders.values()):
            yield {name: batch for one in found for name, batch in one.items()}
