"""Work for a cluster of `ray start` that is known by its address and token alone: submitted once, attached, stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from slime_ray.overrides import load_recipe
from slime_ray.runs import Run, all_runs
from slime_ray.search.trials import read_trials
from slime_ray.training.fit import train
from tests.cluster.test_judged_study import write_model
from tests.conftest import SETTINGS, write_rows
from tests.evaluations import question_rows
from tests.json_server import json_server
from tests.started_cluster import StartedCluster
from tests.studies import WriteStudy, write_study
from tests.unit.pipeline.conftest import change, write_project

__all__ = ["write_study"]

pytestmark = pytest.mark.timeout(600)

ON_RAY = "training.num_workers=2"
# Each row a micro-batch, for thousands of steps: it is stopped before its end.
LONG = ("training.max_steps=4000", "training.tokens_per_micro_batch=1", "checkpoint.every_steps=5")


@pytest.fixture(scope="module")
def cluster() -> Iterator[StartedCluster]:
    """A head that runs the jobs' drivers, and two workers of one core each."""
    with StartedCluster() as started:
        started.start_head(cpus=0)
        started.start_workers(2)
        yield started


@pytest.fixture(scope="module")
def folder(tiny_model: Path, preference_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given: recipes, a model and data by relative names."""
    made = tmp_path_factory.mktemp("project")
    shutil.copytree(tiny_model, made / "tiny")
    shutil.copy(preference_file, made / "pairs.jsonl")
    values = SETTINGS | {"model.name": "tiny", "data.train": ["pairs.jsonl"], "checkpoint.every_steps": 1}
    (made / "jobs" / "recipes" / "tiny").mkdir(parents=True)
    recipe = made / "jobs" / "recipes" / "tiny" / "slime.toml"
    recipe.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return made


Submit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def submit(cluster: StartedCluster, folder: Path, tmp_path: Path) -> Submit:
    """Submit the recipe from its folder; runs lie in a folder of the test's own."""

    def call(*arguments: str, place: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        settings = (f"runs_dir={place or tmp_path / 'runs'}", *arguments)
        recipe = "jobs/recipes/tiny/slime.toml"
        return cluster.run("submit", "train", recipe, *settings, "--upload", folder=folder, **options)

    return call


def the_run(runs_dir: Path) -> Run:
    (found,) = all_runs(runs_dir, [])
    return found


def weights(run: Run) -> bytes:
    return (run.final / "model.safetensors").read_bytes()


def submission_id(answer: subprocess.CompletedProcess[str]) -> str:
    found = re.match(r"(train-tiny\.slime-[0-9a-f]{8}(-\d+)?): ", answer.stderr)
    assert found, answer.stderr
    return found[1]


def details(cluster: StartedCluster) -> list[dict[str, Any]]:
    """All that the cluster tells of its jobs."""
    request = urllib.request.Request(f"{cluster.address}/api/jobs/")
    request.add_header("Authorization", f"Bearer {cluster.token.read_text()}")
    return json.loads(urllib.request.urlopen(request, timeout=10).read())


def ours(cluster: StartedCluster) -> set[str]:
    return {job["submission_id"] for job in details(cluster) if "slime_ray" in (job["metadata"] or {})}


def told(cluster: StartedCluster, name: str) -> list[dict[str, Any]]:
    return [job for job in details(cluster) if (job["submission_id"] or "").startswith(name)]


def wait_for(seen: Callable[[], bool], *, timeout_s: float = 120) -> None:
    until = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < until
        time.sleep(0.2)


def last_step(runs_dir: Path) -> int:
    runs = all_runs(runs_dir, [])
    return int(runs[0].last_metrics().get("step", 0)) if runs else 0


def in_process(folder: Path, runs_dir: Path, *overrides: str) -> Run:
    """The same recipe without a cluster."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        recipe = load_recipe("jobs/recipes/tiny/slime.toml", [f"runs_dir={runs_dir}", *overrides])
        return train(recipe)
    finally:
        os.chdir(before)


def test_a_job_is_submitted_once_and_found_again(
    submit: Submit, cluster: StartedCluster, folder: Path, tmp_path: Path
) -> None:
    secret = {"AWS_SECRET_ACCESS_KEY": "hidden-word-one", "SLIME_RAY_API_KEYS": "me=hidden-word-two"}
    answer = submit(ON_RAY, environment=secret)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    name = submission_id(answer)
    run = the_run(tmp_path / "runs")
    # The job's log is shown, its progress and the artifact that it prints.
    assert str(run.folder) in answer.stdout.splitlines()
    assert "step 3/3" in answer.stdout
    assert answer.stderr.splitlines()[-1] == f"{name}: done"
    # What a laptop makes of the recipe, under the same name.
    here = in_process(folder, tmp_path / "here")
    assert run.name == here.name
    assert run.metrics()[-1]["loss"] == pytest.approx(here.metrics()[-1]["loss"], rel=1e-9)

    again = submit(ON_RAY)
    assert again.returncode == 0
    assert again.stderr.startswith(f"{name}: done already, since ")
    assert str(run.folder) in again.stdout.splitlines()
    assert [job["submission_id"] for job in told(cluster, name)] == [name]
    once_more = submit(ON_RAY, "--again")
    assert once_more.returncode == 0
    assert submission_id(once_more) == f"{name}-2"
    assert [event.kind for event in run.events() if event.kind in ("started", "finished")] == ["started", "finished"]

    # Neither the token nor anything else of this environment travelled.
    everything = json.dumps(details(cluster)) + answer.stdout
    for word in ("hidden-word", cluster.token.read_text()):
        assert word not in everything
    assert told(cluster, name)[0]["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "600"}


def test_two_commands_at_the_same_instant_are_one_job(submit: Submit, cluster: StartedCluster, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: submit("training.seed=2"), range(2)))
    assert [answer.returncode for answer in answers] == [0, 0], answers
    (name,) = {submission_id(answer) for answer in answers}
    assert [job["submission_id"] for job in told(cluster, name)] == [name]
    assert len(all_runs(tmp_path / "runs", [])) == 1


def test_a_stopped_job_goes_on_as_the_next_attempt(
    submit: Submit, cluster: StartedCluster, folder: Path, tmp_path: Path
) -> None:
    runs_dir = tmp_path / "runs"
    steps = ("training.max_steps=60", *LONG[1:])
    name = submit(*steps, "--no-wait").stdout.strip()
    wait_for(lambda: last_step(runs_dir) >= 5)
    stopped = cluster.run("stop", name)
    assert stopped.returncode == 0
    assert stopped.stderr.splitlines()[-1].startswith(f"{name}: stopped; the same command goes on with it")
    run = the_run(runs_dir)
    assert run.state() == "interrupted"
    at = run.ending()
    assert at is not None
    assert at.step is not None
    assert at.step < 60

    answer = submit(*steps)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert submission_id(answer) == f"{name}-2"
    resumed = [event for event in run.events() if event.kind == "resumed"]
    assert [event.step for event in resumed] == [at.step]
    undisturbed = submit(*steps, place=tmp_path / "undisturbed")
    assert undisturbed.returncode == 0
    assert weights(run) == weights(the_run(tmp_path / "undisturbed"))

    listed = cluster.run("jobs")
    assert listed.returncode == 0
    rows = {line.split()[0]: line.split() for line in listed.stdout.splitlines()[1:]}
    assert rows[name][1:3] == ["tiny/slime", "stopped"]
    assert rows[f"{name}-2"][1:4] == ["tiny/slime", "succeeded", "0"]
    assert "stopping after this step, with a checkpoint" in cluster.run("logs", name).stdout
    over = cluster.run("stop", name)
    assert (over.returncode, over.stderr.startswith(f"{name}: stopped")) == (0, True)


def test_a_failure_comes_back_with_its_exit_code(submit: Submit, cluster: StartedCluster) -> None:
    # A learning rate at which nothing stays finite; the run stops with exit code 3.
    hopeless = ("training.learning_rate=1e300",)
    answer = submit(*hopeless)
    name = submission_id(answer)
    assert answer.returncode == 3, answer.stdout + answer.stderr
    assert "error: " in answer.stdout
    assert answer.stderr.splitlines()[-1] == f"{name}: failed with exit code 3; the same command makes the next attempt"
    followed = cluster.run("logs", name, "--follow")
    assert followed.returncode == 3
    assert "error: " in followed.stdout
    assert submit(*hopeless, "--no-wait").stdout == f"{name}-2\n"


def test_interrupting_the_command_leaves_the_job_running(
    submit: Submit, cluster: StartedCluster, folder: Path, tmp_path: Path
) -> None:
    runs_dir = tmp_path / "runs"
    arguments = ["train", "jobs/recipes/tiny/slime.toml", f"runs_dir={runs_dir}", *LONG, "training.seed=3"]
    command = subprocess.Popen(
        cluster.command("submit", *arguments, "--upload", "--address", cluster.address),
        cwd=folder,
        env=cluster.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    wait_for(lambda: last_step(runs_dir) >= 1)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=30)
    name = said.partition(":")[0]
    assert command.returncode == 130
    assert said.splitlines()[-1] == (
        f"{name} goes on; come back with `slime-ray logs {name} --follow`, end it with `slime-ray stop {name}`"
    )
    before = last_step(runs_dir)
    wait_for(lambda: last_step(runs_dir) > before)
    attached = submit(*LONG, "training.seed=3", "--no-wait")
    assert attached.stderr.startswith(f"{name}: running already, since ")
    assert cluster.run("stop", name).returncode == 0


def one_sentence(answer: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2 and one line on standard error, which has these parts."""
    assert (answer.returncode, answer.stdout) == (2, ""), answer
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_who_is_not_let_in_or_finds_nobody(cluster: StartedCluster, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("ab" * 32)
    tokens = ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH")
    one_sentence(cluster.run("jobs", environment={"RAY_AUTH_TOKEN_PATH": str(wrong)}), "refuses the token", *tokens)
    none = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": ""}
    one_sentence(cluster.run("jobs", environment=none), "asks for a token, and none was sent", *tokens)
    gone = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")}
    one_sentence(cluster.run("jobs", environment=gone), "RAY_AUTH_TOKEN_PATH")
    one_sentence(cluster.run("jobs", "--address", "http://127.0.0.1:9"), "http://127.0.0.1:9: no Ray cluster answers")
    one_sentence(cluster.run("jobs", "--address", "127.0.0.1:9"), "--address 127.0.0.1:9: expected the dashboard")
    one_sentence(cluster.run("logs", "train-nothing"), "train-nothing", "has no such job")


def test_a_training_that_is_not_let_in(cluster: StartedCluster, folder: Path, tmp_path: Path) -> None:
    gone = {"RAY_ADDRESS": cluster.gcs, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")}
    arguments = ("train", "jobs/recipes/tiny/slime.toml", ON_RAY, f"runs_dir={tmp_path / 'runs'}")
    answer = cluster.run(*arguments, folder=folder, environment=gone)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.splitlines()[-1].startswith(f"error: RAY_ADDRESS = '{cluster.gcs}': cannot be joined (")


def test_a_cluster_of_another_version(cluster: StartedCluster) -> None:
    version = {"version": "4", "ray_version": "2.9.3", "ray_commit": "", "session_name": ""}
    with json_server({"/api/version": lambda _: (200, version)}) as url:
        answer = cluster.run("jobs", "--address", url.removesuffix("/v1"))
    one_sentence(answer, "the cluster runs Ray 2.9.3, and this is Ray ", "ray==2.9.3")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], ["data.train = 'pairs.jsonl'", "model.name = 'tiny'", "on this machine alone", "--upload", "s3://"]),
        (["runs_dir=runs"], ["runs_dir = 'runs'", "removed with it", "s3://"]),
        (['data.train=["/nowhere/pairs.jsonl"]', "--upload"], ["/nowhere/pairs.jsonl", "neither on the cluster nor"]),
        (['data.train=["nowhere.jsonl"]', "--upload"], ["data.train = 'nowhere.jsonl'", "no such file here"]),
        (
            ["runs_dir=/proc/runs", "--upload"],
            ["runs_dir = '/proc/runs'", "cannot be written on the cluster's head node"],
        ),
    ],
    ids=["local", "relative runs", "nowhere", "nowhere here", "unwritable"],
)
def test_what_the_cluster_cannot_see_is_found_before_anything_is_submitted(
    cluster: StartedCluster, folder: Path, tmp_path: Path, overrides: Sequence[str], parts: Sequence[str]
) -> None:
    given = [f"runs_dir={tmp_path / 'runs'}", *overrides]
    before = ours(cluster)
    one_sentence(cluster.run("submit", "train", "jobs/recipes/tiny/slime.toml", *given, folder=folder), *parts)
    assert ours(cluster) == before
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def apart(cluster: StartedCluster) -> Path:
    """A folder that is another disk on each node than here."""
    if cluster.apart is None:
        pytest.skip("unshare --mount is not allowed here")
    return cluster.apart


