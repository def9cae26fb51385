"""The command as a user meets it: exit codes, one line for a mistake, nothing half-written."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fusion.cli import COMMANDS, main, mistake_of


def run_command(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fusion.cli", *arguments], capture_output=True, text=True, check=False, cwd=folder
    )


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_its_settings(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"dynfusion {name}" in capsys.readouterr().out


def vit_of(settings: str) -> list[str]:
    encoder = "{_target_: fusion.encoders.vit.VitViewEncoder, backbone: resnet18" + settings + "}"
    return ["summary", "model=tiny", "~model.cameras.encoder", f"+model.cameras.encoder={encoder}"]


TOKENS = ", method: {_target_: fusion.encoders.vit_tokens.ToMe, merged: 4}"

MISTAKES = {
    "unknown command": (["trian"], "expected one of the commands"),
    "unknown config key": (["train", "modle=tiny"], "modle"),
    "unknown nested key": (["train", "data.rot=/data"], "rot"),
    "unknown group choice": (["train", "model=huge"], "huge"),
    "wrong root": (["train", "data.root=/no/such/folder"], "/no/such/folder"),
    "run that does not exist": (["evaluate", "run=/no/such/run"], "/no/such/run"),
    "resume of nothing": (["train", "resume=/no/such/run"], "/no/such/run"),
    "report of nothing": (["report", "run=/no/such/run"], "/no/such/run"),
    "setting without a value": (["evaluate", "run"], "key=value"),
    "budget that is no number": (["evaluate", "run=.", "budget=lots"], "budget"),
    "key that a class does not take": (["summary", "model=tiny", "+model.cameras.colour=red"], "colour"),
    "key that a class needs": (vit_of(""), "expected all keys that the configured class needs"),
    "tokens of a convolutional backbone": (
        vit_of(", channels: 48, num_depths: 40" + TOKENS),
        "expected a Vision Transformer of timm",
    ),
    "exit after a stage that is not there": (
        ["summary", "model=tiny_adaptive", "model.exits.exits.1.after=7"],
        "expected exits after stages 0 to 0 of 2",
    ),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_exit_code_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr().err.strip()
    assert expected in printed
    assert len(printed.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "a mistake must leave nothing behind"


INTERRUPTED = {
    "robustness": "the same command goes on where it stopped",
    "synth": "the same command goes on where it stopped",
    "train": "dynfusion train resume=RUN goes on",
    "budgets": "the same command starts from the beginning",
    "evaluate": "the same command starts from the beginning",
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interruption_says_what_is_left(name, capsys, monkeypatch):
    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"fusion.commands.{name}"), "run", stopped)
    assert main([name]) == 130
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"dynfusion {name}: interrupted; {INTERRUPTED[name]}")
    assert len(printed.splitlines()) == 1
    # Who claims to go on says so in the help, too.
    goes_on = "goes on" in INTERRUPTED[name]
    assert ("goes on" in COMMANDS[name] + (importlib.import_module(f"fusion.commands.{name}").__doc__)) >= goes_on


def test_no_traceback_from_a_real_process(tmp_path):
    done = run_command("train", "data.root=/no/such/folder", folder=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_worker_s_mistake_is_unwrapped():
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    assert mistake_of(ValueError(text + "ValueError: expected rows of 20 bytes in a.bin")) == (
        "expected rows of 20 bytes in a.bin"
    )


def test_a_defect_keeps_its_traceback():
    assert mistake_of(ZeroDivisionError("ours")) is None
