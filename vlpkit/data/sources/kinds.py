"""The kinds of sources by name, told apart at a glance where that is unmistakable, and the one way to read any of them.
A kind is a name, what it looks like, and a function that reads it; another kind is another entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlpkit.data.sources import coco, flickr, folder, genome, nlvr, refer, statements, tables, vqa
from vlpkit.data.sources.annotations import Glance
from vlpkit.data.sources.listing import IMAGES, SPLITS, Listing, counts, name_all
from vlpkit.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Ask:
    """What may be said beside the source.

    Args:
        images: folder where names of images start; None: where that kind of source usually has it.
        captions: COCO's captions of the same images, for kinds that have none of their own.
        image_column, caption_column: of a list.
    """

    images: Path | None = None
    captions: Path | None = None
    image_column: str = "image"
    caption_column: str = "caption"


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Args:
        name: for --kind.
        form: the published file, in a line.
        recognises: whether a source is unmistakably of this kind; earlier kinds go first.
        read: images and what is said about them. Raises DataError.
    """

    name: str
    form: str
    recognises: Callable[[Glance], bool]
    read: Callable[[Path, Ask], Listing]


KINDS = (
    Kind(
        "coco", "captions_train2017.json: COCO's captions, and others in its form",
        lambda at: at.has("file_name", "caption"), lambda path, ask: coco.read_captions(path, ask.images),
    ),
    Kind(
        "karpathy", "dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json",
        lambda at: at.has("filename", "split", "sentids", "raw"), lambda path, ask: coco.read_karpathy(path, ask.images),
    ),
    Kind(
        "flickr", "results_20130124.token, results.csv, Flickr8k.token.txt",
        lambda at: flickr.looks_like(at.ends), lambda path, ask: flickr.read_flickr(path, ask.images),
    ),
    Kind(
        "visual-genome", "region_descriptions.json beside image_data.json",
        lambda at: at.has("regions", "phrase"), lambda path, ask: genome.read_regions(path, ask.images),
    ),
    Kind(
        "vqa", "v2_OpenEnded_mscoco_*_questions.json beside its annotations",
        lambda at: at.has("data_subtype", "question", "question_id"), lambda path, ask: vqa.read_questions(path, ask.images, ask.captions),
    ),
    Kind(
        "nlvr2", "train.json, dev.json, test1.json: two photographs a statement",
        lambda at: at.has("sentence", "identifier", "left_url"), lambda path, ask: statements.read_pairs(path, ask.images),
    ),
    Kind(
        "snli-ve", "snli_ve_train.jsonl",
        lambda at: at.has("Flickr30K_ID", "gold_label"), lambda path, ask: statements.read_entailment(path, ask.images),
    ),
    Kind(
        "refcoco", "refs(unc).json beside instances.json",
        lambda at: at.has("ref_id", "ann_id", "sentences") or at.path.match("refs(*).p"), lambda path, ask: refer.read_references(path, ask.images),
    ),
    Kind(
        "nlvr", "dev.tar, or dev.json with its images: drawings of three boxes",
        lambda at: at.has("sentence", "structured_rep") or nlvr.in_tar(at.members), lambda path, ask: nlvr.read_nlvr(path, ask.images),
    ),
    Kind(
        "list", f"a {', '.join(tables.LISTS)} file of images and captions",
        lambda at: at.suffix in tables.LISTS, lambda path, ask: tables.read_list(path, ask.images, ask.image_column, ask.caption_column),
    ),
    Kind("folder", "images with .txt files beside them", lambda at: at.path.is_dir(), lambda path, _: folder.read_folder(path)),
)  # fmt: skip


def guess(source: Path) -> Kind | None:
    """The kind that a source looks like, None for none."""
    glance = Glance(source)
    return next((kind for kind in KINDS if kind.recognises(glance)), None)


def kind_of(source: Path, name: str | None) -> Kind:
    """The kind called `name`, or, where that is None, the one that a source looks like. Raises DataError."""
    listed = "\n".join(f"  {kind.name:14} {kind.form}" for kind in KINDS)
    found = guess(source)
    if name is None:
        if found is None:
            glance = Glance(source)
            there = ", ".join(sorted(glance.fields)[:8]) if glance.has() else ""
            seen = f"JSON with the fields {there}" if there else f"a file that ends in {source.suffix or 'nothing'}"
            raise DataError(f"{source} looks like no kind that is known ({seen}). Choose one with --kind:\n{listed}")
        return found
    chosen = next((kind for kind in KINDS if kind.name == name), None)
    if chosen is None:
        raise DataError(f"--kind {name} is not known. {did_you_mean(name, [kind.name for kind in KINDS])} There are:\n{listed}".replace("  There", " There"))
    if found is not None and found is not chosen and not chosen.recognises(Glance(source)):
        raise DataError(f"--kind {name} reads {chosen.form}, but {source} looks like {found.name}: {found.form}. Use --kind {found.name}, or leave it away")
    return chosen


def read_source(
    source: Path, *, kind: str | None = None, split: str | None = None, images: Path | None = None, captions: Path | None = None,
    image_column: str = "image", caption_column: str = "caption",
) -> Listing:
    """Every image of a source with all that is said about it.

    Args:
        source: a list, a folder, or an annotation file of a published data set (KINDS).
        kind: its name; None: as it looks.
        split: published splits to keep, joined by commas; None: all.
        images, captions, image_column, caption_column: as in `Ask`.

    Raises:
        DataError: the source is missing, of another kind or another form, without the split, or without a single image.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist; name an annotation file, a {', '.join(tables.LISTS)} file, or a folder of images with .txt files beside them")
    if images is not None and not images.is_dir():
        raise DataError(f"--images {images} is not a folder")
    chosen = kind_of(source, kind)
    if captions is not None and chosen.name != "vqa":
        raise DataError(f"--captions goes with --kind vqa; {chosen.name} has captions of its own")
    listing = replace(chosen.read(source, Ask(images, captions, image_column, caption_column)), kind=chosen.name)
    if not listing.candidates:
        raise DataError(_nothing(source, listing))
    if split is not None:
        listing = _only(listing, split.split(","), source)
    name_all(listing.candidates)
    return listing


def _only(listing: Listing, wanted: Sequence[str], source: Path) -> Listing:
    there = [name for name in ("", *SPLITS) if any(one.split == name for one in listing.candidates)]
    for name in wanted:
        if name not in there or not name:
            shown = ", ".join(filter(None, there)) or "none"
            raise DataError(f"--split {name}: {source} has no such split (it has: {shown}). {did_you_mean(name, there)}".rstrip())
    return replace(listing, candidates=[one for one in listing.candidates if one.split in wanted])


def _nothing(source: Path, listing: Listing) -> str:
    if not source.is_dir():
        return f"no usable line in {source}" + (f" ({counts(listing.rows)})" if listing.rows else "")
    beside = [f"{path.name} ({kind.name})" for path in sorted(source.iterdir()) if path.is_file() and (kind := guess(path)) is not None]
    return f"no {', '.join(IMAGES)} file in {source} or below" + (f"; name one of these files instead: {', '.join(beside)}" if beside else "")
