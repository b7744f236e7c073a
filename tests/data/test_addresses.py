"""Lists as they are published: their columns are found by what they hold, and every line is judged and counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vlpkit.data.addresses import Row, find_addresses, wire
from vlpkit.data.parts import MOST, Plan, draw_up
from vlpkit.data.prepare import Packing
from vlpkit.errors import DataError

A, B = "http://a.example/1.jpg", "https://b.example/2.png?w=3"
PAIRS = [Row(1, A, ("a cat",)), Row(2, B, ("two dogs",))]


def lines(folder: Path, name: str, text: str | bytes) -> Path:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def rows(source: Path, **columns: str) -> list[Row]:
    found = find_addresses(source, **columns)
    assert found is not None
    return list(found)


def drawn(folder: Path, text: str, **settings: Any) -> tuple[Plan, dict[str, list[dict[str, Any]]]]:
    """The plan for a list and its parts' lists by file name."""
    found = find_addresses(lines(folder, "list.tsv", text))
    assert found is not None
    plan = draw_up(found, Packing(**settings))
    plan.write_lists(found, folder / "work")
    return plan, {p.name: [json.loads(line) for line in p.read_text().splitlines()] for p in sorted((folder / "work" / "lists").iterdir())}


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("cc3m.tsv", f"a cat\t{A}\ntwo dogs\t{B}\n", {}),
        ("cc12m.tsv", f"{A}\ta cat\n{B}\ttwo dogs\n", {}),
        ("dos.tsv", f"a cat\t{A}\r\n\r\ntwo dogs\t{B}\r\n", {}),
        ("header.tsv", f"caption\turl\na cat\t{A}\ntwo dogs\t{B}\n", {}),
        ("other.tsv", f"URL\tTEXT\n{A}\ta cat\n{B}\ttwo dogs\n", {}),
        ("list.txt", f"{A}\ta cat\n{B}\ttwo dogs\n", {}),
        ("one.tsv", f"{A}\ta cat\n{B}\ttwo dogs", {"image_column": "1", "caption_column": "2"}),
        ("labels.tsv", f"a cat\t{A}\tcat\t0.9\ntwo dogs\t{B}\tdog\t0.8\n", {"caption_column": "1"}),
        ("table.csv", f'url,caption\n{A},a cat\n{B},"two\n dogs"\n', {}),
        ("laion.csv", f"sample,URL,TEXT\n1,{A},a cat\n2,{B},two dogs\n", {"caption_column": "TEXT"}),
        ("two.csv", f"url,page,caption\n{A},{B},a cat\n{B},{A},two dogs\n", {"image_column": "url"}),
        ("list.jsonl", f'{{"url": "{A}", "caption": "a cat"}}\n{{"caption": "two dogs", "url": "{B}", "n": 1}}\n', {}),
        ("several.jsonl", f'{{"url": "{A}", "captions": ["a cat"]}}\n{{"captions": ["two dogs", "two  dogs"], "url": "{B}", "n": 1}}\n', {}),
        ("sbu.json", json.dumps({"image_urls": [A, B], "user_ids": ["u", "v"], "captions": ["a cat", "two dogs"]}), {}),
    ],
)
def test_the_columns_are_found_by_what_they_hold(tmp_path: Path, name: str, text: str, columns: dict[str, str]) -> None:
    assert rows(lines(tmp_path, name, text), **columns) == PAIRS