def test_an_absolute_file_of_this_machine_alone(cluster: StartedCluster, folder: Path, apart: Path) -> None:
    shutil.copy(folder / "pairs.jsonl", apart / "pairs.jsonl")
    given = ["jobs/recipes/tiny/slime.toml", f"runs_dir={apart / 'runs'}", f'data.train=["{apart}/pairs.jsonl"]']
    answer = cluster.run("submit", "train", *given, "--upload", folder=folder)
    one_sentence(answer, "data.train = ", "on this machine, but not on the cluster", "by a relative path", "s3://")
    inside = ["mine.toml", f"runs_dir={apart / 'runs'}"]
    (apart / "mine.toml").write_text(f'model.name = "tiny"\ndata.train = ["{apart}/pairs.jsonl"]\n')
    one_sentence(cluster.run("submit", "train", *inside, folder=apart), "name it as pairs.jsonl and send it along with")


def test_a_runs_folder_that_nodes_do_not_share(submit: Submit, apart: Path) -> None:
    answer = submit(ON_RAY, place=apart / "runs")
    assert answer.returncode == 2
    said = answer.stdout.splitlines()[-1]
    assert said.startswith(f"error: runs_dir = '{apart / 'runs'}': worker ")
    assert said.endswith("expected a folder that all nodes share, or a URL such as s3://bucket/runs")


