"""Published lists of image addresses and captions (CC3M, CC12M, SBU, LAION): which column holds what is seen in their first lines.
Every line is judged once and counted; nothing is fetched here."""

from __future__ import annotations

import csv
import json
import logging
import mmap
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

from vlpkit.data.decode import clean_caption
from vlpkit.errors import DataError, did_you_mean

log = logging.getLogger(__name__)

DELIMITERS = {".tsv": "\t", ".txt": "\t", ".csv": ","}
OBJECTS = (".jsonl", ".ndjson")
KIND = "addresses"
SEEN = 50  # lines that decide which column is which
LONGEST = 8192  # characters of an address
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_KEPT = "/%:@!$&'()*+,;=~?"  # what a path and a query may hold unquoted, beside letters and digits
# Nearly every address: it needs no looking into, which takes ten times as long.
_PLAIN = re.compile(r"https?://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*/[A-Za-z0-9/%:@!$&'()*+,;=~?._-]*")

Column = int | str  # of a table, from 0, or the name of a field


class Row(NamedTuple):
    """A line of the list.

    Args:
        number: from 1; neither a header nor blank lines count.
        address: as it goes over the wire; "" when refused.
        captions: cleaned; empty when refused.
        refused: bad_row, bad_address, bad_utf8, empty_caption, or "".
    """

    number: int
    address: str
    captions: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class AddressList:
    """A list whose columns are known; each iteration reads it anew.

    Args:
        header: its first line names the columns.
        width: fields of a whole line; 0: lines are objects.
    """

    source: Path
    image: Column
    caption: Column
    header: bool = False
    width: int = 0

    def __iter__(self) -> Iterator[Row]:
        for number, fields in enumerate(islice(_records(self.source), int(self.header), None), 1):
            yield self._judge(number, fields)

    def __len__(self) -> int:
        """Usable lines; reads the list."""
        return sum(not row.refused for row in self)

    def _judge(self, number: int, fields: Any) -> Row:
        try:
            address, said = fields[self.image], fields[self.caption]
        except (IndexError, KeyError):
            return Row(number, "", refused="bad_row")
        said = [said] if isinstance(said, str) else said
        if (self.width and len(fields) != self.width) or not isinstance(address, str) or not isinstance(said, list) or not all(isinstance(text, str) for text in said):
            return Row(number, "", refused="bad_row")
        if any("\udc80" <= letter <= "\udcff" for text in said if not text.isascii() for letter in text):
            return Row(number, "", refused="bad_utf8")
        if not (address := wire(address)):
            return Row(number, "", refused="bad_address")
        captions = tuple(dict.fromkeys(caption for caption in map(clean_caption, said) if caption))
        return Row(number, address, captions) if captions else Row(number, "", refused="empty_caption")


def wire(address: str) -> str:
    """An http or https address with what lies outside ASCII encoded; "" for another scheme, one without a host, or one with a password."""
    address = address.strip()
    if len(address) > LONGEST:
        return ""
    if _PLAIN.fullmatch(address):
        return address
    try:
        parts = urlsplit(address)
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
        parts.port  # noqa: B018 - raises ValueError for a port that is none
        if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[@\s]", host):
            return ""
        return urlunsplit((parts.scheme, host, quote(parts.path, safe=_KEPT), quote(parts.query, safe=_KEPT), ""))
    except ValueError:
        return ""


def find_addresses(source: Path, *, image_column: str = "image", caption_column: str = "caption") -> AddressList | None:
    """The list of addresses in `source`; None when it is something else, such as a list of files.

    Args:
        source: .tsv, .txt, .csv with or without a header line, .jsonl, SBU's .json, or SBU's file of addresses with its captions beside it.
        image_column, caption_column: names from the header or of the fields; numbers from 1 without a header. Where no such column
            exists, the one that holds addresses is taken, and then the only other one.

    Raises:
        DataError: several columns hold addresses, or it is not clear which one holds the captions.
    """
    if not source.is_file() or source.suffix.lower() not in (*DELIMITERS, *OBJECTS, ".json"):
        return None
    try:
        head = list(islice(_records(source), SEEN))
    except UnicodeError:
        return None
    if source.suffix.lower() in OBJECTS:
        names: list[Column] = list(dict.fromkeys(name for fields in head for name in fields))
        header, lines = False, head
        titles = [str(name) for name in names]
    else:
        width = Counter(map(len, head)).most_common(1)[0][0] if head else 0  # a stray delimiter widens its own line only
        header = bool(head) and len(head[0]) == width and not any(map(_ADDRESS.match, head[0]))
        lines = [fields for fields in head[int(header) :] if len(fields) == width]
        names = list(range(width))
        titles = list(head[0]) if header else [str(number) for number in range(1, width + 1)]
    held = [name for name in names if sum(_holds(fields, name) for fields in lines) * 2 > len(lines)]
    if not held:
        return None
    found = _Columns(source, names, titles, header)
    image = found.image(held, image_column)
    if image is None:
        return None
    caption = found.caption(image, caption_column)
    log.info("%s: addresses in column %s, captions in column %s", source, found.title(image), found.title(caption))
    return AddressList(source, image, caption, header, 0 if isinstance(image, str) else len(titles))


