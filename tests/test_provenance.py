"""Runs executed again, and packed for strangers; the crate is checked by a public validator."""

import json
import shutil
from pathlib import Path

import jsonschema
import nbformat
import pytest
import rocrate
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from ftnb.core import UserError
from ftnb.jobs import Store, make_job, run_job
from ftnb.papers import read_paper
from ftnb.provenance import (
    CODECHECK,
    differences,
    find_run,
    verify_run,
    without_times,
    write_codecheck,
    write_crate,
)

BODY = """from random import Random
from ftnb.runs import record
record(share=Random(seed).random(), cells=[{"score": n, "seconds": 1.5}], seeds=[seed])"""


def notebook(folder, body=BODY):
    tagged = new_code_cell('n = 1\nseed = 0\nset_name = ""', metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[tagged, new_code_cell(body)]), folder / "toy.ipynb")
    return folder / "toy.ipynb"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("provenance")
    toy, store = notebook(folder), Store(folder / "store")
    parameters = ({"n": 5, "set_name": "sst2"}, {"n": 6})
    return store, [run_job(make_job(toy, p), store)["key"] for p in parameters], toy


def test_the_same_run_is_identical_by_key_prefix_and_folder(finished):
    store, (key, _), _ = finished
    for name in (key, key[:8], store.path(key)):
        found = verify_run(name, store)
        assert found["identical"] and found["key"] == key and not found["changed"]


def test_seconds_are_no_difference():
    assert without_times({"a": [{"seconds": 1, "b": 2}]}) == {"a": [{"b": 2}]}


def test_differences_name_the_place_and_the_size():
    old = {"a": {"b": [1.0, 2.0]}, "c": "x", "d": 1}
    new = {"a": {"b": [1.0, 2.5]}, "c": "y", "d": 1.0}
    found = {d["path"]: d["relative"] for d in differences(old, new)}
    assert found == {"a.b[1]": 0.2, "c": None, "d": 0.0}
    assert differences([1], [1, 2])[0]["relative"] is None
    assert differences({}, {"z": 1})[0]["path"] == "z"
    assert differences({"a": float("nan")}, {"a": float("nan")}) == []
    assert differences({"a": float("nan")}, {"a": 1.0})[0]["relative"] is None
    assert differences({"a": None}, {})[0]["new"] == "(absent)"


def test_a_notebook_that_changed_is_run_as_it_was(finished, tmp_path):
    store, (key, _), _ = finished
    record = find_run(key, store)
    notebook_of_run = nbformat.read(Path(record["folder"]) / "toy.ipynb", 4)
    assert any("injected-parameters" in c.metadata.get("tags", []) for c in notebook_of_run.cells)
    found = verify_run(key, store)
    assert not found["todays"] and found["identical"], "the copy in the run is executed"


def test_a_forged_number_is_found(finished, tmp_path):
    store, (key, _), _ = finished
    copy = Store(tmp_path / "copy")
    shutil.copytree(store.path(key), copy.path(key))
    record = json.loads((copy.path(key) / "record.json").read_text())
    record["metrics"]["share"] += 1e-12
    (copy.path(key) / "record.json").write_text(json.dumps(record))
    found = verify_run(key, copy)
    assert not found["identical"] and [d["path"] for d in found["differences"]] == ["share"]
    assert 0 < found["differences"][0]["relative"] < 1e-10


@pytest.mark.parametrize("name", ["", "zz", "no/such/folder"])
def test_no_such_run(finished, name):
    with pytest.raises(UserError, match="no run"):
        verify_run(name, finished[0])


def test_ambiguous_and_corrupt(finished, tmp_path):
    copy = Store(tmp_path / "copy")
    for key in ("ab1", "ab2"):
        copy.path(key).mkdir()
        (copy.path(key) / "record.json").write_text("{")
    with pytest.raises(UserError, match="2 runs begin with 'ab'"):
        verify_run("ab", copy)
    with pytest.raises(UserError, match="cannot be read"):
        verify_run("ab1", copy)


def altered(finished, folder, change) -> tuple[Store, str]:
    "A copy of a run in a store of its own, with another record."
    store, (key, _), _ = finished
    copy = Store(folder / "copy")
    shutil.copytree(store.path(key), copy.path(key))
    path = copy.path(key) / "record.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return copy, key


