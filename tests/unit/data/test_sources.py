"""Rows know their place, and a file that cannot be read says where and why."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slime_ray.data.sources import content_hash, read_rows
from slime_ray.errors import DataError

ROWS = [{"a": 1}, {"a": "two\u2028lines\u0085here"}, {"a": {"b": [None, 3]}}]


def error_of(entry: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(str(entry)))
    return str(caught.value)


def test_json_lines_are_split_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_bytes(b"\xef\xbb\xbf" + f"{lines[0]}\r\n\n{lines[1]}\n{lines[2]}".encode())
    rows = list(read_rows(str(path)))
    assert [row.fields for row in rows] == ROWS
    assert [row.source for row in rows] == [f"{path}:1", f"{path}:3", f"{path}:4"]


def test_an_array_gives_the_line_on_which_each_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('\n [ {"a":\n 1},\n\n  {"a": "x\u2028y"}, {"a": [3,\n4]} ]\n', encoding="utf-8")
    assert [(row.fields["a"], row.source) for row in read_rows(str(path))] == [
        (1, f"{path}:2"),
        ("x\u2028y", f"{path}:5"),
        ([3, 4], f"{path}:5"),
    ]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.json.gz"])
def test_content_and_not_the_suffix_tells_an_array_from_lines(tmp_path: Path, name: str, indent: int | None) -> None:
    path = tmp_path / name
    text = json.dumps(ROWS, indent=indent) if indent else "\n".join(map(json.dumps, ROWS))
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert [row.fields for row in read_rows(str(path))] == ROWS


def test_parquet_gives_row_numbers_and_drops_keys_that_a_message_did_not_have(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    messages = [[{"role": "user", "content": "hi"}], [{"role": "tool", "content": "1", "name": "clock"}]]
    pq.write_table(pa.table({"messages": messages, "chosen": ["x", None]}), path)
    rows = list(read_rows(str(path)))
    assert [row.source for row in rows] == [f"{path}:1", f"{path}:2"]
    assert rows[0].fields["messages"] == messages[0], "no key `name` that is null"
    assert rows[1].fields == {"messages": messages[1], "chosen": None}, "a column stays, even if null"


def test_a_folder_gives_its_supported_files_sorted(tmp_path: Path) -> None:
    for name in ("c.jsonl", "b.json", "d.jsonl", "a.jsonl", ".hidden.jsonl", "notes.txt"):
        (tmp_path / name).write_text(json.dumps({"name": name}), encoding="utf-8")
    (tmp_path / "deeper").mkdir()
    assert [row.fields["name"] for row in read_rows(str(tmp_path))] == ["a.jsonl", "b.json", "c.jsonl", "d.jsonl"]


def test_files_that_are_not_there_or_empty(tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl"
    expected = "neither a file or folder here nor a reachable hub name (org/name[:split][@revision])"
    assert error_of(missing) == f"{missing}: {expected}"
    for name, content in {
        "a.jsonl": b"",
        "b.json": b" \n\n",
        "c.json": b"[ ]",
        "d.jsonl.gz": gzip.compress(b""),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert error_of(tmp_path / name) == f"{tmp_path / name}: is empty; expected at least one row"
    (tmp_path / "folder").mkdir()
    assert "no file in this folder is one of .json, .jsonl" in error_of(tmp_path / "folder")
    (tmp_path / "rows.csv").write_text("a,b\n")
    assert error_of(tmp_path / "rows.csv").endswith(
        "rows.csv: files of this kind are not read; expected one of .json, .jsonl, .json.gz, .jsonl.gz, .parquet"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"a": 1}\n{"a": 2\n{"a": 3}\n',
            ":2: broken JSON (Expecting ',' delimiter, column 8); expected an array of objects, or one",
        ),
        (b'[{"a": 1},\n\n {"a" 2}]', ":3: broken JSON (Expecting ':' delimiter, column 7)"),
        (b'[{"a": 1}\n {"a": 2}]', ":2: broken JSON (expected ',' or ']' after a row)"),
        (b'[{"a": 1},\n{"a": 2}', ":2: broken JSON (expected ',' or ']' after a row)"),
        (b'[{"a": 1}]\n{"a": 2}', ":2: broken JSON (text after the array's end)"),
        (b'{"a": 1}\n{"a": "\xff"}\n', ":2: byte 8 of the line (0xff) is not UTF-8"),
        (b'[{"a": 1},\n{"a":\n"x\xe9"}]', ":3: byte 3 of the line (0xe9) is not UTF-8"),
        (b'{"a": 1}\n[1]\n', ":2: the row is an array; expected an object"),
        (b'["one"]', ":1: the row is a text; expected an object"),
        (b'[{"a": 1},\nnull]', ":2: the row is null; expected an object"),
        (b'{"a": ' + b"1" * 5000 + b"}", ":1: broken JSON (Exceeds the limit"),
        (b"[" * 100_000, ":1: broken JSON (maximum recursion depth"),
    ],
)
def test_broken_files_name_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    assert error_of(path).startswith(f"{path}{message}")


def test_damaged_archives_and_tables_are_named(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-12])
    assert "not a whole gzip file" in error_of(cut)
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_bytes(b'{"a": 1}\n')
    assert "not a whole gzip file" in error_of(plain)
    table = tmp_path / "rows.parquet"
    table.write_bytes(b"PAR1 no table")
    assert "not a readable Parquet file" in error_of(table)


def test_the_hash_is_of_content_in_order_and_not_of_names(tmp_path: Path) -> None:
    paths = []
    for name, text in {"a.jsonl": '{"a": 1}', "b.jsonl": '{"a": 2}', "c.jsonl": '{"a": 1}'}.items():
        (tmp_path / name).write_text(text)
        paths.append(str(tmp_path / name))
    a, b, c = paths
    assert content_hash([a, b]) == content_hash([c, b]) != content_hash([b, a])
    assert content_hash([str(tmp_path)]) == content_hash([a, b, c])
    before = content_hash([a])
    Path(a).write_text('{"a": 1}\n')
    assert content_hash([a]) != before
    with pytest.raises(DataError, match="neither a file or folder here"):
        content_hash([str(tmp_path / "none.jsonl")])


class TestHub:
    """A data set in the local caches, as `huggingface_hub` and `datasets` leave it there; no network."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    @pytest.fixture
    def offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
        return tmp_path

    def note_commit(self, place: Path, revision: str, commit: str) -> None:
        folder = place / "hub" / "datasets--org--pairs"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / commit / "README.md").write_text("pairs")

    def cache_rows(self, place: Path, rows: list[dict[str, Any]], commit: str) -> None:
        from datasets import Dataset, Split

        source = place / "source.json"
        source.write_text("\n".join(map(json.dumps, rows)))
        built = Dataset.from_json(str(source), split=Split.TRAIN, cache_dir=str(place / "built"))
        assert isinstance(built, Dataset)
        folder = place / "datasets" / "org___pairs" / "default" / "0.0.0" / commit
        folder.parent.mkdir(parents=True)
        Path(built.cache_files[0]["filename"]).parent.rename(folder)
        info = json.loads((folder / "dataset_info.json").read_text())
        (folder / "json-train.arrow").rename(folder / "pairs-train.arrow")
        (folder / "dataset_info.json").write_text(json.dumps({**info, "dataset_name": "pairs"}))

    def test_rows_and_hash_come_from_the_pinned_commit_in_the_cache(self, offline: Path) -> None:
        self.note_commit(offline, "main", self.COMMIT)
        self.cache_rows(offline, [{"a": 1, "b": None}, {"a": 2, "b": "x"}], self.COMMIT)
        rows = list(read_rows("org/pairs:train"))
        assert [(row.source, row.fields["a"]) for row in rows] == [("org/pairs:train:1", 1), ("org/pairs:train:2", 2)]
        by_name = content_hash(["org/pairs"])
        assert by_name == content_hash([f"org/pairs:train@{self.COMMIT}"]) != content_hash(["org/pairs:test"])

    def test_another_revision_than_the_cached_one_is_refused(self, offline: Path) -> None:
        self.cache_rows(offline, [{"a": 1}], self.COMMIT)
        other = "f" * 40
        assert f"the local cache has only @{self.COMMIT}" in error_of(f"org/pairs@{other}")

    def test_a_name_that_is_nowhere(self, offline: Path) -> None:
        assert error_of("org/pairs:train@v1") == (
            "org/pairs:train@v1: neither a file or folder here nor a reachable hub name: the hub cannot be reached and "
            "the local cache has no copy"
        )


def test_rows_come_one_at_a_time(write_rows: Callable[..., str], tmp_path: Path) -> None:
    """A broken last line does not keep the first rows from being read."""
    path = Path(write_rows([{"a": 1}, {"a": 2}]))
    path.write_bytes(path.read_bytes() + b"{broken")
    rows = read_rows(str(path))
    assert [next(rows).fields, next(rows).fields] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match=":3: broken JSON"):
        next(rows)
