"""What the cluster would not see: told from here where it can be, else by what a small job prints there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slime_ray.errors import ConfigError
from slime_ray.submission import sight
from slime_ray.submission.work import Work

NOWHERE: Any = None  # no cluster is asked


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    (tmp_path / "here" / "mine.toml").write_text('model.name = "org/name"\ndata.train = ["../pairs.jsonl"]\n')
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_files_above_the_folder_are_not_sent(folder: Path) -> None:
    work = Work.of("train", "mine.toml", ["runs_dir=s3://bucket/runs"])
    with pytest.raises(
        ConfigError, match=r"data\.train = '\.\./pairs\.jsonl': lies outside of .*; submit from a folder"
    ):
        sight.look(work, NOWHERE)


def test_a_name_that_leaves_the_folder_and_comes_back_is_not_sent(folder: Path) -> None:
    (folder / "here" / "pairs.jsonl").write_text("{}\n")
    work = Work.of("train", "mine.toml", ["runs_dir=s3://bucket/runs", 'data.train=["../here/pairs.jsonl"]'])
    with pytest.raises(ConfigError, match=r"data\.train = '\.\./here/pairs\.jsonl': lies outside of"):
        sight.look(work, NOWHERE)


def test_urls_runs_and_hub_names_are_left_to_the_job(folder: Path) -> None:
    values = ["runs_dir=s3://bucket/runs", 'data.train=["s3://bucket/pairs.jsonl", "org/data:train"]']
    assert sight.look(Work.of("train", "mine.toml", values), NOWHERE) == []
    assert sight.look(Work.of("train", "mine.toml", [*values, "model.name=run:other"]), NOWHERE) == []


def test_a_file_of_keys_is_not_sent(folder: Path) -> None:
    (folder / "here" / "keys.json").write_text("{}")
    (folder / "here" / "p.toml").write_text('train = ["mine.toml"]\nserve = "s.toml"\nevaluate = "e.toml"\n')
    (folder / "here" / "s.toml").write_text('[models.a]\nsource = "org/name"\n')
    (folder / "here" / "e.toml").write_text('[models.a]\nbase_url = "http://127.0.0.1/v1"\n')
    places = ["train.runs_dir=s3://b/r", "serve.runs_dir=s3://b/r", "evaluate.evaluations_dir=s3://b/e"]
    work = Work.of("pipeline", "p.toml", [*places, "serve.keys.file=keys.json", 'train.data.train=["org/data"]'])
    with pytest.raises(ConfigError, match=r"serve\.keys\.file = 'keys\.json': a file of keys is not sent along; set"):
        sight.look(work, NOWHERE)


def test_what_the_small_job_sees(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("")
    reads = [str(log), str(tmp_path / "nowhere"), "~no such user/x"]
    writes = [str(log), str(tmp_path / "new" / "runs"), str(log / "below"), "/proc/runs", "~no such user/runs"]
    asked = json.dumps({"reads": reads, "writes": writes})
    done = subprocess.run([sys.executable, "-c", sight._LOOK, asked], capture_output=True, text=True, timeout=30)
    assert json.loads(done.stdout.removeprefix("seen:")) == [str(log), str(log), str(tmp_path / "new" / "runs")]
    assert list(tmp_path.iterdir()) == [log]
