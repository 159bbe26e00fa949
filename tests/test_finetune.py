"""finetune: scikit-learn's contract, the cache of vectors, saved classifiers, other bodies."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from estimator_checks import CHECKS, sklearn_checks
from safetensors.numpy import load_file, save_file
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from tiny_bert import LABELS, TEXTS, tiny_checkpoint, tiny_tokenizer

from ftnb import finetune
from ftnb.bert import Bert
from ftnb.core import UserError
from ftnb.finetune import TransformerClassifier, cached_features, feature_folder, fit_head


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(tiny, method="frozen", **options):
    options = dict(max_length=16, epochs=2, lr=1e-3, batch_size=4, random_state=0) | options
    return TransformerClassifier(str(tiny), method=method, **options)


def one_line(caught):
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize("method", ["frozen", "full"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_contract(tiny, check, method):
    check(lambda: make(tiny, method, epochs=1), list(TEXTS), list(LABELS))


def test_scikit_learn_s_own_checks(tiny):
    for _, check in sklearn_checks(make(tiny)):
        check()


def test_full_learns_what_a_frozen_random_body_cannot(tiny):
    full = make(tiny, "full", epochs=40, validation=0, batch_size=12, lr=3e-3).fit(TEXTS, LABELS)
    assert full.score(TEXTS, LABELS) == 1 and full.history_.losses[-1] < full.history_.losses[0] / 3
    start, end = Bert.from_pretrained(tiny), full.body_
    assert not torch.equal(start.layers[0].up.weight, end.layers[0].up.weight)
    frozen = make(tiny).fit(TEXTS, LABELS)
    pairs = zip(frozen.body_.parameters(), start.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    assert frozen.n_trainable_ == 3 * 32 + 3 < frozen.n_parameters_ == full.n_parameters_
    moved = sum(p.numel() for p, q in zip(end.parameters(), start.parameters(), strict=True)
                if not torch.equal(p, q))  # fmt: skip
    assert full.n_trainable_ == moved + 3 * 32 + 3 <= full.n_parameters_, "the pooler stays"


def test_full_starts_from_the_frozen_head(tiny):
    frozen = make(tiny, head_C=0.1).fit(TEXTS, LABELS)
    still = dict(validation=0, lr=1e-12, head_C=0.1, weight_decay=0)
    full = make(tiny, "full", **still).fit(TEXTS, LABELS)
    np.testing.assert_allclose(full.predict_proba(TEXTS), frozen.predict_proba(TEXTS), atol=1e-5)
    other = make(tiny, "full", start="random", **still).fit(TEXTS, LABELS)
    assert np.abs(other.head_weight_ - full.head_weight_).max() > 0.01


def test_the_best_pass_is_kept(tiny):
    model = make(tiny, "full", epochs=6, validation=0.25, lr=0.05, patience=6).fit(TEXTS, LABELS)
    scores = [v["score"] for v in model.history_.validations]
    assert model.history_.best["score"] == max(scores)
    out = finetune.validation_rows(np.unique(LABELS, return_inverse=True)[1], 0.25, _seed(0))
    left = [TEXTS[i] for i in out]
    assert model.score(left, [LABELS[i] for i in out]) == model.history_.best["accuracy"]


def _seed(random_state):
    return int(np.random.RandomState(random_state).randint(2**31 - 1))


def test_frozen_is_a_logistic_regression_on_mean_vectors(tiny):
    model = make(tiny, head_C=0.5).fit(TEXTS, LABELS)
    X = finetune._vectors(model, TEXTS)
    Z = (X - X.mean(0)) / X.std(0)
    theirs = LogisticRegression(C=0.5, max_iter=1000).fit(Z, LABELS).predict_proba(Z)
    np.testing.assert_allclose(model.predict_proba(TEXTS), theirs, atol=1e-4)


def test_a_dead_coordinate_and_a_class_of_one():
    X = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    X[:, 2] = 1e-33 * X[:, 0]
    y = np.array([0] * 15 + [1] * 14 + [2])
    W, b, C = fit_head(X, y)
    assert np.isfinite(W).all() and W.shape == (3, 5) and np.abs(W[:, 2]).max() < 1 and C > 0


# --- the cache ------------------------------------------------------------------------------------


def files(cache):
    return sorted((cache / "features").rglob("*.safetensors"))


def test_a_second_fit_reads_the_vectors_and_says_what_it_was_spared(tiny, cache, monkeypatch):
    first = make(tiny).fit(TEXTS, LABELS)
    assert first.saved_seconds_ == 0 and len(files(cache)) == 1
    asked = []
    real = finetune._vectors
    monkeypatch.setattr(finetune, "_vectors", lambda m, t: asked.append(len(t)) or real(m, t))
    second = make(tiny).fit(TEXTS, LABELS)
    assert asked == [] and second.saved_seconds_ > 0
    np.testing.assert_array_equal(first.head_weight_, second.head_weight_)
    make(tiny).fit([*TEXTS[:11], "another text"], LABELS)
    assert asked == [1], "only the new text"
    make(tiny, cache=False).fit(TEXTS, LABELS)
    assert asked == [1, 12] and len(files(cache)) == 2


def test_another_length_or_body_has_other_vectors(tiny, tmp_path, cache):
    other = tiny_checkpoint(tmp_path, seed=1)
    folders = {feature_folder(tiny, 16), feature_folder(tiny, 17), feature_folder(other, 16)}
    assert len(folders) == 3


def test_another_setting_of_the_tokeniser_has_other_vectors(tiny, tmp_path, cache):
    folder = shutil.copytree(tiny, tmp_path / "by vocabulary")
    vocabulary = tiny_tokenizer().get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    (folder / "tokenizer.json").unlink()
    heads = []
    for lower in (True, False):  # this is read beside vocab.txt
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        model = make(folder).fit([t.upper() for t in TEXTS], LABELS)
        assert model.saved_seconds_ == 0, "vectors of the other setting were used"
        assert (model.unknown_share_ == 0) == lower
        heads.append(model.head_weight_)
    assert np.abs(heads[0] - heads[1]).max() > 1e-3


@pytest.mark.parametrize("damage", ["one bit", "cut", "empty", "other shape", "no tensor"])
def test_a_damaged_cache_is_computed_again(tiny, cache, damage):
    first = make(tiny).fit(TEXTS, LABELS)
    path = files(cache)[0]
    raw, stored = bytearray(path.read_bytes()), load_file(path)
    raw[len(raw) // 2] ^= 16  # in a vector
    if damage == "other shape":
        stored["vectors"] = stored["vectors"][:5].copy()
    if damage == "no tensor":
        del stored["checksums"]
    content = {"one bit": bytes(raw), "cut": bytes(raw[:100]), "empty": b""}.get(damage)
    path.write_bytes(content) if content is not None else save_file(stored, path)
    again = make(tiny).fit(TEXTS, LABELS)
    assert again.saved_seconds_ == 0, "a damaged entry was used"
    np.testing.assert_allclose(again.head_weight_, first.head_weight_, atol=1e-6)
    assert make(tiny).fit(TEXTS, LABELS).saved_seconds_ > 0, "and was written anew"


def test_the_cache_keeps_below_its_limit_and_drops_the_oldest(cache, tmp_path, monkeypatch):
    folder = cache / "features" / "one"
    folder.mkdir(parents=True)
    monkeypatch.setattr(finetune, "FEATURE_BYTES", 9_000)

    def compute(part):
        return np.ones((len(part), 1000), np.float32)  # 4 kB for each text

    for text in ("a", "b", "c"):
        if text == "c":
            cached_features(["a"], folder, compute)  # used again: b is the oldest now
        cached_features([text], folder, compute)
        time.sleep(0.02)
    assert sum(p.stat().st_size for p in files(cache)) <= 9_000
    spared = [cached_features([t], folder, compute)[1] > 0 for t in ("a", "b")]
    assert spared == [True, False]


def test_an_interruption_keeps_the_finished_pieces(cache):
    folder = cache / "features" / "one"
    folder.mkdir(parents=True)
    calls = []

    def compute(part):
        calls.append(len(part))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return np.ones((len(part), 3), np.float32)

    texts = [str(i) for i in range(10)]
    with pytest.raises(KeyboardInterrupt):
        cached_features(texts, folder, compute, piece=4)
    assert cached_features(texts, folder, compute, piece=4)[0].shape == (10, 3)
    assert calls == [4, 4, 2, 2], "eight of ten were there"


def test_a_full_disk_costs_the_cache_not_the_run(tiny, cache, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(finetune, "atomic_path", full)
    with pytest.warns(UserWarning, match="not kept"):
        model = make(tiny).fit(TEXTS, LABELS)
    assert len(model.predict(TEXTS)) == 12 and files(cache) == []


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["frozen", "full"])
@pytest.mark.parametrize("labels", [LABELS, [3, 5, -7] * 4, [True, False] * 6])
def test_saved_and_read_back(tiny, tmp_path, method, labels):
    model = make(tiny, method, epochs=1).fit(TEXTS, labels)
    model.save_pretrained(tmp_path / "saved")
    shutil.copytree(tmp_path / "saved", tmp_path / "moved")
    shutil.rmtree(tmp_path / "saved")
    again = TransformerClassifier.from_pretrained(tmp_path / "moved")
    np.testing.assert_array_equal(again.predict_proba(TEXTS), model.predict_proba(TEXTS))
    assert again.classes_.dtype.kind == model.classes_.dtype.kind
    assert again.predict(TEXTS).tolist() == model.predict(TEXTS).tolist()
    assert again.get_params() == model.get_params() and again.n_trainable_ == model.n_trainable_
    assert clone(again).fit(TEXTS, labels)
    stored = sum(p.stat().st_size for p in (tmp_path / "moved").iterdir())
    assert abs(stored - model.size_bytes_) < 12_000  # JSON, names of tensors


def test_the_library_reads_what_we_save(tiny, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    model = make(tiny, "full", epochs=1).fit(TEXTS, LABELS)
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path).eval()
    batch = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
    assert batch["attention_mask"].min() == 0, "something is padded"
    with torch.inference_mode():
        hidden = body(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    weight = batch["attention_mask"][..., None]
    mean = ((hidden * weight).sum(1) / weight.sum(1)).numpy()
    logits = mean @ model.head_weight_.T + model.head_bias_
    ours = np.log(model.predict_proba(TEXTS))
    np.testing.assert_allclose(ours - ours[:, :1], logits - logits[:, :1], atol=1e-4)


@pytest.mark.parametrize("name", ["classifier.json", "head.safetensors", "config.json"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}"])
def test_a_damaged_classifier_is_one_line(tiny, tmp_path, name, content):
    make(tiny).fit(TEXTS, LABELS).save_pretrained(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        TransformerClassifier.from_pretrained(tmp_path)
    one_line(caught)


def test_a_head_of_another_model_is_refused(tiny, tmp_path):
    make(tiny).fit(TEXTS, LABELS).save_pretrained(tmp_path)
    about = json.loads((tmp_path / "classifier.json").read_text())
    about["classes"] = about["classes"][:2]
    (tmp_path / "classifier.json").write_text(json.dumps(about))
    with pytest.raises(UserError):
        TransformerClassifier.from_pretrained(tmp_path)


def test_settings_that_cannot_work(tiny):
    wrong = [{"method": "half"}, {"start": "warm"}, {"validation": 1.0}, {"head_C": 0}]
    wrong += [{"epochs": 0}, {"max_length": 2}, {"max_length": 65}, {"device": "abacus"}, {"lr": 0}]
    for options in wrong:
        with pytest.raises(UserError) as caught:
            make(tiny, **{"method": "full"} | options).fit(TEXTS, LABELS)
        one_line(caught)


def test_a_vocabulary_of_another_language_shows(tiny):
    model = make(tiny).fit([*TEXTS[:6], *["路灯坏了"] * 6], [0, 1] * 6)
    assert 0.3 < model.unknown_share_ < 0.7
    assert make(tiny).fit(TEXTS, LABELS).unknown_share_ == 0


# --- another architecture -------------------------------------------------------------------------


def test_another_architecture_through_transformers(tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=200, dim=32, n_layers=1, n_heads=2, hidden_dim=64,
                              max_position_embeddings=64)  # fmt: skip
    DistilBertModel(config).save_pretrained(tmp_path / "distil")
    tiny_tokenizer().save(str(tmp_path / "distil" / "tokenizer.json"))
    for method in ("frozen", "full"):
        model = make(tmp_path / "distil", method, epochs=1).fit(TEXTS, LABELS)
        model.save_pretrained(tmp_path / method)
        again = TransformerClassifier.from_pretrained(tmp_path / method)
        expected = model.predict_proba(TEXTS)
        np.testing.assert_allclose(again.predict_proba(TEXTS), expected, atol=1e-6)


def test_code_in_a_checkpoint_is_never_run(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    about = json.loads((tmp_path / "config.json").read_text())
    about |= {"model_type": "mine", "auto_map": {"AutoModel": "code.M", "AutoConfig": "code.C"}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(UserError) as caught:
        make(tmp_path).fit(TEXTS, LABELS)
    one_line(caught)
