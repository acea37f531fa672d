"""What the package offers, and what it takes to get it."""

import subprocess
import sys

import pytest

import elsa_ray


def test_the_public_names_are_these() -> None:
    errors = ["InputError", "StorageError", "WorkerError"]
    functions = ["compare", "network", "plan", "resume", "run"]
    assert elsa_ray.__all__ == sorted([*errors, "Run", *functions])
    for name in elsa_ray.__all__:
        assert getattr(elsa_ray, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'rum'"):
        _ = elsa_ray.rum


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["schema"], ["topology", "list"], ["topology", "check", "metro"]],
)
def test_light_commands_load_neither_torch_nor_ray(arguments: list[str]) -> None:
    program = (
        "import sys; from elsa_ray.cli import run_command; code = run_command(sys.argv[1:]);"
        "heavy = {'torch', 'ray', 'transformers', 'peft'} & set(sys.modules); sys.exit(code or (9 if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout
