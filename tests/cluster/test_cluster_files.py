"""The job files in experiments/cluster: what can be checked of them without the cluster that they are for."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from zipfile import ZipFile

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from elsa_ray.runtime import metrics

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


def test_the_runtime_environment_leaves_out_history_and_results(tmp_path: Path) -> None:
    """As Ray itself packs a working directory by it."""
    excludes = yaml.safe_load((FOLDER / "runtime_env.yaml").read_text())["excludes"]
    kept = {"elsa_ray/cli.py", "experiments/quickstart.yaml", "tests/runtime/runs.py", ".gitignore"}
    left_out = {
        ".git/objects/aa/bb",
        "runs/quickstart/summary.json",
        "experiments/runs/one/run.log",
        ".venv/bin/python",
    }
    folder = tmp_path / "work"
    for name in kept | left_out:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")
    create_package(str(folder), tmp_path / "package.zip", include_gitignore=False, excludes=excludes)
    with ZipFile(tmp_path / "package.zip") as package:
        assert {name for name in package.namelist() if not name.endswith("/")} == kept


def test_each_file_has_its_line_about_what_was_checked_of_it() -> None:
    rows = re.findall(r"^\| `([\w.-]+)` \| [^|]+ \| [^|]+ \|$", (FOLDER / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(rows) == sorted(path.name for path in FOLDER.iterdir() if path.name != "README.md")


class Series:
    """Stands for a series of Ray's, and keeps the tags that it may have."""

    made: ClassVar[dict[str, set[str]]] = {}

    def __init__(self, name: str, description: str, boundaries: Any = None, tag_keys: tuple[str, ...] = ()) -> None:
        self.made[name] = set(tag_keys)

    def set_default_tags(self, tags: dict[str, str]) -> None:
        pass

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        pass


@pytest.fixture
def tags_of_series(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics, kind, Series)
    monkeypatch.setattr(Series, "made", {})
    metrics.RunMetrics("run")
    metrics.WorkerMetrics("run", "pool")
    return Series.made


def test_no_series_has_a_tag_of_many_values(tags_of_series: dict[str, set[str]]) -> None:
    few = {"outcome", "role", "phase", "kind", "what", "place", "tier", "stage"}
    for name, tags in tags_of_series.items():
        assert "run" in tags and tags <= few | {"run"} and len(tags) <= 3, name


def queries(found: Any) -> Iterator[str]:
    """Yield what a dashboard asks Prometheus."""
    if isinstance(found, dict):
        own = [found[key] for key in ("expr", "query") if isinstance(found.get(key), str)]
        yield from (text for text in own if text != "prometheus")
        for value in found.values():
            yield from queries(value)
    elif isinstance(found, list):
        for value in found:
            yield from queries(value)


@pytest.mark.parametrize("dashboard", sorted((ROOT / "dashboards").glob("*.json")), ids=lambda path: path.stem)
def test_each_query_asks_for_series_and_tags_that_there_are(
    dashboard: Path, tags_of_series: dict[str, set[str]]
) -> None:
    asked = list(queries(json.loads(dashboard.read_text())))
    assert len(asked) > 10
    for query in asked:
        selectors = re.findall(r"(\w+)\{([^}]*)\}", query) + re.findall(r"label_values\((\w+), ()", query)
        assert selectors, query
        tags: set[str] = {"le"} if "histogram_quantile" in query else set()
        for name, labels in selectors:
            own = re.fullmatch(r"ray_(elsa_\w+?)(?:_total|_bucket|_sum|_count)?", name)
            assert own and own[1] in tags_of_series, name
            tags |= tags_of_series[own[1]]
            assert set(re.findall(r"(\w+)=", labels)) <= tags_of_series[own[1]], query
        assert {tag for by in re.findall(r"by \(([^)]*)\)", query) for tag in by.split(", ")} <= tags, query


@pytest.mark.parametrize("dashboard", sorted((ROOT / "dashboards").glob("*.json")), ids=lambda path: path.stem)
def test_a_dashboard_asks_only_for_series_that_a_run_has(dashboard: Path) -> None:
    """By the names in the source; the slow test asks a live port."""
    source = (ROOT / "elsa_ray" / "runtime" / "metrics.py").read_text()
    asked = set(re.findall(r"ray_(elsa_[a-z_]+?)(?:_total|_bucket|_sum|_count)?\b", dashboard.read_text()))
    assert asked == set(re.findall(r'"(elsa_[a-z_]+)"', source))
