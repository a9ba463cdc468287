"""A stage on Ray Train's workers gives what it gives in-process, and fails with the same one sentence."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.util import placement_group_table
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM, AutoTokenizer

from slime_ray import cli
from slime_ray.config.recipe import SETTINGS_VERSION, Recipe
from slime_ray.data.batching import Mixture, global_batch
from slime_ray.errors import Interrupted
from slime_ray.overrides import load_recipe
from slime_ray.runs import Run
from slime_ray.storage import file_hash, json_hash
from slime_ray.training.fit import train
from slime_ray.training.stage import resolve
from tests.faults.harness import wait_until

pytestmark = pytest.mark.usefixtures("ray_cluster")

WriteRecipe = Callable[..., Path]
ON_RAY = "training.num_workers=2"
STEPS = 6


@dataclass(frozen=True)
class Pair:
    """A recipe's run with two Ray workers and the same in-process; `folder` is where the recipe is trained from."""

    folder: Path
    recipe: Path
    on_ray: Run
    here: Run


@pytest.fixture(scope="module")
def pair(
    ray_cluster: None,
    tiny_model: Path,
    held_out_file: Path,
    preference_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    """DPO with LoRA: adapters, evaluation, and a batch of which one worker gets a pair more than the other.

    The recipe is trained from its folder with paths that are relative to it; the cluster was started elsewhere.
    """
    folder = tmp_path_factory.mktemp("pair")
    recipe = folder / "jobs" / "recipes" / "tiny" / "dpo.toml"
    recipe.parent.mkdir(parents=True)
    shutil.copytree(tiny_model, folder / "tiny")
    (folder / "tiny" / "chat_template.jinja").rename(folder / "chat.jinja")
    shutil.copy(preference_file, folder / "pairs.jsonl")
    shutil.copy(held_out_file, folder / "held_out.jsonl")
    recipe.write_text(
        """
        model = { name = "tiny", chat_template = "chat.jinja", dtype = "float64" }
        data = { train = ["pairs.jsonl"], eval = ["held_out.jsonl"], max_length = 96 }
        loss = { kind = "dpo" }
        lora = { r = 4, alpha = 8, modules_to_save = ["lm_head"] }
        training = { learning_rate = 1e-2, pairs_per_step = 7, eval_every = 4, num_workers = 0 }
        """,
        encoding="utf-8",
    )
    with contextlib.chdir(folder):
        settings = load_recipe(recipe, [ON_RAY])
        unfinished = resolve(settings).run
        unfinished.folder.mkdir(parents=True)
        unfinished.log({"step": 1, "loss": 1e9})
        (unfinished.final / "adapter").mkdir(parents=True)
        (unfinished.final / "adapter" / "left_over.safetensors").write_bytes(b"half")
        return Pair(folder, recipe, on_ray=train(settings), here=train(load_recipe(recipe, ["runs_dir=elsewhere"])))


def test_two_workers_give_the_weights_of_none(pair: Pair, tiny_model: Path) -> None:
    assert pair.on_ray.name == pair.here.name
    actual, expected = (load_file(run.final / "model.safetensors") for run in (pair.on_ray, pair.here))
    start = load_file(tiny_model / "model.safetensors")
    assert actual.keys() == expected.keys() == start.keys()
    for name, weight in expected.items():
        assert weight.dtype == torch.float64
        assert (actual[name] - weight).abs().max().item() <= 1e-6, name
    moved = {name: (weight - start[name]).abs().max().item() for name, weight in expected.items()}
    trained = [name for name in moved if name == "lm_head.weight" or name.endswith("proj.weight")]
    assert min(moved[name] for name in trained) > 1e-3
    assert max(moved[name] for name in moved.keys() - set(trained)) == 0


def test_two_workers_give_the_metrics_of_none(pair: Pair) -> None:
    lines, expected = pair.on_ray.metrics(), pair.here.metrics()
    # Before the first step, every 4 steps and after the last.
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 4, STEPS]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    timings = {"tokens_per_second", "pairs_per_second"}
    for line, other in zip(lines, expected, strict=True):
        values = {name: value for name, value in other.items() if name not in timings}
        assert line.keys() == other.keys()
        assert {name: line[name] for name in values} == pytest.approx(values, rel=1e-6, abs=1e-6)
        assert all(line[name] > 0 for name in timings & line.keys())
    first, last = lines[0], lines[-1]
    assert first["eval_loss"] == pytest.approx(math.log(2))
    assert first["eval_rewards/margins"] == 0
    assert last["eval_loss"] != first["eval_loss"]
    trained = [line for line in lines if "loss" in line]
    assert [line["epoch"] for line in trained] == [step / STEPS for step in range(1, STEPS + 1)]
    assert [line["learning_rate"] for line in trained] == pytest.approx([1e-2 * left / 6 for left in range(6, 0, -1)])
    tokens = [line["num_tokens"] for line in trained]
    assert tokens == sorted(tokens)