@dataclass(frozen=True)
class _Columns:
    """Names asked for against what the list has."""

    source: Path
    names: Sequence[Column]
    titles: Sequence[str]
    header: bool

    def title(self, column: Column) -> str:
        return repr(self.titles[self.names.index(column)]) if self.header or isinstance(column, str) else self.titles[self.names.index(column)]

    def named(self, wanted: str) -> Column | None:
        return self.names[self.titles.index(wanted)] if wanted in self.titles else None

    def image(self, held: Sequence[Column], wanted: str) -> Column | None:
        if (column := self.named(wanted)) is not None:
            return column if column in held else None
        if len(held) > 1:
            shown = ", ".join(map(self.title, held))
            raise DataError(f"{self.source}: the columns {shown} hold addresses; name the one of the images with --image-column")
        return held[0]

    def caption(self, image: Column, wanted: str) -> Column:
        for name in (wanted, f"{wanted}s"):
            if (column := self.named(name)) is not None and column != image:
                return column
        others = [name for name in self.names if name != image]
        if len(others) == 1:
            return others[0]
        if not others:
            raise DataError(
                f"{self.source} holds addresses without captions. Put the captions in a second column, or into a file beside it with 'captions' in place of 'urls' in its name"
            )
        shown = ", ".join(map(self.title, others))
        hint = did_you_mean(wanted, self.titles)
        kind = "name" if self.header or isinstance(image, str) else "number"
        raise DataError(f"{self.source}: captions may be in any of the columns {shown}. {hint} Give its {kind} with --caption-column".replace("  ", " "))


def _holds(fields: Any, column: Column) -> bool:
    try:
        return bool(_ADDRESS.match(fields[column]))
    except (IndexError, KeyError, TypeError):
        return False


def _records(source: Path) -> Iterator[Any]:
    """The fields of each line: a list, or a dict by name; {} for a line of JSON that is no object."""
    kind = source.suffix.lower()
    if kind == ".json":
        yield from _sbu(source)
        return
    beside = source.with_name(source.name.replace("urls", "captions"))
    if kind == ".txt" and beside != source and beside.is_file():
        yield from _beside(source, beside)
        return
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        if kind == ".csv":
            csv.field_size_limit(1 << 24)
            reader = csv.reader(line.replace("\0", "") for line in file)
            try:
                yield from (fields for fields in reader if fields)
            except csv.Error as error:
                raise DataError(f"{source}, line {reader.line_num}: {error}") from None
            return
        for line in file:
            if not line.strip():
                continue
            # Published TSV lists do not quote: a lone quote belongs to the caption.
            yield _object(line) if kind in OBJECTS else line.rstrip("\r\n").split("\t")


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _sbu(source: Path) -> Iterator[list[Any]]:
    """SBU's one object with `image_urls` and `captions`; nothing for another JSON file, of which only bytes are looked at."""
    if not source.stat().st_size:
        return
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b'"image_urls"') < 0:
            return
    found = _object(source.read_text(encoding="utf-8-sig", errors="surrogateescape"))
    addresses, captions = found.get("image_urls"), found.get("captions")
    if not isinstance(addresses, list) or not isinstance(captions, list) or len(addresses) != len(captions):
        raise DataError(f"{source} has image_urls, but no captions of the same number beside them")
    yield from map(list, zip(addresses, captions))


def _beside(source: Path, beside: Path) -> Iterator[list[str]]:
    """SBU's two files, line by line."""
    how: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": "\n"}
    end = "the end"
    with source.open(**how) as addresses, beside.open(**how) as captions:
        while True:
            address, caption = next(addresses, end), next(captions, end)
            if address is end and caption is end:
                return
            if address is end or caption is end:
                raise DataError(f"{source} and {beside} differ in their numbers of lines")
            yield [address.strip(), caption.strip()]
