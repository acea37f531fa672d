"""The built wheel works from any folder, topologies included."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=250)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run_installed(installed: Path, folder: Path, *arguments: str) -> str:
    """Run the wheel's own code, far from the repository."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    program = (
        "import sys, elsa_ray; assert elsa_ray.__file__.startswith(sys.argv[1]), elsa_ray.__file__;"
        "from elsa_ray.cli import run_command; sys.exit(run_command(sys.argv[2:]))"
    )
    command = [sys.executable, "-c", program, str(installed), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_packaged_topologies_are_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert "metro" in run_installed(installed, tmp_path, "topology", "list")
    assert "nothing found" in run_installed(installed, tmp_path, "topology", "check", "metro")


def test_a_plan_on_a_packaged_topology_writes_its_report(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"word {i} red,{'ab'[i % 2]}\n" for i in range(60)))
    (tmp_path / "plan.yaml").write_text(
        "task: {dataset: {train: data.csv}, model: tiny, max_length: 8}\ntopology: {name: metro}\n"
        "protocol: {name: elsa, rounds: 1, local_steps: 1}\n"
    )
    run_installed(installed, tmp_path, "plan", "plan.yaml", "--out", "out")
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
