"""What a job is to do: the recipes behind it, the files that they name, and the id that follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from slime_ray.config.section import Section
from slime_ray.errors import ConfigError
from slime_ray.storage import place, write_text
from slime_ray.submission.package import content
from slime_ray.submission.work import Setting, Work

ROOT = Path(__file__).parents[3]
QUICKSTART = "jobs/recipes/quickstart"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe of training."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('model.name = "tiny"\ndata.train = ["a.jsonl", "b.jsonl"]\n')
    return tmp_path


def settings(work: Work) -> dict[str, list[Setting]]:
    return {role: work.named(role) for role in ("reads", "writes", "secret")}


def test_a_training_names_its_files(folder: Path) -> None:
    work = Work.of("train", "mine.toml", ["model.chat_template=chat.jinja"])
    assert work.files() == ["mine.toml"]
    assert settings(work) == {
        "reads": [
            Setting("model.name", "tiny"),
            Setting("model.chat_template", "chat.jinja"),
            Setting("data.train", "a.jsonl"),
            Setting("data.train", "b.jsonl"),
        ],
        "writes": [Setting("runs_dir", "runs")],
        "secret": [],
    }


def test_a_pipeline_is_all_of_its_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    work = Work.of("pipeline", f"{QUICKSTART}/pipeline.toml", ["train.runs_dir=s3://b/runs", "serve.keys.file=k.json"])
    names = ("pipeline", "sft", "sft-continued", "slime", "serve", "evaluate")
    assert work.files() == [f"{QUICKSTART}/{name}.toml" for name in names]
    found = settings(work)
    # Those that all recipes of training have stand once, under the key that sets them.
    assert found["writes"] == [
        Setting("train.runs_dir", "s3://b/runs"),
        Setting("serve.runs_dir", "runs"),
        Setting("evaluate.evaluations_dir", "evaluations"),
    ]
    assert found["secret"] == [Setting("serve.keys.file", "k.json")]
    assert Setting("serve.models.base.source", "runs/quickstart/base") in found["reads"]


def test_a_study_is_also_the_recipe_that_it_varies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    work = Work.of("tune", f"{QUICKSTART}/study.toml", ["recipe.runs_dir=/shared/runs"])
    assert work.files() == [f"{QUICKSTART}/study.toml", f"{QUICKSTART}/slime.toml"]
    assert work.named("writes") == [Setting("studies_dir", "studies"), Setting("recipe.runs_dir", "/shared/runs")]
    assert work.named("reads")[0] == Setting("heldout", "runs/quickstart/data/test.jsonl")


def test_a_judge_of_a_study_has_recipes_that_no_override_reaches(folder: Path) -> None:
    (folder / "serve.toml").write_text('[models.any]\nsource = "unused"\n')
    (folder / "evaluate.toml").write_text('[models.any]\nbase_url = "http://127.0.0.1/v1"\n')
    (folder / "study.toml").write_text(
        'recipe = "mine.toml"\nheldout = "h.jsonl"\n[space]\nloss.kappa = {low = 1.0, high = 2.0}\n'
        '[judge]\nserve = "serve.toml"\nevaluate = "evaluate.toml"\n'
    )
    work = Work.of("tune", "study.toml", [])
    assert work.files() == ["study.toml", "mine.toml", "serve.toml", "evaluate.toml"]
    assert Setting("evaluate.toml: evaluations_dir", "evaluations") in work.named("writes")


def test_every_setting_that_is_a_place_says_so() -> None:
    # A new one that names a file has to be found before it is submitted.
    def below(section: type[Section]) -> set[type[Section]]:
        return {section, *(inner for each in section.__subclasses__() for inner in below(each))}

    unmarked = {
        f"{section.__name__}.{name}"
        for section in below(Section)
        for name, field in section.model_fields.items()
        if name in ("path", "file", "source", "answers", "labels", "prompts", "references", "heldout")
        or name.endswith("_dir")
        if not (isinstance(field.json_schema_extra, dict) and "role" in field.json_schema_extra)
    }
    assert unmarked == set()


def the_id(recipe: str, *overrides: str, sent: tuple[str, ...] = ()) -> str:
    return Work.of("train", recipe, overrides).submission_id(content(sent))


def test_the_id_follows_from_what_is_done(folder: Path) -> None:
    found = the_id("mine.toml")
    assert found.startswith("train-mine-")
    # The same settings in other words, or said twice.
    text = (folder / "mine.toml").read_text()
    (folder / "mine.toml").write_text(f"# why\n{text}\n")
    assert the_id("mine.toml", "training.epochs=1.0") == found
    assert the_id("./mine.toml") == found
    others = {the_id("mine.toml", other) for other in ("training.seed=1", "training.num_workers=2", "runs_dir=/r")}
    assert len(others | {found}) == 4

    (folder / "a.jsonl").write_text("one")
    first = the_id("mine.toml", sent=("a.jsonl",))
    (folder / "a.jsonl").write_text("two")
    assert len({found, first, the_id("mine.toml", sent=("a.jsonl",))}) == 3


def test_an_id_is_a_part_of_an_address(folder: Path) -> None:
    assert the_id("mine.toml", "name=über/alles schön").startswith("train-.ber.alles.sch.n-")


def test_recipes_lie_below_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    with pytest.raises(ConfigError, match=r"\.\./mine\.toml: lies outside of .*; submit from a folder above it"):
        Work.of("train", "../mine.toml", [])


def test_recipes_are_found_in_the_job_as_here(folder: Path) -> None:
    (folder / "serve.toml").write_text('[models.any]\nsource = "unused"\n')
    (folder / "evaluate.toml").write_text('[models.any]\nbase_url = "http://127.0.0.1/v1"\n')
    others = 'serve = "serve.toml"\nevaluate = "evaluate.toml"\n'
    (folder / "p.toml").write_text(f'train = ["mine.toml"]\n{others}')
    files = ["p.toml", "mine.toml", "serve.toml", "evaluate.toml"]
    for name in ("p.toml", f"{folder}/p.toml", f"file://{folder}/p.toml", f"../{folder.name}/p.toml"):
        assert Work.of("pipeline", name, []).files() == files
    for name in (f"{folder}/mine.toml", f"../{folder.name}/mine.toml", f"file://{folder}/mine.toml"):
        (folder / "p.toml").write_text(f'train = ["{name}"]\n{others}')
        with pytest.raises(
            ConfigError, match=r"would not be found under this name in the job; .* relative to the recipe"
        ):
            Work.of("pipeline", "p.toml", [])


def test_a_file_url_is_the_path_that_it_stands_for(folder: Path) -> None:
    work = Work.of("train", "mine.toml", ["runs_dir=file:///shared/runs", "model.name=file:///shared/tiny"])
    assert work.named("writes") == [Setting("runs_dir", "/shared/runs")]
    assert work.named("reads")[0] == Setting("model.name", "/shared/tiny")


def test_a_recipe_behind_a_url_stays_there(folder: Path) -> None:
    write_text(place("memory://project/recipes/mine.toml"), (folder / "mine.toml").read_text())
    work = Work.of("train", "memory://project/recipes/mine.toml", [])
    assert (work.recipe, work.name, work.files()) == ("memory://project/recipes/mine.toml", "mine", [])


def test_a_recipe_keeps_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder / "jobs" / "recipes" / "model"
    place.mkdir(parents=True)
    (folder / "mine.toml").rename(place / "mine.toml")
    assert Work.of("train", "jobs/recipes/model/mine.toml", []).name == "model/mine"
    monkeypatch.chdir(folder / "jobs")
    with pytest.raises(ConfigError, match="is called model/mine, but would be mine in the job; submit from the folder"):
        Work.of("train", "recipes/model/mine.toml", [])
