"""The files of cluster/: their form, and that they agree with each other, the config and constraints.txt.

No cluster is at hand here: what Kubernetes, AWS and Docker make of them is not tested.
"""

import importlib.util
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rgtg import config_file
from rgtg.config_section import SANDBOX

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
EXAMPLES = sorted((CLUSTER / "examples").glob("*.yaml"))
FILES = [*sorted(CLUSTER.glob("*.yaml")), *EXAMPLES]
NIGHT = "2026-01-31"
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from mappings(child)


@pytest.fixture
def rayjob() -> dict[str, Any]:
    [job] = yaml.safe_load_all((CLUSTER / "kuberay-job.yaml").read_text().replace("NIGHT", NIGHT))
    return job


@pytest.fixture
def cronjob() -> dict[str, Any]:
    [found] = [d for d in documents(CLUSTER / "kuberay-nightly.yaml") if d["kind"] == "CronJob"]
    return found


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid_configs(path):
    settings = config_file.load(path, [f"run.id={NIGHT}"])
    assert settings.run.id == NIGHT
    here = path.name in ("laptop.yaml", "methods.yaml")
    assert (settings.models.language == SANDBOX) == (path.name == "methods.yaml")
    # `auto` would look at the head, which has no GPU.
    assert settings.models.device == ("auto" if here else "cuda")


def test_the_rayjob_runs_the_nightly_job_and_can_grow_to_what_the_example_asks_for(rayjob):
    spec = rayjob["spec"]["rayClusterSpec"]
    command = shlex.split(rayjob["spec"]["entrypoint"])
    assert command[:4] == ["python", "-m", "pipelines.nightly", "--config"]
    assert importlib.util.find_spec(command[2])
    settings = config_file.load(CLUSTER / "examples" / "real-models.yaml", command[5:])
    assert settings.run.id == NIGHT

    head = spec["headGroupSpec"]
    mounts = [mount["mountPath"] for mount in head["template"]["spec"]["containers"][0]["volumeMounts"]]
    assert os.path.dirname(command[4]) in mounts
    assert head["rayStartParams"]["num-cpus"] == "0"
    cpu, gpu = spec["workerGroupSpecs"]
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in (cpu, gpu)]
    assert cpu["minReplicas"] * int(limits[0]["cpu"]) >= 2
    assert gpu["minReplicas"] == 0
    assert gpu["maxReplicas"] * limits[1]["nvidia.com/gpu"] >= max(
        settings.generate.max_actors, settings.train_reward.num_workers
    )


def test_one_ray_version_and_one_image_everywhere(rayjob, cronjob):
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{RAY}-py311-gpu\n" in dockerfile
    assert f"ray.__version__ == '{RAY}'" in dockerfile
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == RAY
    used = [m["image"] for m in mappings([rayjob, cronjob, documents(CLUSTER / "aws.yaml")]) if "image" in m]
    assert len(used) == 5
    assert set(used) == set(re.findall(r"-t (\S+) \.$", dockerfile, re.MULTILINE))
    assert used[0].endswith(f"-ray{RAY}")


def test_the_dockerfile_copies_what_is_there_and_may_be_seen():
    visible = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copies = re.findall(r"^COPY --chown=\S+ (.+)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for copy in copies for source in copy.split()[:-1]}
    assert sources == visible
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_aws_follows_the_schema_of_rays_launcher():
    package = Path(importlib.util.find_spec("ray").origin).parent
    [cluster] = documents(CLUSTER / "aws.yaml")
    jsonschema.validate(cluster, json.loads((package / "autoscaler" / "ray-schema.json").read_text()))
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in types[cluster["head_node_type"]]["node_config"]
    assert all("IamInstanceProfile" in kind["node_config"] for kind in types.values())


@pytest.mark.parametrize("path", [*FILES, CLUSTER / "Dockerfile", CLUSTER / "README.md"], ids=lambda path: path.name)
def test_no_secret_lies_in_the_open(path):
    assert not re.search(r"AKIA[0-9A-Z]{16}|\bhf_\w{20}|-----BEGIN|://[^/\s]+:[^/\s]+@", path.read_text())
    secret = re.compile(r"secret|token|passw|credential|access_?key|private_?key", re.IGNORECASE)
    if path.suffix == ".yaml":
        for mapping in mappings(documents(path)):
            pairs = dict(mapping)
            if {"name", "value"} <= set(mapping):
                pairs[mapping["name"]] = mapping["value"]
            # A path names a file, and not what is in it.
            found = [k for k, v in pairs.items() if secret.search(k) and isinstance(v, str) and "/" not in k]
            assert found == []


@pytest.mark.parametrize(
    ("status", "created", "code"),
    [
        ("Complete SUCCEEDED", True, 0),
        ("Complete SUCCEEDED", False, 0),  # somebody has created it before
        ("Complete STOPPED", True, 1),
        ("Failed FAILED AppFailed", True, 1),
        ("ValidationFailed", True, 1),
        ("", False, 1),  # neither created nor there
    ],
)
def test_the_cronjob_creates_the_night_once_and_ends_as_it_ends(tmp_path, cronjob, status, created, code):
    [container] = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    [script] = container["args"]
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        "#!/bin/bash\n"
        f'if [ "$1" = create ]; then cat > {tmp_path}/created.yaml; exit {0 if created else 1}; fi\n'
        f"echo '{status}'; {'true' if status else 'false'}\n"
    )
    kubectl.chmod(0o755)
    result = subprocess.run(
        [*container["command"], script.replace("/job/", f"{CLUSTER}/")],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == code, result.stderr
    [job] = documents(tmp_path / "created.yaml")
    assert re.fullmatch(r"rgtg-\d{4}-\d\d-\d\d", job["metadata"]["name"])
    assert job["spec"]["entrypoint"].endswith(f"run.id={job['metadata']['name'].removeprefix('rgtg-')}")
