"""Stores the world as WebDataset shards, read like any other data: whole or not at all, and byte for byte the same.
A world is built beside its final place and renamed into it; a second process waits for the first and finds it done."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

from vlpkit.data.shapes.detect import detect, packed, tags
from vlpkit.data.shapes.language import NOISES, boilerplate, captions, hard_pairs, keywords
from vlpkit.data.shapes.phrases import phrases
from vlpkit.data.shapes.questions import questions
from vlpkit.data.shapes.render import draw, encode
from vlpkit.data.shapes.scenes import Generator, Scene, Split, generator, holds, make_scene
from vlpkit.errors import DataError, did_you_mean

VERSION = 1  # of the generator: a change to what it writes is a new world
MANIFEST = "manifest.json"

_log = logging.getLogger(__name__)
_OURS = re.compile(r"(train|val)-\d{6}\.tar|manifest\.json")
_STRANGERS = (
    1_000_000  # captions stray from so many scenes, not from the world's own, so that worlds of all sizes agree
)
_DRAWING, _SPEAKING, _TESTING, _SPOILING, _DETECTING, _ASKING = 1, 2, 3, 4, 5, 6  # purposes of the random streams; 0 makes the scene
_LATER = {"regions": 0, "questions": False, "phrases": False}  # settings that came later: left as they were, they leave names and manifests alone


@dataclass(frozen=True)
class World:
    """Everything that decides a world's bytes; `noise` is the share of training samples with a web caption, [0, 1), `regions` the numbers of a
    region's feature, 0 for a world without KEY.regions.npz, `questions` whether records hold questions with their answers, and `phrases` whether
    they hold what singles out each object, with its box."""

    seed: int = 0
    train: int = 16000
    val: int = 500
    image_size: int = 64
    noise: float = 0.1
    captions: int = 5
    samples_per_shard: int = 1000
    regions: int = 0
    questions: bool = False
    phrases: bool = False

    def __post_init__(self) -> None:
        limits = {"train": 1, "val": 1, "image_size": 16, "captions": 1, "samples_per_shard": 1, "seed": 0, "regions": 0}
        for key, least in limits.items():
            if getattr(self, key) < least:
                raise DataError(f"data.world.{key}: found {getattr(self, key)}; accepted is {least} or more.")
        if not 0 <= self.noise < 1:
            raise DataError(
                f"data.world.noise: found {self.noise}; accepted is a share in [0, 1), e.g. data.world.noise=0.1."
            )

    @property
    def name(self) -> str:
        """Folder name in a cache: equal for equal worlds of one generator, different otherwise."""
        digest = hashlib.sha256(json.dumps([VERSION, self.parameters], sort_keys=True).encode()).hexdigest()
        return f"shapes-v{VERSION}-{self.image_size}px-{digest[:12]}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What is written down of a world, and named by."""
        return {key: value for key, value in asdict(self).items() if key not in _LATER or value != _LATER[key]}


def ensure_world(cache: Path, **parameters: Any) -> Path:
    """The folder of a world inside `cache`, written now if it is not there whole; several processes may ask at once.

    Raises:
        DataError: the parameters make no world, or the cache cannot be written.
    """
    known = [field.name for field in fields(World)]
    for key in parameters:
        if key not in known:
            raise DataError(
                f"data.world.{key}: unknown; accepted are {', '.join(known)}. {did_you_mean(key, known)}".strip()
            )
    world = World(**parameters)
    return write_world(Path(cache) / world.name, **asdict(world))


def write_world(
    folder: Path,
    *,
    seed: int = 0,
    train: int = 16000,
    val: int = 500,
    image_size: int = 64,
    noise: float = 0.1,
    captions: int = 5,
    samples_per_shard: int = 1000,
    regions: int = 0,
    questions: bool = False,
    phrases: bool = False,
) -> Path:
    """Writes train-*.tar, val-*.tar and manifest.json to `folder` at once, or finds them there.

    What an interrupted copy left behind is replaced, with a warning.

    Raises:
        DataError: `folder` holds another world or other files, or cannot be written.
    """
    world = World(seed, train, val, image_size, noise, captions, samples_per_shard, regions, questions, phrases)
    folder = Path(folder)
    if is_whole(folder, world):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(folder):
            if not is_whole(folder, world):
                _make_room(folder, world)
                _build(folder, world)
    except OSError as error:
        raise DataError(
            f"data=shapes: cannot write {folder} ({error.strerror or error}); choose a folder with room, "
            "e.g. data.cache=/path/to/cache."
        ) from error
    return folder


