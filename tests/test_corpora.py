"Corpora: repeatable to the byte, safe with two processes, clear about mistakes."

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest

from ftnb import corpora
from ftnb.core import UserError

# 300 calls, seed 0; changes only with the generator's words or rules
GOLDEN = "9077257687805f9e1f0a382eeea09e19e0fcf92bac3f2c768576eff5acba47a2"


def digest(rows):
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path))
    return tmp_path / "docstrings"


@pytest.fixture
def one_library(tmp_path, monkeypatch):
    "A made-up library in place of networkx: quick to read, and we know what is in it."
    root = tmp_path / "lib" / "networkx"
    (root / "tests").mkdir(parents=True)
    long = " ".join(f"word{chr(97 + i)}" for i in range(20)).replace("word", "some")
    text = f'"""NetworkX says that {long}."""\n'
    twin = f'def f():\n    """NetworkX says that {long}!"""\n'
    other = "def g():\n    'Eight words or more are needed here, and eight words there are.'\n"
    (root / "__init__.py").write_text(text + twin + other)
    (root / "tests" / "test_a.py").write_text('"A test says many words that nobody should see."')
    (root / "broken.py").write_text("def broken(:")
    monkeypatch.setattr(corpora, "_root", lambda library: root)
    return root


def test_same_bytes_in_fresh_processes():
    code = (
        "import hashlib, json; from ftnb.corpora import hotline_rows; "
        "rows = json.dumps(hotline_rows(300), ensure_ascii=False).encode(); "
        "print(hashlib.sha256(rows).hexdigest())"
    )
    for salt in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": salt}
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert run.stdout.strip() == GOLDEN, run.stderr


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_span_and_relation_is_exact(seed):
    rows = corpora.hotline_rows(500, seed)
    for row in rows:
        last = 0
        for start, end, _, surface in row["entities"]:
            assert last <= start < end and row["text"][start:end] == surface
            assert surface == surface.strip(), "blanks do not belong to an entity"
            last = end
        for head, name, tail in row["relations"]:
            assert head != tail and name in {"located_in", "serves", "works_for"}
        assert row["intent"] not in row["mentions"] and row["clauses"]
        assert "{" not in row["text"] + row["reply"]
    assert len({row["text"] for row in rows}) == 500


def test_streets_lie_in_their_districts():
    words = corpora._hotline_words()["district"]
    home = {s: d[k] for d in words for k in ("en", "zh") for s in d[f"streets_{k}"]}
    checked = 0
    for row in corpora.hotline_rows(600, 5):
        for head, name, tail in row["relations"]:
            street, district = row["entities"][head][3], row["entities"][tail][3]
            if name == "located_in" and not row["typos"]:
                assert home[street] == district
                checked += 1
    assert checked > 50


def test_languages_noise_and_prefix():
    rows = corpora.hotline_rows(400, 3, languages=("zh",))
    assert {row["language"] for row in rows} == {"zh"}
    assert corpora.hotline_rows(150, 3) == corpora.hotline_rows(400, 3)[:150]
    assert not any(row["noisy"] for row in corpora.hotline_rows(200, 3, noise=0))
    assert all(row["label"] != row["intent"] for row in corpora.hotline_rows(200, 3, noise=1))
    assert [r["text"] for r in corpora.hotline_rows(2, 3)] != [
        r["text"] for r in corpora.hotline_rows(2, 4)
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0}, {"n": 2.5}, {"noise": 1.5}, {"seed": -1}, {"seed": 1.5},
        {"languages": ("de",)}, {"languages": ()},
    ],
)  # fmt: skip
def test_hotline_refuses_what_it_cannot_do(wrong):
    with pytest.raises(UserError) as e:
        corpora.hotline_rows(**wrong)
    assert "\n" not in str(e.value)


def test_every_intent_speaks_both_languages_and_the_file_is_small():
    words = corpora._hotline_words()
    for language in ("en", "zh"):
        assert set(words[language]["intent"]) == set(corpora.INTENTS)
        assert set(corpora.INTENTS) < set(words[language]["reply"])
        for name, intent in words[language]["intent"].items():
            assert all(intent[k] for k in ("neg", "neg_not", "pos", "pos_not", "ask")), name
    assert corpora.resource("data/hotline.toml").stat().st_size < 60_000


def test_docstrings_of_a_known_library(cache, one_library):
    rows = corpora.docstring_rows(libraries=["networkx"])
    assert sorted(row["source"] for row in rows) == ["networkx", "networkx:g"], "twin, test, broken"
    assert all("networkx" not in row["text"].lower() for row in rows)
    assert corpora.docstring_rows(1, ["networkx"]) == rows[:1]


def test_the_cache_is_used_and_can_be_refreshed(cache, one_library):
    rows = corpora.docstring_rows(libraries=["networkx"])
    (one_library / "new.py").write_text('"Here are eight words of quite another kind, or nine."')
    assert corpora.docstring_rows(libraries=["networkx"]) == rows
    assert len(corpora.docstring_rows(libraries=["networkx"], refresh=True)) == len(rows) + 1


