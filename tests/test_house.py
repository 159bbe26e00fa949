"""The rules of the house: what every notebook and every module keeps to."""

import ast
import configparser
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from ftnb.runs import parameters_of

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").glob("*.ipynb"))
LESSONS = [p for p in NOTEBOOKS if p.name != "index.ipynb"]
CHECKS = re.compile(r"\bassert\b|\btest_\w+\(|\bassert_\w+\(|\bcheck_\w+\(|\battempt\(|\brejects\(")


def name(path):
    return path.stem


def code_cells(path):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def tagged(path, tag):
    return [c for c in code_cells(path) if tag in c.metadata.get("tags", [])]


def exported_module(path):
    "The module that a notebook exports, or None."
    for cell in code_cells(path):
        if found := re.search(r"^#\|\s*default_exp\s+(\w+)", cell.source, re.M):
            return found[1]
    return None


MODULES = {exported_module(p): p for p in LESSONS if exported_module(p)}


def functions(path):
    "Every function that a notebook exports, as syntax trees."
    exported = [c.source for c in code_cells(path) if re.search(r"^#\|\s*export\b", c.source, re.M)]
    trees = [ast.parse(source) for source in exported]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [n for tree in trees for n in ast.walk(tree) if isinstance(n, kinds)]


def body_lines(function):
    "Lines of a function's body, its docstring not counted."
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_exported_modules_are_in_sync_with_their_notebooks(tmp_path):
    "Export everything into another folder: the same bytes must come out."
    (tmp_path / "settings.ini").write_bytes((ROOT / "settings.ini").read_bytes())
    (tmp_path / "nbs").mkdir()
    for path in NOTEBOOKS:
        (tmp_path / "nbs" / path.name).write_bytes(path.read_bytes())
    export = [sys.executable, "-c", "from nbdev.export import nb_export; import sys\n"
              "for p in sys.argv[1:]: nb_export(p, lib_path='ftnb')"]
    subprocess.run(export + sorted(map(str, (tmp_path / "nbs").glob("[0-9]*.ipynb"))),
                   cwd=tmp_path, check=True, capture_output=True)
    for module in MODULES:
        again = (tmp_path / "ftnb" / f"{module}.py").read_text()
        present = (ROOT / "ftnb" / f"{module}.py").read_text()
        assert again == present, f"ftnb/{module}.py: run `make export`"