def is_whole(folder: Path, world: World) -> bool:
    """Whether `folder` holds exactly this world, every shard at its full length."""
    manifest = _manifest(folder)
    if manifest is None or manifest.get("version") != VERSION or manifest.get("parameters") != world.parameters:
        return False
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.tar")}
    return sizes == {shard["name"]: shard["bytes"] for shard in manifest.get("shards", ())}


def make_record(world: World, split: Split, number: int) -> tuple[Scene, dict[str, Any]]:
    """One sample's scene and JSON record: captions, facts, scene, and `noise`, `hard`, `questions` or `regions` where they apply."""
    scene = make_scene(world.seed, split, number)
    record: dict[str, Any] = {}
    spoil = generator(world.seed, split, number, _SPOILING)
    if split == "train" and spoil.random() < world.noise:
        kind = NOISES[int(spoil.integers(len(NOISES)))]
        record |= {"captions": _noise(world, scene, kind, spoil), "noise": kind}
    else:
        said = captions(scene, generator(world.seed, split, number, _SPEAKING), count=world.captions)
        record |= {
            "captions": [caption.text for caption in said],
            "facts": [caption.facts.record() for caption in said],
        }
    if split == "val":
        pairs = hard_pairs(scene, generator(world.seed, split, number, _TESTING))
        record |= {
            "hard": [[true.text, false.text] for true, false, _ in pairs],
            "hard_kinds": [kind for *_, kind in pairs],
        }
    if world.questions:
        record["questions"] = questions(scene, generator(world.seed, split, number, _ASKING))
    if world.phrases:
        record["regions"] = phrases(scene)
    return scene, record | {"scene": scene.record()}


def _noise(world: World, scene: Scene, kind: str, rng: Generator) -> list[str]:
    if kind == "boilerplate":
        return [boilerplate(rng)]
    if kind == "keywords":
        return [keywords(scene, rng)]
    while True:  # captions of another scene, none of which happens to be true here
        other = make_scene(world.seed, "train", int(rng.integers(_STRANGERS)))
        strangers = captions(other, rng, count=world.captions)
        false = [caption.text for caption in strangers if not holds(caption.facts, scene)]
        if false:
            return false