def test_a_new_version_is_read_anew(cache, one_library, monkeypatch):
    corpora.docstring_rows(libraries=["networkx"])
    monkeypatch.setattr(corpora, "_version_of", lambda library: "99.0")
    corpora.docstring_rows(libraries=["networkx"])
    assert len(list(cache.glob("*.parquet"))) == 2


def test_a_damaged_cache_is_named(cache, one_library):
    corpora.docstring_rows(libraries=["networkx"])
    (file,) = cache.glob("*.parquet")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match="refresh"):
        corpora.docstring_rows(libraries=["networkx"])
    broken = pyarrow.array([b"\xff"]).cast(pyarrow.string(), safe=False)  # no UTF-8
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), file)
    with pytest.raises(UserError, match="refresh"):
        corpora.docstring_rows(libraries=["networkx"])
    assert len(corpora.docstring_rows(libraries=["networkx"], refresh=True)) == 2


def test_a_crash_leaves_no_cache(cache, one_library, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(corpora, "near_duplicates", crash)
    with pytest.raises(KeyboardInterrupt):
        corpora.docstring_rows(libraries=["networkx"])
    assert not list(cache.glob("*.parquet"))


def test_two_processes_build_once(tmp_path):
    code = (
        "import ftnb.corpora as c; build = c._build_docstrings\n"
        "def slow(libraries):\n"
        "    print('building'); return build(libraries)\n"
        "c._build_docstrings = slow\n"
        "print(len(c.docstring_rows(libraries=['networkx'])))"
    )
    env = os.environ | {"FTNB_CACHE": str(tmp_path)}
    start = [sys.executable, "-c", code]
    both = [subprocess.Popen(start, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in both]
    assert sorted(map(len, said)) == [1, 2], "one builds, the other waits"
    assert said[0][-1] == said[1][-1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0}, {"limit": 1.5}, {"libraries": ["abacus"]}, {"libraries": []},
        {"libraries": "numpy"},
    ],
)  # fmt: skip
def test_docstrings_refuse_what_they_cannot_do(cache, wrong):
    with pytest.raises(UserError) as e:
        corpora.docstring_rows(**wrong)
    assert "\n" not in str(e.value)


def test_a_library_that_is_missing_is_named(cache, monkeypatch):
    monkeypatch.setitem(corpora.LIBRARIES, "no_such_library", ("no_such_library",))
    with pytest.raises(UserError, match="no_such_library"):
        corpora.docstring_rows(libraries=["no_such_library"])


def test_reading_a_library_does_not_import_it(tmp_path):
    code = (
        "import sys, ftnb.corpora as c; assert len(c.library_docstrings('networkx')) > 500; "
        "assert 'networkx' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_near_duplicates_of_odd_texts():
    odd = ["", "   ", "!!!", "a", "a", "\ud800 lone", "公园的灯坏了", "公园的灯坏了。", "\0" * 5]
    of = corpora.near_duplicates(odd)
    assert of[4] == 3 and of[7] == 6 and of[1] == 0 and of[0] == -1
    assert corpora.near_duplicates([]).shape == (0,)
    assert corpora.near_duplicates(["word " * 200_000, "other"]).tolist() == [-1, -1]
    for wrong in ({"threshold": 0.5}, {"threshold": 1.1}, {"k": 0}, {"k": -1}, {"k": 2.5}):
        with pytest.raises(UserError):
            corpora.near_duplicates(["a"], **wrong)
    with pytest.raises(UserError, match="k must be"):
        corpora.shingles("a b", 0)


def test_near_duplicates_agree_with_comparing_every_pair():
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(40):
        words = rng.choice([f"w{i}" for i in range(50)], 30)
        for changes in (0, 1, 2, 4):
            copy = words.copy()
            copy[:changes] = "x"
            texts.append(" ".join(copy))
    sets = [corpora.shingles(t) for t in texts]
    kept, wanted = [], []
    for i, s in enumerate(sets):
        wanted.append(next((j for j in kept if corpora.jaccard(s, sets[j]) >= 0.7), -1))
        if wanted[-1] < 0:
            kept.append(i)
    assert corpora.near_duplicates(texts).tolist() == wanted


def test_masking():
    assert corpora.mask_names("input np.array; NP, npy") == "input <lib>.array; <lib>, npy"
    assert corpora.mask_names("TorchScript in sklearn_extra") == "<lib>Script in <lib>_extra"
    assert corpora.mask_names("a b", ()) == "a b"
    assert corpora.mask_names("c++ and c", ("c++",)) == "<lib> and c"
    assert corpora.mask_names("numpy", ["numpy"], r"\1\lib") == r"\1\lib"
    for wrong in ("numpy", [""]):
        with pytest.raises(UserError, match="names must be a list"):
            corpora.mask_names("numpy", wrong)


def test_a_cache_that_may_not_be_written_to(cache, one_library, monkeypatch):
    rows = corpora.docstring_rows(libraries=["networkx"])

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", str(cache))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert corpora.docstring_rows(libraries=["networkx"]) == rows, "reading needs no lock"
    with pytest.raises(UserError, match="FTNB_CACHE") as e:
        corpora.docstring_rows(libraries=["networkx"], refresh=True)
    assert "\n" not in str(e.value)
