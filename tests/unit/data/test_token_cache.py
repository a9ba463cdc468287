"""Tokens are written once, found again, and the parts of a split share no prompt."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slime_ray.config.data import DataConfig
from slime_ray.data import token_cache
from slime_ray.data.token_cache import PreparedData, prepare_tokens
from slime_ray.data.tokenization import ChatFormat
from slime_ray.errors import DataError, ModelError

Make = Callable[..., Any]


def pairs(first: int, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"q {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(first, first + count)]


@pytest.fixture
def chat(tokenizer_of: Make) -> ChatFormat:
    return ChatFormat.of(tokenizer_of("qwen"))


@pytest.fixture
def prepare(chat: ChatFormat, tmp_path: Path) -> Callable[..., PreparedData]:
    def run(*, pairs: bool = True, chat: ChatFormat = chat, **data: Any) -> PreparedData:
        return prepare_tokens(DataConfig(**data), chat, pairs=pairs, cache_dir=tmp_path / "cache")

    return run


def lines(dataset: Any) -> list[int]:
    return [int(source.rpartition(":")[2]) for source in dataset["source"]]


def test_columns_hold_the_tokens_as_written(chat: ChatFormat, prepare: Make, write_rows: Make) -> None:
    done = prepare(train=[write_rows(pairs(0, 3))])
    assert done.train.column_names == ["prompt_ids", "chosen_ids", "rejected_ids", "source"]
    assert done.train.features["prompt_ids"].feature.dtype == "int32"
    assert chat.tokenizer.decode(done.train[2]["rejected_ids"]) == "no 2<|im_end|>"
    assert lines(done.train) == [1, 2, 3]
    assert done.eval is None
    assert done.eval_facts is None
    assert done.train.cache_files[0]["filename"].endswith("train.arrow"), "memory-mapped, not read"


def test_the_same_content_and_settings_are_tokenised_once(
    prepare: Make, write_rows: Make, tokenizer_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(pairs(0, 30))
    first = prepare(train=[path], part="sft")
    monkeypatch.setattr(token_cache, "tokenize", lambda *_, **__: pytest.fail("tokenised again"))
    again = prepare(train=[path], part="sft")
    assert again.folder == first.folder
    assert again.train_facts == first.train_facts
    assert again.train["prompt_ids"] == first.train["prompt_ids"]
    monkeypatch.undo()
    other_chat = ChatFormat.of(tokenizer_of("gemma"))
    others = [
        prepare(train=[path], part="sft", pairs=False),
        prepare(train=[path], part="preference"),
        prepare(train=[path], part="sft", max_length=9),
        prepare(train=[path], part="sft", limit=2),
        prepare(train=[path], part="sft", chat=other_chat),
        prepare(train=[path], part="sft", split={"seed": 1}),
    ]
    write_rows(pairs(1, 30))
    others.append(prepare(train=[path], part="sft"))
    assert len({first.folder, *(other.folder for other in others)}) == 8


def test_parts_are_disjoint_by_prompt_and_complete(prepare: Make, write_rows: Make) -> None:
    rows = pairs(0, 300)
    rows += [{**row, "prompt": f" {row['prompt']}\n", "chosen": "other"} for row in rows[:100]]
    path = write_rows(rows)
    split = {"sft": 0.3, "preference": 0.6}
    sft = prepare(train=[path], part="sft", split=split, pairs=False)
    preference = prepare(train=[path], part="preference", split=split)
    assert sft.eval is not None
    assert preference.eval is not None
    assert lines(sft.eval) == lines(preference.eval), "both stages are judged on the same rows"
    assert all(ids is not None for ids in sft.eval["rejected_ids"]), "evaluation keeps both answers"
    assert all(ids is None for ids in sft.train["rejected_ids"])
    parts = [lines(sft.train), lines(preference.train), lines(sft.eval)]
    assert sorted(itertools.chain(*parts)) == list(range(1, 401))
    assert all(parts)
    prompts = [{(n - 1) % 300 for n in part} for part in parts]
    assert sum(map(len, prompts)) == 300, "no prompt is in two parts"


def test_limit_keeps_the_first_usable_rows(prepare: Make, write_rows: Make) -> None:
    rows = pairs(0, 5)
    rows[1]["rejected"] = ""
    done = prepare(train=[write_rows(rows)], limit=3)
    assert lines(done.train) == [1, 3, 4]
    assert [(row.reason, row.source[-2:]) for row in done.train_facts.skipped] == [("empty_completion", ":2")]


def test_several_files_and_explicit_eval_files(prepare: Make, write_rows: Make) -> None:
    train = [write_rows(pairs(0, 4), "a.jsonl"), write_rows(pairs(10, 2), "b.jsonl")]
    held = write_rows([*pairs(3, 1), *pairs(10, 1), *pairs(10, 1), *pairs(20, 2)], "eval.jsonl")
    done = prepare(train=train, eval=[held], part="all")
    assert lines(done.train) == [1, 2, 3, 4, 1, 2]
    assert lines(done.eval) == [1, 2, 3, 4, 5]
    assert done.overlap == 2, "prompts, not rows"
    assert done.eval_facts is not None
    assert done.eval_facts.rows == 5


def test_eval_rows_are_all_pairs_or_all_demonstrations(prepare: Make, write_rows: Make) -> None:
    messages = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    train, held = write_rows(messages, "train.jsonl"), write_rows(pairs(0, 2), "held.jsonl")
    both = prepare(train=[train], eval=[held], pairs=False)
    assert both.eval is not None
    assert None not in both.eval["rejected_ids"]
    mixed = prepare(train=[train], eval=[held, train], pairs=False)
    assert mixed.eval is not None
    assert mixed.eval["rejected_ids"] == [None] * 3
    with pytest.raises(DataError, match="SFT data"):
        prepare(train=[held], eval=[train], pairs=True)


def test_what_was_cut_and_skipped_is_counted(prepare: Make, write_rows: Make, tokenizer_of: Make) -> None:
    rows = pairs(0, 4)
    rows[0]["chosen"] = "long " * 20
    rows[1]["prompt"] = "long " * 20
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[3]["prompt"] = "<bos>q"
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    chat = ChatFormat.of(tokenizer_of("gemma", template))
    done = prepare(train=[write_rows(rows)], max_length=20, chat=chat)
    facts = done.train_facts
    assert (facts.rows, facts.prompt_cut, facts.completion_cut, facts.doubled_bos) == (3, 1, 1, 1)
    assert {reason: len(places) for reason, places in facts.skipped_by_reason.items()} == {"chosen_equals_rejected": 1}


@pytest.mark.parametrize("cached", [False, True])
def test_strict_data_end_at_the_first_skipped_row(cached: bool, prepare: Make, write_rows: Make) -> None:
    rows = pairs(0, 4)
    rows[2]["rejected"] = " "
    rows[3]["rejected"] = rows[3]["chosen"]
    path = write_rows(rows)
    if cached:
        prepare(train=[path])
    else:  # what comes later is not even read
        Path(path).write_text(Path(path).read_text() + "{broken")
    with pytest.raises(DataError) as caught:
        prepare(train=[path], strict=True)
    assert str(caught.value) == (
        f"{path}:3: empty_completion, and data.strict allows no skipped row; mend it or unset data.strict"
    )


def test_nothing_usable_says_why(prepare: Make, write_rows: Make, tmp_path: Path) -> None:
    rows = pairs(0, 3)
    for row in rows:
        row["rejected"] = row["chosen"]
    rows[1]["chosen"] = ""
    path = write_rows(rows)
    with pytest.raises(DataError) as caught:
        prepare(train=[path])
    assert str(caught.value) == (
        f"data.train = {path}: no usable row (2 chosen_equals_rejected, 1 empty_completion; the first is {path}:1); "
        "run `slime-ray inspect` on it"
    )
    path = write_rows(pairs(0, 3))
    with pytest.raises(DataError) as caught:
        prepare(train=[path], max_length=8, max_prompt_length=8)
    assert str(caught.value) == (
        f"data.train = {path}: no usable row (3 no_room; the first is {path}:1); a prompt cut to 8 tokens leaves no "
        "room for an answer in data.max_length = 8; raise data.max_length or lower data.max_prompt_length"
    )
    with pytest.raises(DataError, match=r"no prompt falls into data\.part = 'sft'; give more rows"):
        prepare(train=[path], part="sft", split={"sft": 0.0, "preference": 1.0})
    assert list((tmp_path / "cache").iterdir()) == [], "nothing unfinished is left behind"


def test_a_held_out_part_without_rows_is_no_eval(prepare: Make, write_rows: Make) -> None:
    done = prepare(train=[write_rows(pairs(0, 5))], part="preference", split={"sft": 0.0, "preference": 1.0})
    assert done.eval is None
    assert done.eval_facts is None


def test_a_template_without_an_end_of_turn_is_refused(prepare: Make, write_rows: Make, tokenizer_of: Make) -> None:
    chat = ChatFormat.of(tokenizer_of("qwen", "{% for m in messages %}{{ m.content }}{% endfor %}"))
    with pytest.raises(ModelError, match=r"would never stop; set model\.chat_template to one that does"):
        prepare(train=[write_rows(pairs(0, 2))], chat=chat)


def test_writers_at_the_same_time_leave_one_whole_folder(prepare: Make, write_rows: Make, tmp_path: Path) -> None:
    path = write_rows(pairs(0, 200))
    ready = threading.Barrier(3)
    found: list[list[int]] = []

    def work() -> None:
        ready.wait()
        found.append(lines(prepare(train=[path]).train))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(1, 201))] * 3
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_rows_go_by_one_at_a_time_and_are_written_in_batches(
    prepare: Make, write_rows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow

    monkeypatch.setattr(token_cache, "_ROWS_PER_BATCH", 4)
    done = prepare(train=[write_rows(pairs(0, 10))])
    with pyarrow.ipc.open_stream(str(done.folder / "train.arrow")) as stream:
        assert [batch.num_rows for batch in stream] == [4, 4, 2]
    tokenised = []
    real = token_cache.tokenize
    monkeypatch.setattr(token_cache, "tokenize", lambda row, *a, **k: tokenised.append(row) or real(row, *a, **k))
    path = Path(write_rows(pairs(0, 10)))
    path.write_bytes(path.read_bytes() + b"{broken")
    with pytest.raises(DataError, match=":11: broken JSON"):
        prepare(train=[str(path)])
    assert len(tokenised) == 10, "the rows before the broken line were not kept for later"