def test_a_study_is_a_job(cluster: StartedCluster, write_study: WriteStudy, tmp_path: Path) -> None:
    write_study("trials = 2")
    answer = cluster.run("submit", "tune", "study.toml", folder=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.match(r"tune-study-[0-9a-f]{8}: submitted\n", answer.stderr)
    best = tmp_path / "studies" / "study" / "best.toml"
    assert str(best) in answer.stdout.splitlines()
    assert {trial.state for trial in read_trials(best.parent)} == {"finished"}


def test_an_evaluation_is_a_job(cluster: StartedCluster, tmp_path: Path) -> None:
    write_rows(tmp_path / "questions.jsonl", question_rows())
    turns = [{"index": 0, "turns": ["It is small.", "And blue."]}]
    answers = [
        {"question_id": n, "answer_id": str(n), "model_id": "a", "choices": turns, "tstamp": 0} for n in (1, 2, 3)
    ]
    write_rows(tmp_path / "answers.jsonl", answers)
    (tmp_path / "night.toml").write_text('questions.path = "questions.jsonl"\n[models.a]\nanswers = "answers.jsonl"\n')
    place = f"evaluations_dir={tmp_path / 'evaluations'}"
    answer = cluster.run("submit", "evaluate", "night.toml", place, "--upload", folder=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    report = json.loads((tmp_path / "evaluations" / "night" / "report.json").read_text())
    assert [(model["name"], model["overall"]["judged"]) for model in report["models"]] == [("a", 6)]


@pytest.mark.slow
def test_a_pipeline_is_a_job(cluster: StartedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(write_model(tmp_path / "model"))
    engine = {"cpus": 0.5, "kv_cache_gb": 0.2, "max_model_len": 256}
    served = {f"models.slime.{key}": value for key, value in engine.items()}
    change("serve", **{"models.base.source": None, "models.sft.source": None}, **served)
    others = {"models.base.base_url": None, "models.sft.base_url": None, "judge.baseline": None}
    change("evaluate", **others, **{"models.slime.max_tokens": 16})
    change("pipeline", certify_pairs=4)
    places = [f"{stage}.runs_dir={tmp_path / 'runs'}" for stage in ("train", "serve")]
    overrides = [*places, f"evaluate.evaluations_dir={tmp_path / 'evaluations'}"]
    answer = cluster.run("submit", "pipeline", "recipes/pipeline.toml", *overrides, "--upload", timeout_s=500)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    report = json.loads((tmp_path / "evaluations" / "evaluate" / "report.json").read_text())
    assert {model["name"]: model["overall"]["judged"] for model in report["models"]} == {"slime": 6}
    (certificate,) = (tmp_path / "runs").glob("slime-*/certificate.json")
    assert json.loads(certificate.read_text())["passed"] is True
