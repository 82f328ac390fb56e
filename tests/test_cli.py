"""The command itself: messages and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wisp import __version__, cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["wisp", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`wisp --version` says which one."""
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"wisp {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edge", "--server", "somewhere"], "server must be HOST:PORT, not 'somewhere'"),
        (["edge", "--server", "a:70000"], "server must be HOST:PORT, not 'a:70000'"),
        (["edge", "--server", "a:1", "--port", "70000"], "port must be in 0..65535, not 70000"),
        (["serve", "model", "--idle-timeout", "0"], "idle_timeout must be positive, not 0.0"),
        (["serve", "model", "--host", "nowhere.invalid", "--insecure"], "cannot listen on nowhere.invalid:7600"),
        (["edge", "--server", "a:1", "--draft-tokens", "-1"], "max_draft_tokens must not be negative, not -1"),
        (["serve", "model", "--dtype", "int3"], "dtype must be one of auto, float32, bfloat16, float16, not 'int3'"),
        (["serve", "model", "--kv-gib", "0"], "kv_gib must be positive, not 0.0"),
        (["serve", "model", "--max-context", "-5"], "max_context must be positive, not -5"),
        (["serve", "no/such/folder/or/model"], "no/such/folder/or/model"),
    ],
)
def test_wrong_options_end_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """The caller's faults: exit code 2, what was wrong, no traceback."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(monkeypatch, *arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A light installation says what to install for a heavy command."""

    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(name="uvicorn")

    monkeypatch.setattr(cli, "app", fail)
    assert run(monkeypatch, "edge", "--server", "a:1") == 2
    errors = capsys.readouterr().err
    assert "needs the package 'uvicorn'" in errors
    assert "'.[edge]'" in errors


def test_a_command_line_changes_a_scenario(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What it gives, though it be the option's default, and nothing else; the last line is the result."""
    path = tmp_path / "scenario.toml"
    path.write_text(
        "[run]\nsystem = 'fixed'\ncapacity = true\nwarmup = 0\nduration = 2\n[devices]\ndevices = 5\n[sessions]\noutput-tokens = 4"
    )
    found = []
    for changes in ((), ("--devices", "100")):
        assert run(monkeypatch, "simulate", str(path), "--json", "--no-capacity", *changes) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert [list(one["systems"]) for one in found] == [["fixed"]] * 2
    assert [one["devices"] for one in found] == [5, 100]
