"""A run folder holds whole files, one process, and nothing of a stranger's is ever replaced."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from irl import command, runs
from irl.config import InputError


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock")


def _finished(folder: Path, **options: object) -> Path:
    with runs.start_run(folder, **options):
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text("w")
        runs.write_json(folder / "metrics.json", {})
    return folder


# --- files and folders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "expected"), [("γ = 0.95\n", "γ = 0.95\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path, content, expected):
    path = tmp_path / "file"
    path.write_text("old")
    runs.atomic_write(path, content)
    assert path.read_bytes() == expected
    assert _names(tmp_path) == ["file"]


def test_atomic_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(runs.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        runs.atomic_write(path, "new")
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file"]


def test_a_written_file_is_as_readable_as_any_other(tmp_path):
    runs.atomic_write(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_atomic_folder_appears_whole(tmp_path):
    with runs.atomic_folder(tmp_path / "a" / "model") as folder:
        (folder / "one").write_text("1")
        assert not (tmp_path / "a" / "model").exists()
    assert (tmp_path / "a" / "model" / "one").read_text() == "1"
    assert _names(tmp_path / "a") == ["model"]


def test_atomic_folder_clears_what_a_dead_process_left_of_it(tmp_path):
    left, others = tmp_path / f".model.{'0a' * 16}.tmp", tmp_path / f".other.{'0a' * 16}.tmp"
    left.mkdir(), others.mkdir()
    with runs.atomic_folder(tmp_path / "model") as folder:
        (folder / "one").write_text("1")
    assert _names(tmp_path) == [others.name, "model"]


def test_a_run_that_goes_on_clears_what_was_being_written(tmp_path):
    with pytest.raises(RuntimeError), runs.start_run(tmp_path):
        raise RuntimeError
    (tmp_path / "steps").mkdir()
    for name in (f".config.yaml.{'0a' * 16}.tmp", f"steps/.a.json.{'0a' * 16}.tmp", ".notes.tmp"):
        (tmp_path / name).touch()
    with runs.start_run(tmp_path, resume=True):
        assert _names(tmp_path) == [".notes.tmp", "provenance.json", "steps"] and not _names(tmp_path / "steps")


def test_a_users_error_before_the_first_step_leaves_no_folder(tmp_path):
    with pytest.raises(InputError), runs.start_run(tmp_path / "run"):
        raise InputError("no such thing")
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "begun"):
        with pytest.raises(InputError), runs.start_run(folder):
            (folder / "steps").mkdir()
            (folder / "steps" / "policy.json").touch() if folder.name == "begun" else None
            raise InputError("no such thing")
        assert folder.exists()  # was there before, or has something to go on from


def test_atomic_folder_that_fails_keeps_the_old_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(RuntimeError), runs.atomic_folder(tmp_path / "model", replace=True) as folder:
        (folder / "new").write_text("new")
        raise RuntimeError
    assert _names(tmp_path) == ["model"]
    assert _names(tmp_path / "model") == ["old"]


def test_atomic_folder_puts_the_old_one_back_if_the_new_cannot_take_its_name(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    rename = runs.os.rename

    def fails_once(source, target):
        if (Path(source) / "new").exists():
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(runs.os, "rename", fails_once)
    with pytest.raises(OSError, match="no"), runs.atomic_folder(tmp_path / "model", replace=True) as folder:
        (folder / "new").touch()
    assert _names(tmp_path) == ["model"]
    assert _names(tmp_path / "model") == ["old"]


def test_atomic_folder_replaces_only_when_told(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(InputError, match="already exists"), runs.atomic_folder(tmp_path / "model"):
        pass
    with runs.atomic_folder(tmp_path / "model", replace=True) as folder:
        (folder / "new").write_text("new")
    assert _names(tmp_path / "model") == ["new"]
    assert _names(tmp_path) == ["model"]


def test_json_round_trip_and_its_refusals(tmp_path):
    path = tmp_path / "x.json"
    content = {"γ": 0.95, "list": [1, None, "a"], "deep": {"yes": True}}
    runs.write_json(path, content)
    assert runs.read_json(path) == content
    with pytest.raises(ValueError, match="JSON"):
        runs.write_json(path, {"x": math.nan})
    assert runs.read_json(path) == content
    path.write_text('{"cut')
    with pytest.raises(InputError, match="not valid JSON"):
        runs.read_json(path)
    with pytest.raises(InputError, match="no such file"):
        runs.read_json(tmp_path / "none.json")


# --- fingerprints ------------------------------------------------------------------------------------------------


def test_fingerprint_follows_content_not_names(tmp_path):
    for name, content in [("a", "same"), ("b", "same"), ("c", "other")]:
        (tmp_path / name).write_text(content)
    a, b, c = (runs.fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c
    assert runs.fingerprint(tmp_path / "a", tmp_path / "c") != runs.fingerprint(tmp_path / "c", tmp_path / "a")
    assert runs.fingerprint("same") != a
    assert runs.fingerprint("ab", "c") != runs.fingerprint("a", "bc")
    with pytest.raises(InputError, match="none: cannot be read"):
        runs.fingerprint(tmp_path / "none")


def test_fingerprint_of_a_tensor_sees_values_shape_and_type_only():
    x = torch.arange(6.0).reshape(2, 3)
    assert runs.fingerprint(x) == runs.fingerprint(x.T.contiguous().T)  # the same values, strided otherwise
    assert runs.fingerprint(x.flatten()[::2]) == runs.fingerprint(torch.tensor([0.0, 2.0, 4.0]))
    different = [x.reshape(3, 2), x + 1, x.double(), x.int(), torch.tensor(1.0), torch.empty(0), x > 2]
    assert len({runs.fingerprint(each) for each in [x, *different]}) == 8
    assert runs.fingerprint(x.bfloat16()) != runs.fingerprint(x.half())


# --- starting, resuming, overwriting -----------------------------------------------------------------------------


def test_a_new_run_is_marked_at_once_and_complete_only_at_the_end(tmp_path):
    folder = tmp_path / "deep" / "run"
    with runs.start_run(folder, about={"seed": 3}) as given:
        assert given == folder
        assert runs.read_json(folder / "provenance.json")["about"] == {"seed": 3}
        assert not runs.is_complete(folder)
        with pytest.raises(InputError, match=r"not finished.*--resume"):
            runs.complete_run(folder)
        runs.write_json(folder / "metrics.json", {})
    assert runs.is_complete(folder)
    assert runs.complete_run(folder) == folder


def test_complete_run_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="no such run folder"):
        runs.complete_run(tmp_path / "none")
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="not a run"):
        runs.complete_run(tmp_path)


def test_a_finished_run_is_replaced_only_with_overwrite(tmp_path):
    folder = _finished(tmp_path / "run")
    for options in [{}, {"resume": True}]:
        with (
            pytest.raises(InputError, match=r"finished run is already here.*--overwrite"),
            runs.start_run(folder, **options),
        ):
            pass
        assert _names(folder) == ["metrics.json", "model", "provenance.json"]
    with runs.start_run(folder, overwrite=True):
        assert _names(folder) == ["provenance.json"]


def test_overwrite_removes_links_but_not_what_they_point_to(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("p")
    folder = _finished(tmp_path / "run")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    with runs.start_run(folder, overwrite=True):
        assert _names(folder) == ["provenance.json"]
    assert (tmp_path / "elsewhere" / "precious").exists()


@pytest.mark.parametrize("strangers", ["thesis.docx", "config.yaml", "metrics.json", "provenance.json", ".git"])
@pytest.mark.parametrize("option", ["overwrite", "resume", None])
def test_a_folder_that_is_not_a_run_is_never_touched(tmp_path, strangers, option):
    (tmp_path / strangers).write_text('{"software": "another", "kind": "run"}')
    with pytest.raises(InputError, match="not a run"), runs.start_run(tmp_path, **({option: True} if option else {})):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [strangers]


def test_a_scenario_does_not_replace_a_run(tmp_path):
    folder = _finished(tmp_path / "run")
    with pytest.raises(InputError, match="not a scenario"), runs.start_run(folder, overwrite=True, kind="scenario"):
        pass
    assert runs.is_complete(folder)
    with runs.start_run(folder / "scenarios" / "dearer", kind="scenario"):
        pass
    with (
        pytest.raises(InputError, match="an unfinished scenario is already here; give --resume"),
        runs.start_run(folder / "scenarios" / "dearer", kind="scenario"),
    ):
        pass


def test_an_unfinished_run_is_resumed_as_it_was(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError), runs.start_run(folder, about={"seed": 0, "levels": (1, 2)}):
        (folder / "half").write_text("h")
        raise RuntimeError
    with pytest.raises(InputError, match="--resume to continue it"), runs.start_run(folder):
        pass
    with (
        pytest.raises(InputError, match=r"has changed \(seed\)"),
        runs.start_run(folder, resume=True, about={"seed": 1, "levels": (1, 2)}),
    ):
        pass
    with runs.start_run(folder, resume=True, about={"seed": 0, "levels": (1, 2)}):
        assert (folder / "half").read_text() == "h"
        assert len(runs.read_json(folder / "provenance.json")["resumed"]) == 1
    with runs.start_run(folder, overwrite=True):
        assert not (folder / "half").exists()


def test_resume_begins_a_run_that_was_not_begun(tmp_path):
    (tmp_path / ".provenance.json.123.tmp").write_text("cut short")
    (tmp_path / ".lock").touch()
    with runs.start_run(tmp_path, resume=True):
        assert "resumed" not in runs.read_json(tmp_path / "provenance.json")


def test_overwrite_and_resume_together_are_refused(tmp_path):
    with pytest.raises(InputError, match="contradict"), runs.start_run(tmp_path, overwrite=True, resume=True):
        pass


def test_a_file_in_the_way_is_a_users_error(tmp_path):
    (tmp_path / "file").touch()
    for path in [tmp_path / "file", tmp_path / "file" / "run"]:
        with pytest.raises(InputError, match="in the way"), runs.start_run(path):
            pass


# --- the lock ----------------------------------------------------------------------------------------------------

HOLD = """
import sys
from irl.runs import start_run
with start_run(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_per_run_folder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with (
                pytest.raises(InputError, match=f"in use by process {other.pid} on"),
                runs.start_run(tmp_path, overwrite=True),
            ):
                pass
            assert _names(tmp_path) == ["provenance.json"]
        finally:
            other.kill()  # a process that dies holds nothing
    with runs.start_run(tmp_path, overwrite=True):
        pass


# --- provenance and errors ---------------------------------------------------------------------------------------


def test_provenance_names_versions_and_machine():
    found = runs.provenance()
    assert found.versions["torch"] == torch.__version__
    assert set(found.versions) == {"python", "anchor-irl", "torch", "lightning", "numpy", "pandas"}
    assert found.device and found.platform and found.time.endswith("+00:00")
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("__import__('irl.config').config.InputError('no such column\\n  twice')", 2, "error: no such column\n  twice"),
        ("KeyboardInterrupt", 130, "interrupted"),
        (
            "OSError(28, 'No space left on device', '/x')",
            2,
            "error: /x: No space left on device; make room there, and run it again (--resume, where there is, goes on)",
        ),
        (
            "FloatingPointError('policy: no number')",
            2,
            "error: the training diverged: policy: no number. The steps before are kept; with other options, give "
            "--overwrite",
        ),
    ],
)
def test_users_errors_end_a_script_without_a_traceback(error, code, message):
    script = f"from irl.command import user_errors\nwith user_errors():\n    raise {error}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr.strip(), result.stdout) == (code, message, "")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), command.user_errors():
        _ = 1 / 0
