"""Shards that a command writes are the shards they would be here, once the environment lets commands run."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

import pytest
from shards import never, write_shards

from vlpkit.data import pipes, place
from vlpkit.data.index import Index, build_index
from vlpkit.data.reader import LocalStore, Reader
from vlpkit.data.remote import Remote
from vlpkit.data.shardlist import expand
from vlpkit.errors import DataError


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three shards, read by a command that writes down each time it is run."""
    monkeypatch.setenv("VLP_PIPES", "1")
    write_shards(tmp_path / "served", [4, 3, 5])
    return tmp_path


def command(folder: Path, name: str = "train-{000..002}.tar") -> str:
    return f"pipe:file={folder}/served/{name}; echo $file >> {folder}/log; cat $file"


def runs(folder: Path) -> int:
    log = folder / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def remote(folder: Path, *, timeout: float = 5.0) -> Remote:
    return Remote(folder / "cache", timeout=timeout, tries=2, sleep=never)


def index_of(folder: Path, shards: str, *, timeout: float = 5.0, max_bad_share: float = 0.0) -> Index:
    return build_index(expand(shards, "."), cache=folder / "cache", max_bad_share=max_bad_share, remote=remote(folder, timeout=timeout))


def test_what_commands_write_has_the_samples_and_the_fingerprint_of_the_same_files_here(served: Path) -> None:
    here = build_index(expand(f"{served}/served/train-*.tar", "."), cache=None)
    found = index_of(served, command(served))
    assert found.fingerprint == here.fingerprint
    reader, other = Reader(found, store=LocalStore(remote(served).open), sleep=never), Reader(here)
    assert [reader.read(number) for number in range(12)] == [other.read(number) for number in range(12)]


def test_a_later_start_runs_no_command_and_a_copy_that_is_gone_is_written_again(served: Path) -> None:
    first = index_of(served, command(served))
    assert runs(served) == 6   # to know the sizes, and to index
    again = index_of(served, command(served))
    assert runs(served) == 6 and again.fingerprint == first.fingerprint
    for path in (served / "cache" / "shards").glob("*.tar"):
        path.unlink()
    reader = Reader(again, store=LocalStore(remote(served).open), sleep=never)
    assert all(reader.read(number) for number in range(12)) and runs(served) == 9


def test_other_bytes_than_were_indexed_are_refused(served: Path) -> None:
    index = index_of(served, command(served, "train-000.tar"))
    for path in (served / "cache" / "shards").glob("*.tar"):
        path.unlink()
    file = served / "served" / "train-000.tar"
    body = bytearray(file.read_bytes())
    body[700] ^= 1
    file.write_bytes(body)
    reader = Reader(index, store=LocalStore(remote(served).open), sleep=never)
    with pytest.raises(Exception, match="shard_altered"):
        reader.read(0)


@pytest.mark.parametrize(("words", "message"), [
    ("pipe:echo no such bucket >&2; exit 3 # a.tar", r"the command ended with code 3: no such bucket"),
    ("pipe:sleep 60 # a.tar", r"the command wrote nothing for 0\.5 seconds"),
    ("pipe:exec 1>&-; sleep 60 # a.tar", r"the command closed its output and did not end for 0\.5 seconds"),
])  # fmt: skip
def test_a_command_that_fails_or_hangs_is_told(served: Path, words: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match=message):
        index_of(served, words, timeout=0.5)
    assert time.monotonic() - began < 10


def test_a_reader_that_leaves_leaves_nothing_running(served: Path) -> None:
    mark = f"{time.time_ns() % 10**9 + 10**9}"
    parts = pipes.stream(f"pipe:sleep {mark} & yes", 5.0)
    next(parts)
    parts.close()
    assert mark not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_without_the_variable_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLP_PIPES", raising=False)
    with pytest.raises(DataError, match=r"would run a shell command, .* VLP_PIPES=1 in the environment"):
        expand(f"pipe:touch {shlex.quote(str(tmp_path / 'mark'))}", ".")
    assert not (tmp_path / "mark").exists()


def test_a_command_is_shown_without_its_words_and_named_as_its_file() -> None:
    words = "pipe:curl -s -H 'Authorization: secret' 'https://host/x/a.tar?sig=secret'"
    assert (place.shown(words), place.name(words), place.folder(words)) == ("pipe:curl ... a.tar", "a.tar", "pipe:")
    assert place.name("pipe:aws s3 cp s3://bucket/000.tar -") == "000.tar"
    assert place.digest(words) != place.digest("pipe:cat a.tar")
