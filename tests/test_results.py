import json
import math
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from reprolib.book import results


@dataclass(frozen=True)
class Point:
    x: float
    y: tuple[int, ...]


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    table = pd.DataFrame({"mse": [1e-7, math.inf, 0.1 + 0.2], "label": [1, 2, 3], "name": ["a", "ü", None]})
    payload = {
        "n": np.int64(3),
        "x": np.float32(0.5),
        "list": torch.tensor([1.0, 2.0]),
        "point": Point(-math.inf, (1, 2)),
        "table": table,
        "nothing": None,
    }
    results.save(tmp_path / "deep" / "record.json", payload)
    loaded = results.load(tmp_path / "deep" / "record.json")
    assert loaded["n"] == 3 and loaded["x"] == 0.5 and loaded["list"] == [1.0, 2.0] and loaded["nothing"] is None
    assert loaded["point"] == {"x": -math.inf, "y": [1, 2]}
    pd.testing.assert_frame_equal(loaded["table"], table)


def test_the_file_is_strict_json_and_the_same_for_the_same_payload(tmp_path):
    for name in ("a.json", "b.json"):
        results.save(tmp_path / name, {"mse": float("nan"), "note": "≤"})
    text = (tmp_path / "a.json").read_text()
    assert text == (tmp_path / "b.json").read_text()

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse)["schema"] == results.SCHEMA
    assert math.isnan(results.load(tmp_path / "a.json")["mse"])


def test_a_value_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="cannot hold a object"):
        results.save(tmp_path / "a.json", {"x": object()})
    with pytest.raises(TypeError, match="must be strings"):
        results.save(tmp_path / "a.json", {"x": {1: 2}})
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_in_half_says_what_to_do(tmp_path):
    path = tmp_path / "dlg.json"
    results.save(path, {"x": list(range(100))})
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"dlg\.json is not complete JSON.*run the chapter again"):
            results.load(path)


def test_a_changed_number_is_noticed(tmp_path):
    path = tmp_path / "dlg.json"
    results.save(path, {"success": 0.25})
    path.write_text(path.read_text().replace("0.25", "0.95"))
    with pytest.raises(ValueError, match="checksum does not fit.*run the chapter again"):
        results.load(path)


def test_other_json_and_other_schemas_are_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="no record of reprolib"):
        results.load(path)
    path.write_text('{"schema": 1, "sha256": "", "payload": NaN}')
    with pytest.raises(ValueError, match="holds what no record holds .*run the chapter again"):
        results.load(path)
    for payload in ({"x": {"$table": {}}}, {"x": {"$float": "much"}}, {"$table": {"columns": ["a"], "values": []}}):
        path.write_text(json.dumps({"schema": 1, "sha256": results._checksum(payload), "payload": payload}))
        with pytest.raises(ValueError, match="a.json is of another form: a table or a number in it is none"):
            results.load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="a.json is no record of reprolib: it is nested too deeply or too long"):
        results.load(path)
    path.write_text('{"schema": 99, "sha256": "", "payload": {}}')
    with pytest.raises(ValueError, match="schema 99.*reads schema 1"):
        results.load(path)
    with pytest.raises(FileNotFoundError):
        results.load(tmp_path / "absent.json")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, step):
    path = tmp_path / "dlg.json"
    results.save(path, {"x": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        results.save(path, {"x": 2})
    monkeypatch.undo()
    assert results.load(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["dlg.json"]


def test_provenance_names_versions_and_no_path():
    record = results.provenance("cpu", seed=7, data={"photos": "abc"}, seconds=5.04)
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["seed"] == 7 and record["data"] == {"photos": "abc"} and record["seconds"] == 5.0
    assert record["device"].startswith("cpu: ") and record["threads"] >= 1
    text = json.dumps(record)
    assert str(Path.home()) + "/" not in text and str(Path.cwd()) not in text and os.uname().nodename not in text


def test_a_log_of_what_was_verified_is_no_change_of_code(monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *arguments], cwd=tmp_path, check=True)

    log = tmp_path / "results" / "reference" / "dlg" / "verified.json"
    code = tmp_path / "reprolib" / "one.py"
    for path in (log, code):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    monkeypatch.setattr(results.clone, "PACKAGE", tmp_path / "reprolib")
    found = []
    for path in (log, code):
        path.write_text("2")
        results.commit.cache_clear()
        found.append(results.commit())
    results.commit.cache_clear()
    assert found[0].isalnum() and found[1] == f"{found[0]}+changes"


def test_without_git_there_is_no_commit(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    results.commit.cache_clear()
    assert results.provenance()["commit"] is None
    results.commit.cache_clear()


def test_a_processor_is_named_with_what_decides_how_its_sums_are_rounded(monkeypatch):
    lines = ["processor: 0", "cpu family : 25", "model\t: 1", "model name : AMD EPYC", "", "processor: 1", "model : 7"]
    told = "\n".join(lines)
    monkeypatch.setattr(Path, "read_text", lambda path: told)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert results.device_name("cpu") == "cpu: AMD EPYC, family 25, model 1, AVX512"