def test_a_file_of_addresses_meets_its_file_of_captions(tmp_path: Path) -> None:
    source = lines(tmp_path, "sbu_urls.txt", f"{A}\n{B}\n")
    with pytest.raises(DataError, match="holds addresses without captions"):
        find_addresses(source)
    captions = lines(tmp_path, "sbu_captions.txt", "a cat\ntwo dogs\n")
    assert rows(source) == PAIRS
    lines(tmp_path, captions.name, "a cat\ntwo dogs\nthree\n")
    with pytest.raises(DataError, match="differ in their numbers of lines"):
        rows(source)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("files.csv", "image,caption\n1.jpg,a cat\n"),
        ("files.jsonl", '{"image": "1.jpg", "caption": "https://x.example is what the sign says"}\n'),
        ("prose.txt", "nothing\nof the kind\n"),
        ("utf16.tsv", f"a\t{A}\n".encode("utf-16")),
        ("annotations.json", json.dumps({"images": [{"coco_url": A}], "annotations": []})),
        ("empty.tsv", ""),
        ("empty.json", ""),
        ("photo.jpg", b"\xff\xd8\xff"),
    ],
)
def test_what_is_no_list_of_addresses_is_left_to_others(tmp_path: Path, name: str, text: str | bytes) -> None:
    assert find_addresses(lines(tmp_path, name, text), image_column="image") is None
    assert find_addresses(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (f"url\tpage\tcaption\n{A}\t{B}\tx\n", {}, "the columns 'url', 'page' hold addresses; name the one of the images with --image-column"),
        (f"{A}\t{B}\tx\n", {}, "the columns 1, 2 hold addresses"),
        (f"url\ttext\tnotes\n{A}\tx\ty\n", {"caption_column": "txt"}, "may be in any of the columns 'text', 'notes'. Did you mean 'text'? Give its name with --caption-column"),
        (f"{A}\tx\ty\n", {}, "may be in any of the columns 2, 3. Give its number with --caption-column"),
        (f"{A}\n{B}\n", {}, "holds addresses without captions"),
    ],
)
def test_an_unclear_column_is_asked_for(tmp_path: Path, text: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        find_addresses(lines(tmp_path, "list.tsv", text), **columns)
    assert message in str(caught.value)


def test_every_line_gets_a_number_and_a_verdict(tmp_path: Path) -> None:
    text = f'say "cheese\t{A}\nno address\there\n\nlone\nmore\t{A}\tthan two\n \x07 \t{A}\n'.encode()
    text += f"\xff\t{A}\nof a file\tfile:///etc/passwd\nwith a password\thttp://me:secret@a.example/1.jpg\nlast\t{B}\n".encode("latin-1")
    found = rows(lines(tmp_path, "list.tsv", text))
    assert [(row.number, row.refused) for row in found] == [
        (1, ""), (2, "bad_address"), (3, "bad_row"), (4, "bad_row"), (5, "empty_caption"), (6, "bad_utf8"), (7, "bad_address"), (8, "bad_address"), (9, "")
    ]  # fmt: skip
    assert found[0].captions == ('say "cheese',)
    assert {row.address for row in found if row.refused} == {""}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (" http://a.example/x.jpg ", "http://a.example/x.jpg"),
        ("HTTPS://A.example/%20a%2Fb?c=d&e=%C3%A4#part", "https://A.example/%20a%2Fb?c=d&e=%C3%A4"),
        ("http://a.example/straße und.jpg", "http://a.example/stra%C3%9Fe%20und.jpg"),
        ("http://bücher.example:81/1.jpg", "http://xn--bcher-kva.example:81/1.jpg"),
        ("http://a.example/(1),2;3'4!.jpg", "http://a.example/(1),2;3'4!.jpg"),
        ("//a.example/1.jpg", ""),
        ("ftp://a.example/1.jpg", ""),
        ("file:///etc/passwd", ""),
        ("data:image/png;base64,AAAA", ""),
        ("http:///1.jpg", ""),
        ("http://me@a.example/1.jpg", ""),
        ("http://a.example:port/1.jpg", ""),
        ("http://[::1/1.jpg", ""),
        ("http://a.example/" + "x" * 9000, ""),
        ("http://a.example/\udce9.jpg", ""),
    ],
)
def test_an_address_goes_over_the_wire_in_ascii_or_not_at_all(given: str, wanted: str) -> None:
    assert wire(given) == wanted


def test_lines_about_one_address_become_one_sample_with_their_captions(tmp_path: Path) -> None:
    text = "".join(f"{word}\t{address}\n" for word, address in [("a", A), ("b", B), ("c", A), ("a", A), ("d", f"{A}#top")])
    plan, lists = drawn(tmp_path, text)
    assert plan.rows == Counter(used=2, same_address=3)
    assert lists == {"0000000.jsonl": [{"url": A, "row": 1, "captions": ["a", "c", "d"]}, {"url": B, "row": 2, "captions": ["b"]}]}
    _, lists = drawn(tmp_path, "".join(f"word {number}\t{A}\n" for number in range(100)))
    assert lists["0000000.jsonl"][0]["captions"] == [f"word {number}" for number in range(MOST)]


def test_parts_divide_the_list_in_its_order_and_validation_is_a_draw(tmp_path: Path) -> None:
    text = "".join(f"word {number}\thttp://a.example/{number}.jpg\n" for number in range(1, 1001))
    plan, lists = drawn(tmp_path, text, val=150, samples_per_shard=100)
    assert [(p.name, p.shard, p.addresses) for p in plan.parts[:3]] == [
        ("0000000", "val-000000.tar", 100), ("0000001", "val-000001.tar", 50), ("0000002", "train-000000.tar", 100)
    ]  # fmt: skip
    assert [len(found) for found in lists.values()] == [part.addresses for part in plan.parts]
    val, train = ([line["row"] for name in names for line in lists[name]] for names in (list(lists)[:2], list(lists)[2:]))
    assert sorted(val + train) == list(range(1, 1001))
    assert val == sorted(val) and train == sorted(train)
    assert 40 < sum(number <= 500 for number in val) < 110  # from everywhere
    other = drawn(tmp_path, text, val=150, samples_per_shard=100, seed=1)[0]
    assert (other.fingerprint != plan.fingerprint) and (other.limit != plan.limit)
    assert drawn(tmp_path, text, val=150, samples_per_shard=100)[0] == plan


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (f" \t{A}\nx\tfile:///a\n", {}, "no usable line in .*bad_address 1, empty_caption 1"),
        (f"a\t{A}\nb\t{B}\n", {"val": 2}, "--val 2 leaves nothing to train on: there are 2 addresses"),
    ],
)
def test_a_list_without_use_is_refused(tmp_path: Path, text: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        drawn(tmp_path, text, **settings)