def test_a_finished_run_is_all_there(pair: Pair) -> None:
    run = pair.on_ray
    found = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    elsewhere = ("final/", "checkpoints/", "lease/", "tensorboard/")
    assert {path for path in found if not path.startswith(elsewhere)} == {
        "config.json",
        "events.jsonl",
        "lineage.json",
        "manifest.json",
        "metrics.jsonl",
        "metrics.png",
        "suspects.jsonl",
    }
    # At step 4, whose evaluation was the best so far, and after the last step.
    assert {Path(path).parts[1] for path in found if path.startswith("checkpoints/")} == {
        "step-00000004",
        "step-00000006",
    }
    assert {
        "final/README.md",
        "final/chat_template.jinja",
        "final/config.json",
        "final/generation_config.json",
        "final/model.safetensors",
        "final/tokenizer.json",
        "final/adapter/adapter_config.json",
        "final/adapter/adapter_model.safetensors",
    } <= found
    assert not any("left_over" in path for path in found)

    manifest = run.manifest()
    assert manifest is not None
    assert (manifest.name, manifest.recipe, manifest.parent) == (run.name, "tiny/dpo", None)
    assert run.name == f"tiny/dpo-{manifest.hash[:8]}"
    assert manifest.files == {
        path.removeprefix("final/"): {
            "size": (run.folder / path).stat().st_size,
            "sha256": file_hash(run.folder / path),
        }
        for path in found
        if path.startswith("final/")
    }
    assert manifest.metrics["step"] == STEPS
    assert manifest.metrics["eval_loss"] == run.metrics()[-1]["eval_loss"]

    recipe = Recipe.model_validate_json((run.folder / "config.json").read_bytes())
    assert recipe == load_recipe(pair.recipe, [ON_RAY])
    settings = {"version": SETTINGS_VERSION, "settings": recipe.result_settings()}
    assert manifest.hash == json_hash(settings | {"data": manifest.data, "model": manifest.model})

    stop = AutoTokenizer.from_pretrained(run.final).convert_tokens_to_ids("<|end|>")
    generation = json.loads((run.final / "generation_config.json").read_text())
    assert stop in generation["eos_token_id"]
    assert (run.final / "chat_template.jinja").read_text() == (pair.folder / "chat.jinja").read_text()
    card = (run.final / "README.md").read_text()
    for part in ("**dpo**", "pairs.jsonl", "| tiny |", "41 rows", "rewards/margins", '"pairs_per_step": 7'):
        assert part in card
    model: Any = AutoModelForCausalLM.from_pretrained(run.final)
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_gauges_show_a_run_while_it_is_trained(write_recipe: WriteRecipe, held_out_file: Path) -> None:
    settings = {"data.eval": [str(held_out_file)], "training.max_steps": 150, "training.tokens_per_micro_batch": 1}
    recipe = load_recipe(write_recipe(settings), [ON_RAY])
    node = ray.nodes()[0]
    endpoint = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    name = resolve(recipe).run.name
    shown: dict[str, float] = {}
    with ThreadPoolExecutor() as pool:
        trained = pool.submit(train, recipe)
        while not trained.done() and not shown.get("step"):
            time.sleep(0.3)
            text = urllib.request.urlopen(endpoint, timeout=10).read().decode()
            found = re.findall(r"^ray_slime_ray_(\w+)\{(.*)\} (\S+)$", text, flags=re.MULTILINE)
            shown = {gauge: float(value) for gauge, tags, value in found if f'run="{name}"' in tags}
        run = trained.result()
    assert shown.keys() == {"step", "loss", "tokens_per_second", "mean_logps_chosen", "eval_mean_logps_chosen"}
    assert shown["eval_mean_logps_chosen"] == run.metrics()[0]["eval_mean_logps/chosen"]
    # The gauges are read one after another: two of them may be of neighbouring steps.
    steps = {line["loss"]: line["step"] for line in run.metrics() if "loss" in line}
    assert abs(steps[shown["loss"]] - shown["step"]) <= 1


def test_the_same_command_again_returns_the_run_without_ray(pair: Pair) -> None:
    before = {path: path.stat().st_mtime_ns for path in pair.on_ray.folder.rglob("*")}
    # In a process of its own, where nothing is loaded yet.
    code = (
        "import sys\nfrom slime_ray.cli import main\n"
        "try:\n    main()\nfinally:\n    assert not {'ray', 'torch'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", code, "train", str(pair.recipe), ON_RAY]
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=pair.folder)
    assert (again.returncode, again.stdout, again.stderr) == (0, f"{pair.on_ray.folder}\n", "")
    assert {path: path.stat().st_mtime_ns for path in pair.on_ray.folder.rglob("*")} == before


@dataclass(frozen=True)
class Answer:
    """What a command ended with; `lines` are those on standard error."""

    code: int
    out: str
    lines: list[str]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Call `slime-ray train` in this process, which is connected to the cluster."""

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["slime-ray", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capfd.readouterr()
        assert isinstance(end.value.code, int)
        return Answer(end.value.code, printed.out, printed.err.splitlines())

    return call


def test_a_mistake_found_inside_a_worker_comes_back_as_it_is_in_process(
    command: Callable[..., Answer], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe = write_recipe({"lora.target_modules": ["c_attn"]})
    here, on_ray = command(recipe), command(recipe, ON_RAY)
    assert here.code == on_ray.code == 2
    assert here.out == on_ray.out == ""
    assert on_ray.lines[-1] == here.lines[-1]
    assert on_ray.lines[-1].startswith("error: lora.target_modules = ['c_attn'] match no module; this model has ")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".cache"]
    # Neither a traceback nor a word about a second attempt.
    told = "\n".join(on_ray.lines)
    assert "Traceback" not in told
    assert "etry" not in told


@pytest.fixture
def nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that cannot be placed waits for ever; starting one is a failure at once."""

    def fit(_: Any) -> None:
        pytest.fail("a trainer was started")

    monkeypatch.setattr("ray.train.torch.TorchTrainer.fit", fit)


@pytest.mark.usefixtures("nothing_is_started")
def test_more_workers_than_the_cluster_has_cpus(
    command: Callable[..., Answer], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    started = time.monotonic()
    for overrides, message in [
        (["training.num_workers=5"], "training.num_workers = 5 with 1 CPU each (training.cpus_per_worker) need 5 CPU"),
        (
            ["training.num_workers=2", "training.cpus_per_worker=3"],
            "training.num_workers = 2 with 3 CPU each (training.cpus_per_worker) need 6 CPU",
        ),
    ]:
        answer = command(write_recipe(), *overrides)
        rest = ", but the Ray cluster has 4; lower training.num_workers or add nodes"
        assert (answer.code, answer.out, answer.lines[-1]) == (2, "", f"error: {message}{rest}")
    assert time.monotonic() - started < 20
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".cache"]


