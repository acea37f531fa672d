"""The job files in experiments/cluster: what can be checked of them without the cluster that they are for."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "cluster"


def test_ray_accepts_the_cluster_of_ray_up() -> None:
    config = yaml.safe_load((FOLDER / "ray-up.yaml").read_text())
    validate_config(config)
    prepared = prepare_config(config)
    assert prepared["max_workers"] == len(config["provider"]["worker_ips"])
    assert {"**/.git", "**/runs"} <= set(config["rsync_exclude"])


def test_the_kuberay_job_is_whole() -> None:
    job = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert cluster["rayVersion"] == pinned
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        # KubeRay hands these to the shell as they are: Ray must get JSON in quotes.
        assert json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        spec = group["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert job["spec"]["entrypoint"].startswith("elsa-ray run /opt/elsa-ray/experiments/quickstart.yaml --address auto")


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", FOLDER / "slurm.sh"], check=True)
    without = subprocess.run(["bash", FOLDER / "slurm.sh"], capture_output=True, text=True)
    assert without.returncode == 2 and without.stderr.startswith("usage: sbatch")


def test_the_image_copies_what_there_is() -> None:
    lines = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    instructions = {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}
    assert instructions <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "CMD"}
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)


def test_the_runtime_environment_leaves_out_history_and_results() -> None:
    environment = yaml.safe_load((FOLDER / "runtime_env.yaml").read_text())
    assert {".git", "runs"} <= {name.strip("/") for name in environment["excludes"]}


@pytest.mark.parametrize("dashboard", sorted((ROOT / "dashboards").glob("*.json")), ids=lambda path: path.stem)
def test_a_dashboard_asks_only_for_series_that_a_run_has(dashboard: Path) -> None:
    """By the names in the source; the slow test asks a live port."""
    source = (ROOT / "elsa_ray" / "runtime" / "metrics.py").read_text()
    asked = set(re.findall(r"ray_(elsa_[a-z_]+?)(?:_total|_bucket|_sum|_count)?\b", dashboard.read_text()))
    assert asked == set(re.findall(r'"(elsa_[a-z_]+)"', source))
