"""docker/kuberay: what Kubernetes and Ray say of it, and what it promises; no cluster has run it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from slime_ray.overrides import load_evaluation, load_recipe, load_serving
from slime_ray.pipeline import recipes as pipelines
from slime_ray.search import loading as studies
from slime_ray.search.space import Space
from slime_ray.serving.gateway.keys import add_key
from tests.deploy.commands import JOBS, job, laid_out
from tests.deploy.dockerfile import VARIABLES
from tests.deploy.manifests import KUBERAY, OVERLAYS, ROOT, Manifest, build, built, containers_in

VERSION = "1.37"
# What of Ray's kinds is used, by the names that KubeRay 1.7 defines. Its definitions are too large to be kept here.
CLUSTER = {
    *("rayVersion", "authOptions", "gcsFaultToleranceOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
    *("headGroupSpec", "workerGroupSpecs"),
}
FIELDS = {
    "RayJob": {
        *("submissionMode", "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        "rayClusterSpec",
    },
    "RayService": {"serveConfigV2", "rayClusterConfig"},
    "authOptions": {"mode", "secretName"},
    "gcsFaultToleranceOptions": {"redisAddress", "redisPassword"},
    "autoscalerOptions": {"idleTimeoutSeconds", "resources", "securityContext"},
    "headGroupSpec": {"serviceType", "rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
SECRETS = {"ray-token", "redis", "api-keys", "environment"}


def named(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


ALL = [(overlay, manifest) for overlay in OVERLAYS for manifest in built(overlay)]
every_manifest = pytest.mark.parametrize(("overlay", "manifest"), ALL, ids=[f"{o}-{named(m)}" for o, m in ALL])
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def cluster_of(manifest: Manifest) -> Manifest | None:
    """The Ray cluster that a manifest describes."""
    spec = manifest.get("spec", {})
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig")


def templates(manifest: Manifest) -> Iterator[Manifest]:
    """The pod templates of a manifest, Ray's or Kubernetes' own."""
    cluster = cluster_of(manifest)
    if cluster is not None:
        yield from (group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]))
    elif "template" in manifest.get("spec", {}):
        yield manifest["spec"]["template"]


def of_kind(overlay: str, kind: str) -> list[Manifest]:
    return [manifest for manifest in built(overlay) if manifest["kind"] == kind]


@every_manifest
def test_kubernetes_own_schema_has_it(overlay: str, manifest: Manifest) -> None:
    if cluster_of(manifest) is None:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    for template in templates(manifest):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": template}
        kubernetes_validate.validate(wrapped, VERSION, strict=True)


@every_manifest
def test_fields_of_ray_s_kinds_are_kuberay_s(overlay: str, manifest: Manifest) -> None:
    cluster = cluster_of(manifest)
    if cluster is None:
        assert not manifest["apiVersion"].startswith("ray.io")
        return
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["spec"].keys() <= FIELDS[manifest["kind"]]
    assert cluster.keys() <= CLUSTER
    for section in cluster.keys() & FIELDS.keys():
        entries = cluster[section] if isinstance(cluster[section], list) else [cluster[section]]
        assert all(entry.keys() <= FIELDS[section] for entry in entries), section
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
@every_overlay
def test_kustomize_makes_the_same(overlay: str) -> None:
    made = subprocess.run(
        ["kubectl", "kustomize", KUBERAY / "overlays" / overlay], capture_output=True, text=True, check=True, timeout=60
    )
    by_name = {named(manifest): manifest for manifest in yaml.safe_load_all(made.stdout)}
    assert by_name == {named(manifest): manifest for manifest in built(overlay)}


def test_every_file_is_part_of_an_overlay() -> None:
    used: set[Path] = set()

    def walk(folder: Path) -> None:
        wanted = yaml.safe_load((folder / "kustomization.yaml").read_text())
        used.add(folder / "kustomization.yaml")
        for name in wanted["resources"]:
            path = (folder / name).resolve()
            walk(path) if path.is_dir() else used.add(path)
        used.update(folder / patch["path"] for patch in wanted.get("patches", []) if "path" in patch)
        for entry in wanted.get("configMapGenerator", []):
            used.update(folder / name for name in (*entry.get("envs", []), *entry.get("files", [])))

    for overlay in OVERLAYS:
        walk(KUBERAY / "overlays" / overlay)
    assert used == {path for path in KUBERAY.rglob("*") if path.is_file()}


@every_manifest
def test_pods_are_locked_up(overlay: str, manifest: Manifest) -> None:
    """More than the Pod Security Standard `restricted`, which the namespace enforces."""
    for template in templates(manifest):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert not any("hostPath" in volume for volume in pod.get("volumes", []))
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["limits"].keys() & resources["requests"].keys()
            assert not any("hostPort" in port for port in container.get("ports", []))
    options = (cluster_of(manifest) or {}).get("autoscalerOptions")
    if options is not None:
        assert options["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert options["securityContext"]["allowPrivilegeEscalation"] is False


@every_manifest
def test_only_who_asks_kubernetes_has_its_token(overlay: str, manifest: Manifest) -> None:
    for template in templates(manifest):
        names = [container["name"] for container in template["spec"]["containers"]]
        asks = names == ["ray-head"]  # the autoscaler stands beside it
        assert template["spec"].get("automountServiceAccountToken") is (None if asks else False)


@every_overlay
def test_no_service_is_open_to_the_outside_and_all_traffic_is_named(overlay: str) -> None:
    assert {manifest["spec"].get("type", "ClusterIP") for manifest in of_kind(overlay, "Service")} == {"ClusterIP"}
    for manifest in (*of_kind(overlay, "RayJob"), *of_kind(overlay, "RayService")):
        cluster = cluster_of(manifest)
        assert cluster is not None
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(overlay, "NetworkPolicy")}
    assert policies["deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (namespace,) = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    # Ray's ports are for its own pods and the operator; whoever else comes in reaches the endpoint alone.
    for rule in policies["ray"]["ingress"]:
        (source,) = rule["from"]
        ports = {port["port"] for port in rule.get("ports", [])}
        match source:
            case {"podSelector": {"matchExpressions": [{"key": "ray.io/cluster"}]}, **others} if not others:
                assert ports == set()
            case {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}:
                assert ports == {8265, 8000}
            case _:
                assert ports == {8000}


@every_overlay
def test_what_is_referred_to_is_there(overlay: str) -> None:
    kinds = {kind: {m["metadata"]["name"]: m for m in of_kind(overlay, kind)} for kind in ("ConfigMap", "Service")}
    claims = {manifest["metadata"]["name"] for manifest in of_kind(overlay, "PersistentVolumeClaim")}
    text = json.dumps(built(overlay))
    for manifest in built(overlay):
        for template in templates(manifest):
            volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
            kept = {claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", [])}
            for container in template["spec"]["containers"]:
                mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
                assert mounted == volumes.keys() | kept
                for source in container.get("envFrom", []):
                    assert source.get("configMapRef", {"name": "values"})["name"] in kinds["ConfigMap"]
            for volume in volumes.values():
                assert volume.get("configMap", {"name": "recipes"})["name"] in kinds["ConfigMap"]
                assert volume.get("persistentVolumeClaim", {}).get("claimName") in (None, *claims)
    secrets = set(re.findall(r'"(?:secretKeyRef|secretRef|secret)": \{[^}]*"(?:name|secretName)": "([^"]+)"', text))
    assert secrets | set(re.findall(r'"mode": "token", "secretName": "([^"]+)"', text)) == SECRETS
    assert not of_kind(overlay, "Secret")  # nothing secret is in the repository: docs/cluster.md makes them
    (redis,) = of_kind(overlay, "StatefulSet")
    assert kinds["Service"]["redis"]["spec"]["selector"] == redis["spec"]["template"]["metadata"]["labels"]


def test_the_document_makes_every_secret() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    made = set(re.findall(r"kubectl (?:-n \S+ )?create secret generic (\S+)", text))
    assert made == SECRETS


@every_overlay
def test_the_endpoint_is_what_ray_serve_deploys(overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve import chat  # loads vLLM

    (service,) = of_kind(overlay, "RayService")
    text = service["spec"]["serveConfigV2"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    # Ray passes over what it does not know.
    given: Any = yaml.safe_load(text)
    assert given.keys() <= ServeDeploySchema.model_fields.keys()
    assert given["http_options"].keys() <= type(config.http_options).model_fields.keys()
    (application,) = config.applications
    assert given["applications"][0].keys() <= type(application).model_fields.keys()
    assert (application.name, application.route_prefix) == ("slime-ray", "/")
    assert application.import_path == "serve.chat:build"
    place = laid_out(overlay, tmp_path)
    add_key(tmp_path / "keys.json", "alice")
    arguments = chat.Arguments.model_validate(json.loads(place.text(json.dumps(application.args))))
    recipe = load_serving(arguments.config, arguments.overrides)
    assert recipe.keys.file == "/run/secrets/slime-ray/keys.json"
    assert (recipe.host, recipe.port) == (config.http_options.host, config.http_options.port) == ("0.0.0.0", 8000)
    # Built without its models, which no cluster here has trained, and before there are nodes with room for them.
    monkeypatch.setattr(chat, "resolve", lambda recipe, say: [])
    built_ = chat.build(arguments.model_copy(update={"overrides": [f"keys.file={tmp_path / 'keys.json'}"]}))
    assert built_._bound_deployment.name == "Ingress"


@pytest.mark.parametrize("name", JOBS)
@every_overlay
def test_a_job_s_recipe_is_one(overlay: str, name: str, tmp_path: Path) -> None:
    place = laid_out(overlay, tmp_path)
    command = job(overlay, name, place)
    assert command.words[:3] == ["python", "-m", f"jobs.{name}"]
    assert (ROOT / "jobs" / f"{name}.py").is_file()
    recipe, overrides = Path(command.words[3]), command.words[4:]
    values = place.values
    match name:
        case "train":
            trained = load_recipe(recipe, overrides)
            assert trained.training.num_workers == (2, 8)
            assert trained.runs_dir == values["RUNS_DIR"]
            assert trained.training.use_gpu == (overlay == "gpu")
        case "tune":
            study, varied = studies.load(str(recipe), overrides)
            assert study.studies_dir == values["STUDIES_DIR"]
            assert varied.runs_dir == values["RUNS_DIR"]  # where it finds what it starts from
            Space.of(varied.model_dump(mode="json", exclude_unset=True), study.space, where=study.name)
        case "evaluate":
            asked = load_evaluation(recipe, overrides)
            assert asked.evaluations_dir == values["EVALUATIONS_DIR"]
            served = load_serving(place.app / "recipes" / "endpoint.toml")
            assert asked.models.keys() == served.models.keys()
            # KubeRay calls the service of the RayService NAME so.
            (service,) = of_kind(overlay, "RayService")
            url = f"http://{service['metadata']['name']}-serve-svc:8000/v1"
            assert {model.base_url for model in asked.models.values()} == {url}
        case "pipeline":
            _, stages, served, asked = pipelines.read(recipe, overrides)
            assert {each.runs_dir for each in (*stages, served)} == {values["RUNS_DIR"]}
            assert asked.evaluations_dir == values["EVALUATIONS_DIR"]
            assert asked.models.keys() <= served.models.keys()


@pytest.mark.parametrize("name", ["train", "tune", "pipeline"])
@every_overlay
def test_a_job_s_workers_have_room_for_what_it_begins_with(overlay: str, name: str, tmp_path: Path) -> None:
    (manifest,) = (m for m in of_kind(overlay, "RayJob") if m["metadata"]["name"] == f"slime-ray-{name}")
    cluster = cluster_of(manifest)
    assert cluster is not None
    recipe, overrides = (words := job(overlay, name, laid_out(overlay, tmp_path)).words)[3], words[4:]
    match name:
        case "train":
            trained = [load_recipe(recipe, overrides)]
        case "tune":
            trained = [studies.load(recipe, overrides)[1]]
        case _:
            trained = list(pipelines.read(Path(recipe), overrides)[1])
    (workers,) = cluster["workerGroupSpecs"]
    (container,) = containers_in(workers["template"])
    limits = container["resources"]["limits"]
    for settings in (each.training for each in trained):
        assert settings.fewest_workers == workers["minReplicas"] == workers["replicas"]
        if isinstance(settings.num_workers, tuple):
            assert settings.num_workers[1] == workers["maxReplicas"]
        assert int(limits["cpu"]) >= settings.cpus_per_worker
        assert int(limits.get("nvidia.com/gpu", 0)) >= settings.use_gpu * settings.gpus_per_worker


@every_manifest
def test_a_pod_that_ends_has_its_time(overlay: str, manifest: Manifest) -> None:
    if cluster_of(manifest) is None:
        return
    drains = int(VARIABLES["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    for template in templates(manifest):
        assert template["spec"]["terminationGracePeriodSeconds"] > drains + 30
        assert "lifecycle" not in json.dumps(template)  # a hook would spend the time before Ray hears of it


def test_a_patch_that_fits_nothing_is_found(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {key: x}}")

    def patched(operation: str, kind: str = "ConfigMap") -> list[Manifest]:
        patch = f'{{target: {{kind: {kind}}}, patch: "[{operation}]"}}'
        (tmp_path / "kustomization.yaml").write_text(f"{{resources: [map.yaml], patches: [{patch}]}}")
        return build(tmp_path)

    assert patched("{op: replace, path: /data/key, value: y}")[0]["data"] == {"key": "y"}
    for wrong in ("{op: replace, path: /data/other, value: y}", "{op: test, path: /data/key, value: z}"):
        with pytest.raises((KeyError, AssertionError)):
            patched(wrong)
    with pytest.raises(AssertionError, match="for no Secret"):
        patched("{op: replace, path: /data/key, value: y}", kind="Secret")