def test_a_run_that_waits_for_room_says_so_and_hears_a_stop(
    write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    @ray.remote(num_cpus=3)
    class Another:
        """What holds the cluster."""

        def here(self) -> None:
            """Nothing."""

    another: Any = Another.remote()
    ray.get(another.here.remote())
    recipe = load_recipe(write_recipe(), [ON_RAY])

    def stop_when_it_waits() -> None:
        wait_until(lambda: any(group["state"] == "PENDING" for group in placement_group_table().values()), timeout_s=60)
        os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor() as pool:
        stopping = pool.submit(stop_when_it_waits)
        with pytest.raises(Interrupted, match="stopped before its first checkpoint; the same command begins again"):
            train(recipe)
        stopping.result()
    said = capsys.readouterr().err
    assert "the Ray cluster has no room for training.num_workers = 2 with {'CPU': 1} each just now; waiting" in said
    run = resolve(recipe).run
    assert not run.folder.exists()
    # What Ray was asked for comes late, finds no run and ends.
    ray.kill(another)
    wait_until(lambda: ray.available_resources().get("CPU") == 4 and not started(), timeout_s=90)
    assert not run.folder.exists()


def started() -> bool:
    """Whether Ray has room reserved, or is asked for it."""
    return any(group["state"] != "REMOVED" for group in placement_group_table().values())


def test_without_a_cluster_at_hand_one_is_started(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [Path(sys.executable).with_name("slime-ray"), "train", write_recipe(), "training.num_workers=9999"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    steps, line = ended.stderr.splitlines()
    assert steps.endswith(": 3 steps")
    # Of its own, not the one of 4 CPUs that runs on this machine.
    assert "need 9999 CPU, but the Ray cluster has " in line
    assert "but the Ray cluster has 4;" not in line or os.cpu_count() == 4
    assert (ended.returncode, ended.stdout) == (2, "")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".cache"]


@pytest.mark.usefixtures("nothing_is_started")
def test_a_gpu_that_the_cluster_does_not_have(command: Callable[..., Answer], write_recipe: WriteRecipe) -> None:
    import ray

    if ray.cluster_resources().get("GPU"):
        pytest.skip("this cluster has GPUs")
    answer = command(write_recipe(), ON_RAY, "training.use_gpu=true")
    message = "training.num_workers = 2 with 1 GPU each (training.use_gpu) need 2 GPU, but the Ray cluster has 0"
    assert answer.code == 2
    assert answer.lines[-1].startswith(f"error: {message}")


def poisoned(model: Path, folder: Path, word: str) -> Path:
    """The model with an embedding that is not a number for one character's token."""
    for path in model.iterdir():
        (folder / path.name).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    (token,) = AutoTokenizer.from_pretrained(model)(word, add_special_tokens=False)["input_ids"]
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_pair(
    command: Callable[..., Answer], write_recipe: WriteRecipe, tmp_path: Path, tiny_model: Path, workers: int
) -> None:
    rows = [{"prompt": f"p{number}", "chosen": "yes " * number, "rejected": "no"} for number in range(1, 17)]
    bad = 11
    rows[bad - 1]["chosen"] = "~ yes"  # no other row has this character
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = poisoned(tiny_model, tmp_path / "poisoned", "~")
    recipe = write_recipe({"data.train": [str(data)], "model.name": str(model), "training.max_steps": 4})
    settings = load_recipe(recipe)
    batches = [global_batch(Mixture((16,), None), settings.training, step=step) for step in (0, 1)]
    step = next(number for number, rows in enumerate(batches, start=1) if bad - 1 in rows)
    taken: list[None] = []
    hook = register_optimizer_step_post_hook(lambda *_: taken.append(None))
    answer = command(recipe, f"training.num_workers={workers}")
    hook.remove()
    assert answer.code == 3
    assert answer.out == ""
    assert answer.lines[-1] == (
        f"error: step {step}: the loss or its gradient is not finite and was not applied; 1 of its 8 pairs are not "
        f"finite: {data}:{bad}. Look at these pairs, or lower training.learning_rate if the weights have run away"
    )
    assert len(taken) == (step - 1 if workers == 0 else 0)
    run = resolve(settings).run
    assert [line["step"] for line in run.metrics()] == list(range(1, step))
    assert run.manifest() is None
    assert not run.final.exists()