def test_no_module_without_a_notebook():
    present = {p.stem for p in (ROOT / "ftnb").glob("*.py")} - {"__init__", "_modidx"}
    assert present == set(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    "A module imports only modules of a smaller notebook number; siblings stay apart."
    numbers = {m: int(p.stem[:2]) for m, p in MODULES.items()}
    siblings = {"bow", "vectors", "chars"}
    tree = ast.parse((ROOT / "ftnb" / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:  # nbdev writes `from .core import x`
            used = [node.module] if node.module else [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "ftnb":
            used = [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            used = [a.name.split(".")[1] for a in node.names if a.name.startswith("ftnb.")]
        else:
            continue
        for other in used:
            assert numbers[other] < numbers[module], f"{module} imports {other}, which comes later"
            assert not {module, other} <= siblings, f"the siblings {module} and {other} stay apart"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_alone(module):
    "In a fresh process, without the development tools and without transformers."
    code = f"import sys, ftnb.{module}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    loaded = {m.partition(".")[0] for m in ran.stdout.split()}
    assert not loaded & {"nbdev", "fastcore", "jupytext", "pytest", "transformers"}


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_one_parameters_cell_of_literals(path):
    cells = tagged(path, "parameters")
    assert len(cells) == 1, f"{len(cells)} cells tagged `parameters`"
    tree = ast.parse(cells[0].source)
    assert all(isinstance(n, ast.Assign) and len(n.targets) == 1 for n in tree.body)
    for node in tree.body:
        ast.literal_eval(node.value)
    lines = cells[0].source.splitlines()
    bare = [line for line in lines if re.match(r"\w+ = ", line) and "#" not in line]
    assert not bare, f"a parameter without its reason: {bare}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_no_star_imports(path):
    trees = [ast.parse(re.sub(r"^[%!].*", "", c.source, flags=re.M)) for c in code_cells(path)]
    imports = [n for t in trees for n in ast.walk(t) if isinstance(n, ast.ImportFrom)]
    assert not any(a.name == "*" for n in imports for a in n.names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_budgets(path):
    cells = code_cells(path)
    assert len(cells) <= 60, f"{len(cells)} code cells"
    longest = max(cells, key=lambda c: c.source.count("\n"))
    lines = longest.source.count("\n") + 1
    assert lines <= 40, f"a cell of {lines} lines: {longest.source[:80]}"
    outputs = len(json.dumps([c.outputs for c in cells], ensure_ascii=False).encode())
    assert outputs <= 150_000, f"{outputs:,} bytes of outputs"
    assert path.stat().st_size <= 500_000


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_a_quarter_of_the_cells_check_something(path):
    cells = code_cells(path)
    checking = sum(bool(CHECKS.search(c.source)) for c in cells)
    assert checking >= len(cells) / 4, f"{checking} of {len(cells)} code cells check something"


@pytest.mark.parametrize("path", list(MODULES.values()), ids=name)
def test_functions_are_short(path):
    for function in functions(path):
        assert body_lines(function) <= 40, f"{function.name} has {body_lines(function)} lines"


def test_the_median_function_is_short():
    lengths = [body_lines(f) for path in MODULES.values() for f in functions(path)]
    assert statistics.median(lengths) <= 6


@pytest.mark.parametrize("path", list(MODULES.values()), ids=name)
def test_public_functions_have_a_docstring(path):
    missing = [f.name for f in functions(path) if not f.name.startswith("_")
               and ast.get_docstring(f) is None and not _is_inner(path, f)]
    assert not missing


def _is_inner(path, function):
    "Defined inside another function or a class, where the outer docstring speaks for it."
    bodies = [node for cell in code_cells(path) for node in _parsed(cell).body]
    return function.name not in [n.name for n in bodies if isinstance(n, ast.FunctionDef)]


def _parsed(cell):
    return ast.parse(re.sub(r"^[%!].*", "", cell.source, flags=re.M))


SIZES = sorted((ROOT / "nbs" / "sizes").glob("*.yaml"))


@pytest.mark.parametrize("path", SIZES, ids=name)
def test_size_files_name_only_parameters_that_exist(path):
    notebook = ROOT / "nbs" / f"{path.name.split('.')[0]}.ipynb"
    values = yaml.safe_load(path.read_text())
    assert values and set(values) <= set(parameters_of(notebook))


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_anatomy(path):
    "Title, promise, what it costs; what is next and references at the end."
    cells = nbformat.read(path, 4).cells
    first, last = cells[0].source, cells[-1].source
    assert first.startswith("# ") and "\n> " in first
    assert all(word in first.lower() for word in ("you will learn", "you need", "it costs"))
    assert cells[-1].cell_type == "markdown"
    assert all(word in last.lower() for word in ("next", "reference"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_nothing_of_the_writer_s_machine(path):
    text = path.read_text("utf-8")
    assert not re.search(r"/(home|root|work|Users)/\w+", text), "an absolute path"


def test_pyproject_repeats_settings():
    "settings.ini is the source; pyproject.toml is what pip reads."
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini")
    settings = settings["DEFAULT"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == settings["requirements"].split()
    assert project["optional-dependencies"]["dev"] == settings["dev_requirements"].split()
    assert project["optional-dependencies"]["bench"] == settings["bench_requirements"].split()
    assert project["requires-python"] == ">=" + settings["min_python"]
    assert project["name"] == settings["lib_name"]
    assert project["description"] == settings["description"]


def test_the_lock_pins_every_requirement():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    assert pins["torch"] == "2.13.0" and pins["nbdev"] == "2.4.14"
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini")
    settings = settings["DEFAULT"]
    wanted = settings["requirements"].split() + settings["dev_requirements"].split()
    names = [re.split(r"[=<>;]", w)[0].lower() for w in wanted if ";" not in w]
    assert not [n for n in names if n not in pins]


def test_top_level_is_as_agreed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    if not tracked:
        pytest.skip("not a git checkout")
    top = {line.partition("/")[0] for line in tracked.split()}
    agreed = set(
        "settings.ini Makefile nbs ftnb data tests pyproject.toml requirements.lock README.md "
        "CONTRIBUTING.md CHANGELOG.md LICENSE .ci .github .gitignore .devcontainer".split()
    )
    assert top <= agreed, f"not agreed: {top - agreed}"
