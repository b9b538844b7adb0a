"""The command line's promises that need no stack."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from onecopy.cli.main import COMMANDS, load

HEAVY = {
    "torch",
    "vllm",
    "boto3",
    "botocore",
    "troposphere",
    "lightkube",
    "obstore",
    "pydantic",
    "huggingface_hub",
    "numpy",
}


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "onecopy", *args], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['onecopy', '--help']\n"
        "from onecopy.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: onecopy" in result.stdout
    assert not HEAVY & {name.partition(".")[0] for name in result.stderr.split()}


def test_version_as_json() -> None:
    result = run("version", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["version"]


def test_unknown_command_is_a_usage_error_that_names_the_nearest() -> None:
    result = run("staus")
    assert result.returncode == 2
    assert "'status'" in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    command = load(name, COMMANDS[name])
    context = command.make_context(f"onecopy {name}", [], resilient_parsing=True)
    assert f"Usage: onecopy {name}" in command.get_help(context)


def test_errors_as_json() -> None:
    result = run("config", "show", "--json", "--config", "/nowhere/onecopy.toml")
    assert result.returncode == 1
    error = json.loads(result.stderr)["error"]
    assert error["type"] == "ConfigError"
    assert "/nowhere/onecopy.toml" in error["message"]
    assert error["hint"]