def _build(folder: Path, world: World) -> None:
    started = time.monotonic()
    _log.info("data=shapes: writing %d + %d scenes to %s, once", world.train, world.val, folder)
    with tempfile.TemporaryDirectory(prefix=_prefix(folder), dir=folder.parent) as name:
        partial = Path(name) / "world"
        partial.mkdir()
        shards: list[dict[str, Any]] = []
        counts: dict[str, Counter[str]] = {}
        keys = hashlib.sha256()
        wanted = list(_spans(world))
        for (split, numbers), (written, found) in zip(wanted, _written(partial, world, wanted)):
            counts.setdefault(split, Counter()).update(found)
            keys.update("".join(f"{_key(split, number)}\n" for number in numbers).encode())
            shards.append({"name": written.name, "split": split, "samples": len(numbers), "bytes": written.stat().st_size})
            _log.info("data=shapes: %s after %.0f s", written.name, time.monotonic() - started)
        manifest = {
            "format": "vlpkit-shapes",
            "version": VERSION,
            "parameters": world.parameters,
            "counts": {split: dict(sorted(count.items())) for split, count in counts.items()},
            "keys_sha256": keys.hexdigest(),
            "shards": shards,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:  # where locks do not reach, another machine may have been faster
            if not is_whole(folder, world):
                raise


def _spans(world: World) -> Iterator[tuple[Split, range]]:
    """The scenes of each shard."""
    splits: tuple[tuple[Split, int], ...] = (("train", world.train), ("val", world.val))
    for split, total in splits:
        for first in range(0, total, world.samples_per_shard):
            yield split, range(first, min(first + world.samples_per_shard, total))


def _written(folder: Path, world: World, wanted: Sequence[tuple[Split, range]]) -> Iterator[tuple[Path, Counter[str]]]:
    """Path and counts of each shard, in order; scenes do not hang on one another, so shards are written by as many processes as there are cores."""
    # Forked, since a spawned process begins with the caller's main file, which may well ask for this world and wait for its lock; and on Linux
    # alone, as elsewhere forks of threaded programs are not safe. What a child does here, numpy and Pillow, needs no thread of the parent.
    processes = min(len(wanted), len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1
    if processes == 1:
        yield from (_write_shard(folder, world, split, numbers) for split, numbers in wanted)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        jobs = [pool.submit(_write_shard, folder, world, split, numbers) for split, numbers in wanted]
        try:
            yield from (job.result() for job in jobs)
        except BrokenProcessPool:
            raise DataError("data=shapes: a process that writes scenes ended unexpectedly, perhaps for want of memory; start again") from None
        finally:
            for job in jobs:
                job.cancel()


def _write_shard(folder: Path, world: World, split: Split, numbers: range) -> tuple[Path, Counter[str]]:
    path, counts = folder / f"{split}-{numbers.start // world.samples_per_shard:06d}.tar", Counter(samples=len(numbers))
    with path.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers:
                scene, record = make_record(world, split, number)
                pixels = draw(scene, generator(world.seed, split, number, _DRAWING), image_size=world.image_size)
                _add(tar, f"{_key(split, number)}.jpg", encode(pixels))
                if world.regions:
                    found = detect(scene, generator(world.seed, split, number, _DETECTING), size=world.regions, image_size=world.image_size)
                    record |= {"width": world.image_size, "height": world.image_size, "tags": tags(found)}
                    _add(tar, f"{_key(split, number)}.regions.npz", packed(found))
                _add(tar, f"{_key(split, number)}.json", json.dumps(record, separators=(",", ":")).encode("ascii"))
                counts["captions"] += len(record["captions"])
                counts["hard"] += len(record.get("hard", ()))
                counts[f"noise_{record.get('noise', 'none')}"] += 1
        stream.flush()
        os.fsync(stream.fileno())
    return path, counts


def _key(split: Split, number: int) -> str:
    return f"{split}{number:07d}"


def _add(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
    member = tarfile.TarInfo(
        name
    )  # owner, mode and time keep their fixed defaults, so that equal worlds are equal bytes
    member.size = len(payload)
    tar.addfile(member, io.BytesIO(payload))


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _prefix(folder: Path) -> str:
    return f".{folder.name}.partial-"


def _make_room(folder: Path, world: World) -> None:
    """Removes what interrupted writers left; called with the lock held. Refuses to touch anything else."""
    for remnant in folder.parent.glob(f"{_prefix(folder)}*"):
        shutil.rmtree(remnant, ignore_errors=True)
    if not folder.exists():
        return
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    manifest = _manifest(folder)
    if manifest is not None and manifest.get("parameters") != world.parameters:
        raise DataError(
            f"{folder}: found a world of other parameters ({manifest.get('parameters')}); "
            f"accepted are {world.parameters}. "
            "Name another folder, or delete this one."
        )
    strange = [name for name in names if not _OURS.fullmatch(name)]
    if strange:
        raise DataError(
            f"{folder}: found files that belong to no embedded world ({', '.join(sorted(strange)[:3])}); "
            "accepted is a new or empty folder. Name another one."
        )
    if names:
        _log.warning("data=shapes: %s is incomplete and is written anew", folder)
    shutil.rmtree(folder)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Holds a lock beside `folder`; the system frees it when its holder dies, so no stale lock can block a run."""
    stream: IO[str]
    with (folder.parent / f".{folder.name}.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks: the rename alone keeps the world whole
            _log.warning("data=shapes: no lock on %s (%s); two processes may write the same world", folder, error)
        yield