@pytest.mark.parametrize("name", [
    "ingredients", "metrics", "notebook", "parameters", "size", "environment", "finished", "key",
])  # fmt: skip
def test_a_record_that_lacks_something_is_one_line(finished, tmp_path, name):
    copy, key = altered(finished, tmp_path, lambda r: {k: r[k] for k in r if k != name})
    for run in (key, copy.path(key)):
        with pytest.raises(UserError, match=f"is no run of a store.* {name}") as e:
            verify_run(run, copy)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", ["{", "{}", '{"cells": 1, "nbformat": 4}', None])
def test_a_kept_notebook_that_is_broken_is_one_line(finished, tmp_path, content):
    copy, key = altered(finished, tmp_path, dict)
    kept = copy.path(key) / "toy.ipynb"
    kept.unlink() if content is None else kept.write_text(content)
    with pytest.raises(UserError, match="kept in .* cannot be read") as e:
        verify_run(key, copy)
    assert "\n" not in str(e.value)


def test_a_strange_folder_is_refused_and_left_as_it_is(finished, tmp_path):
    (tmp_path / "strange").mkdir()
    with pytest.raises(UserError, match="no run"):
        verify_run(tmp_path / "strange", finished[0])
    with pytest.raises(UserError, match="no run"):
        verify_run(tmp_path / finished[1][0][:6], finished[0])
    assert [p.name for p in tmp_path.iterdir()] == ["strange"]


def test_a_run_that_fails_now_is_one_line(finished, tmp_path):
    copy, key = altered(finished, tmp_path, dict)
    notebook(copy.path(key), 'raise ValueError("first\\nsecond")')
    with pytest.raises(UserError, match="the run fails now: ValueError: first second"):
        verify_run(key, copy)


def test_ingredients_that_do_not_give_the_key_are_refused(finished, tmp_path):
    def change(record):
        return record | {"ingredients": record["ingredients"] | {"threads": "2"}}

    copy, key = altered(finished, tmp_path, change)
    with pytest.raises(UserError, match="its ingredients do not give its key"):
        verify_run(key, copy)


@pytest.mark.parametrize("name", ["../../toy.ipynb", "/tmp/toy.ipynb", "..", "toy.py", ""])
def test_a_notebook_outside_the_folder_is_refused(finished, tmp_path, name):
    copy, key = altered(finished, tmp_path, lambda r: r | {"notebook": name})
    with pytest.raises(UserError, match="is no name of a notebook"):
        verify_run(key, copy)


def issues(crate: Path, profile: str, monkeypatch) -> list[str]:
    "What the public validator finds; the JSON-LD context comes from the rocrate library."
    from rocrate_validator import services
    from rocrate_validator.models import Severity, ValidationSettings
    from rocrate_validator.utils.http import HttpRequester

    context = (Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld").read_text("utf-8")

    class Answer:
        status_code, ok, headers = 200, True, {"Content-Type": "application/ld+json"}
        text, content = context, context.encode()

        def json(self):
            return json.loads(context)

    def get(self, url, *_, **__):
        assert url == "https://w3id.org/ro/crate/1.1/context", f"asked the network for {url}"
        return Answer()

    monkeypatch.setattr(HttpRequester, "get", get, raising=False)
    result = services.validate(ValidationSettings(
        rocrate_uri=str(crate), profile_identifier=profile, skip_availability_check=True,
        requirement_severity=Severity.REQUIRED))  # fmt: skip
    return [f"{i.check.identifier}: {i.message}" for i in result.get_issues()]


@pytest.mark.parametrize("profile", ["ro-crate-1.1", "process-run-crate-0.5"])
def test_crates_pass_the_public_validator(finished, tmp_path, monkeypatch, profile):
    store, keys, _ = finished
    (tmp_path / "results.json").write_text("{}")
    records = [find_run(key, store) for key in keys]
    files = {"results.json": tmp_path / "results.json"}
    crate = write_crate(records, tmp_path / "crate", "A rerun", files)
    assert issues(crate, profile, monkeypatch) == []
    packed = json.loads((crate / "ro-crate-metadata.json").read_text())["@graph"]
    actions = [e for e in packed if e["@type"] == "CreateAction"]
    assert len(actions) == 2 and (crate / "results.json").is_file()
    (sst2,) = [e for e in packed if e.get("name") == "sst2"]
    assert "licen" in sst2["license"] and "sha256" in sst2["description"]
    assert not list(crate.rglob("*stsa*")), "data are named, not copied"
    assert all(a["startTime"] <= a["endTime"] and "agent" not in a for a in actions)
    root = next(e for e in packed if e["@id"] == "./")
    assert "author" not in root and root["license"] == "not stated", "nothing is made up"
    team = [e["@id"] for e in packed if e.get("name") == "The ftnb authors"]
    authors = [e["author"]["@id"] for e in packed if "author" in e]
    assert team and authors == team, "of ftnb itself only"
    assert sst2["identifier"] == records[0]["ingredients"]["data/sst2"]


def test_an_author_and_a_licence_that_are_given(finished, tmp_path, monkeypatch):
    store, keys, _ = finished
    licence = "https://spdx.org/licenses/CC-BY-4.0"
    crate = write_crate([find_run(keys[0], store)], tmp_path / "crate", author="A. Reader",
                        licence=licence)  # fmt: skip
    graph = json.loads((crate / "ro-crate-metadata.json").read_text())["@graph"]
    packed = {e["@id"]: e for e in graph}
    root = packed["./"]
    assert packed[root["author"]["@id"]]["name"] == "A. Reader"
    assert licence in json.dumps(root["license"])
    assert issues(crate, "process-run-crate-0.5", monkeypatch) == []


def test_sets_of_one_source_and_other_versions_stay_apart(finished, tmp_path, monkeypatch):
    store, keys, _ = finished
    first, second = (find_run(key, store) for key in keys)
    for name in ("sst2", "trec6"):  # one source
        second["ingredients"][f"data/{name}"] = "digest"
    second["environment"]["versions"]["numpy"] = "0.1"
    crate = write_crate([first, second], tmp_path / "new" / "crate")
    packed = json.loads((crate / "ro-crate-metadata.json").read_text())["@graph"]
    assert {e["name"] for e in packed if e["@id"].startswith("#data-")} == {"sst2", "trec6"}
    actions = {e["@id"]: e for e in packed if e["@type"] == "CreateAction"}
    assert len(actions[f"#run-{keys[1]}"]["object"]) == 2
    assert len({a["instrument"]["@id"] for a in actions.values()}) == 2
    assert issues(crate, "process-run-crate-0.5", monkeypatch) == []


def test_half_a_crate_is_never_left(finished, tmp_path, monkeypatch):
    from rocrate.rocrate import ROCrate

    copy, key = altered(finished, tmp_path, dict)
    record = find_run(key, copy)
    with monkeypatch.context() as m, pytest.raises(OSError):
        m.setattr(ROCrate, "write", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        write_crate([record], tmp_path / "crate")
    (copy.path(key) / "toy.ipynb").unlink()
    with pytest.raises(UserError, match="toy.ipynb is not there"):
        write_crate([record], tmp_path / "crate")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_the_validator_can_fail(finished, tmp_path, monkeypatch):
    store, keys, _ = finished
    crate = write_crate([find_run(keys[0], store)], tmp_path / "crate")
    path = crate / "ro-crate-metadata.json"
    broken = json.loads(path.read_text())
    for entity in broken["@graph"]:
        if entity["@type"] == "CreateAction":
            entity.pop("instrument")
    path.write_text(json.dumps(broken))
    assert issues(crate, "process-run-crate-0.5", monkeypatch)


def test_a_crate_overwrites_nothing(finished, tmp_path):
    store, keys, _ = finished
    with pytest.raises(UserError, match="is there already"):
        write_crate([find_run(keys[0], store)], tmp_path)
    with pytest.raises(UserError, match="no finished run"):
        write_crate([], tmp_path / "new")


def test_codecheck_follows_the_rules(tmp_path):
    with pytest.raises(UserError, match="no results.json"):
        write_codecheck(read_paper("wang2012"), tmp_path)
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "table-wang2012-t2.csv").write_text("")
    text = write_codecheck(read_paper("wang2012"), tmp_path).read_text("utf-8")
    assert text.startswith("---\n"), "the specification asks for an explicit document"
    found = yaml.safe_load(text)
    jsonschema.validate(found, CODECHECK)
    assert [m["file"] for m in found["manifest"]] == ["results.json", "table-wang2012-t2.csv"]
    assert [a["name"] for a in found["paper"]["authors"]] == ["Sida Wang", "Christopher D. Manning"]
    for key in ("version", "manifest", "codechecker"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in found.items() if k != key}, CODECHECK)
    for wrong in ({"codechecker": []}, {"codechecker": [{}]}, {"manifest": []}, {"report": ""},
                  {"manifest": [{"file": "/etc/x"}]}, {"paper": {"title": "x"}}):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(found | wrong, CODECHECK)
