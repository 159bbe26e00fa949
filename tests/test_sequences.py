"""Networks over word vectors: gradients, padding, saved files, scikit-learn's contract."""

import time

import numpy as np
import pytest
import torch
from estimator_checks import CHECKS, sklearn_checks
from saved_nets import (
    LABELS,
    SPOILED,
    TEXTS,
    check_mixed_files,
    check_saving,
    check_spoiled_files,
    spoil_config,
)

from ftnb.core import UserError
from ftnb.data import load
from ftnb.sequences import (
    KINDS,
    ConvMaxOverTime,
    NeuralTextClassifier,
    NumberedTexts,
    lstm_backward,
    lstm_forward,
    make_net,
    number_texts,
    rnn_backward,
    rnn_forward,
)
from ftnb.vectors import SkipGram

VARIANTS = [(kind, "word", "last") for kind in KINDS]
VARIANTS += [("rnn", "word", "max"), ("lstm", "word", "max"), ("lstm", "byte", "max")]
VARIANTS += [("cnn", "byte", "last"), ("dan", "byte", "last")]


def tiny(kind="cnn", unit="word", pooling="last", **more):
    settings = dict(dim=8, width=8, epochs=2, batch_size=4, min_count=1, random_state=0, threads=1)
    return NeuralTextClassifier(kind, unit, pooling=pooling, **settings | more)


@pytest.mark.parametrize("kind, unit", [("dan", "word"), ("cnn", "word"), ("rnn", "word"),
                                        ("lstm", "word"), ("lstm", "byte")])  # fmt: skip
@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_contract(check, kind, unit):
    if unit == "byte" and check.__name__ == "check_hostile_texts":
        check(lambda: tiny(kind, unit, max_length=99), TEXTS, LABELS)
    else:
        check(lambda: tiny(kind, unit), TEXTS, LABELS)


@pytest.mark.parametrize("name, check", sklearn_checks(tiny()), ids=lambda x: str(x)[:60])
def test_scikit_learns_own(name, check):
    check()


@pytest.mark.parametrize("kind, unit, pooling", VARIANTS)
def test_learns_and_survives_saving(tmp_path, kind, unit, pooling):
    more = dict(epochs=60, lr=0.01, width=32, dropout=0, word_dropout=0)
    model = tiny(kind, unit, pooling, **more).fit(TEXTS, LABELS)
    check_saving(model, tmp_path)


@pytest.mark.parametrize("spoil", [
    *SPOILED,
    lambda d: spoil_config(d, words=["one"]),
    lambda d: spoil_config(d, settings={"kind": "tree"}),
    lambda d: spoil_config(d, settings={"kind": "lstm", "pooling": "mean"}),
])  # fmt: skip
def test_spoiled_files_give_one_line(tmp_path, spoil):
    check_spoiled_files(tiny(), tmp_path, spoil)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    check_mixed_files(tiny(), tiny(random_state=1), tmp_path)


@pytest.mark.parametrize("bad", [
    {"kind": "tree"}, {"unit": "char"}, {"pooling": "mean"}, {"dim": 0}, {"width": 0},
    {"epochs": 0}, {"min_count": 0}, {"max_length": 0}, {"dropout": 1}, {"word_dropout": -0.1},
    {"validation": 1}, {"lr": -1}, {"batch_size": 0}, {"device": "abacus"}, {"vectors": "glove"},
])  # fmt: skip
def test_settings_that_cannot_work(bad):
    with pytest.raises(UserError) as e:
        tiny(**bad).fit(TEXTS, LABELS)
    assert next(iter(bad)) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("kind, unit, pooling", VARIANTS)
def test_padding_changes_nothing(kind, unit, pooling):
    torch.manual_seed(0)
    net = make_net(kind, 50, 3, 6, 5, 0.5, 0.5, pooling=pooling).eval()
    for p in net.parameters():
        if p.ndim == 1:
            torch.nn.init.constant_(p, 0.9)  # biases that would let padding win
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 50, n).tolist() for n in (0, 1, 2, 3, 5, 40)]
    batch = torch.tensor([t + [0] * (55 - len(t)) for t in texts])
    with torch.no_grad():
        together = net(batch)
        alone = torch.cat([net(torch.tensor([t or [0]])) for t in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert together.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_gradient(kind):
    torch.manual_seed(0)
    net = make_net(kind, 9, 2, 4, 4, 0.0, 0.0)
    net(torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6]])).sum().backward()
    grad = net.embedding.weight.grad
    assert not grad[0].any() and not grad[7:].any() and grad[1:7].abs().sum(1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_average_is_blind_to_order(kind):
    torch.manual_seed(0)
    net = make_net(kind, 9, 2, 4, 4, 0.0, 0.0).eval()
    one, other = net(torch.tensor([[1, 2, 3], [3, 2, 1]]))
    assert torch.allclose(one, other, atol=1e-6) == (kind == "dan")


def test_word_dropout_leaves_a_mean_of_what_stays():
    torch.manual_seed(0)
    net = make_net("dan", 3, 2, 4, 4, 0.0, 0.99)
    same = torch.ones(400, 3, dtype=torch.long)  # one word three times: any that stay average to it
    whole, none = net.eval()(torch.tensor([[1, 1, 1], [0, 0, 0]]))
    dropped = net.train()(same)
    is_whole = torch.isclose(dropped, whole, atol=1e-5).all(1)
    assert (is_whole | torch.isclose(dropped, none, atol=1e-5).all(1)).all()
    assert 0 < is_whole.sum() < 100


def test_windows_never_lie_wholly_outside():
    torch.manual_seed(0)
    net = ConvMaxOverTime(5, 2, 3, 2, 0.0).eval()
    for conv in net.convs:
        torch.nn.init.constant_(conv.bias, 5.0)
        torch.nn.init.constant_(conv.weight, -1.0)
    torch.nn.init.constant_(net.embedding.weight[1:].data, 1.0)
    seen = []
    net.head.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    net(torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]]))
    assert seen[0].max() <= 5 - 3 + 1e-5, "each window holds a word, which takes 3 from the bias"


def cells(draw, blocks, H, inputs):
    return {"W": draw.normal(size=(blocks * H, inputs)), "U": draw.normal(size=(blocks * H, H)),
            "b": draw.normal(size=blocks * H)}  # fmt: skip


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
@pytest.mark.parametrize("T, H, inputs", [(1, 1, 1), (5, 3, 2), (30, 2, 4)])
def test_own_cells_are_torchs(kind, T, H, inputs):
    draw = np.random.default_rng(T)
    cell = cells(draw, 1 if kind == "RNN" else 4, H, inputs)
    x, direct, h0, c0 = (draw.normal(size=s) for s in ((T, inputs), (T, H), H, H))
    twin = getattr(torch.nn, kind)(inputs, H, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for name, w in (("weight_ih_l0", "W"), ("weight_hh_l0", "U"), ("bias_ih_l0", "b")):
            getattr(twin, name).copy_(torch.from_numpy(cell[w]))
        twin.bias_hh_l0.zero_()
    first = [torch.tensor(v)[None, None].requires_grad_() for v in (h0, c0)]
    inputs_ = torch.tensor(x)[None].requires_grad_()
    out, _ = twin(inputs_, first[0] if kind == "RNN" else tuple(first))
    (out[0] * torch.from_numpy(direct)).sum().backward()
    if kind == "RNN":
        h = rnn_forward(x, h0, **cell)
        d = rnn_backward(x, h, cell["W"], cell["U"], direct)
    else:
        h, c, gates = lstm_forward(x, h0, c0, **cell)
        d = lstm_backward(x, h, c, gates, cell["W"], cell["U"], direct)
        np.testing.assert_allclose(d["c"][0], first[1].grad[0, 0], atol=1e-9)
    np.testing.assert_allclose(h[1:], out.detach()[0], atol=1e-10)
    np.testing.assert_allclose(d["W"], twin.weight_ih_l0.grad, atol=1e-9)
    np.testing.assert_allclose(d["U"], twin.weight_hh_l0.grad, atol=1e-9)
    np.testing.assert_allclose(d["b"], twin.bias_ih_l0.grad, atol=1e-9)
    np.testing.assert_allclose(d["x"], inputs_.grad[0], atol=1e-9)
    np.testing.assert_allclose(d["h"][0], first[0].grad[0, 0], atol=1e-9)


def test_numbers_of_words_and_bytes():
    texts = ["a b c", "", "C c zz", "。", "水 a"]
    ids, lengths = number_texts(texts, ["c", "水", "a"], 9)
    assert ids.tolist() == [4, 1, 2, 2, 2, 1, 3, 4] and lengths.tolist() == [3, 0, 3, 0, 2]
    ids, lengths = number_texts(texts, ["c", "水", "a"], 1)
    assert ids.tolist() == [4, 2, 3] and lengths.tolist() == [1, 0, 1, 0, 1]
    ids, lengths = number_texts(["aé", "", "\ud800"], None, 99)
    assert bytes((ids[:3] - 1).tolist()).decode() == "aé" and lengths[:2].tolist() == [3, 0]


def test_batches_hold_what_was_numbered():
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 99, n) for n in rng.integers(0, 9, 50)]
    data = NumberedTexts(np.concatenate(rows), np.array([len(r) for r in rows]), np.arange(50))
    for picked in (np.array([0]), np.arange(50), rng.permutation(50)[:7]):
        x, y = data.batch(picked)
        assert y.tolist() == picked.tolist()
        for row, i in zip(x.tolist(), picked, strict=True):
            n = len(rows[i])
            assert row[:n] == rows[i].tolist() and not any(row[n:])


def test_words_start_where_given_vectors_put_them():
    given = SkipGram(dim=6, epochs=1, min_count=1, random_state=0).fit(["water lamp xqzw"] * 5)
    model = tiny("dan", vectors=given, lr=1e-9, validation=0).fit(TEXTS, LABELS)
    assert model.net_.embedding.embedding_dim == 6 and "xqzw" in model.words_
    own = model.net_.embedding.weight.detach().numpy()
    rows = [model.words_.index(word) + 2 for word in given.words]
    ratio = own[rows] / given.vectors
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)
    assert tiny(vectors=given).fit(TEXTS, LABELS).predict(["xqzw"]).shape == (1,)


def test_rare_words_are_unknown():
    model = tiny("dan", min_count=2).fit(TEXTS, LABELS)
    assert "water" in model.words_ and "brown" not in model.words_
    assert np.array_equal(model.predict_proba(["brown"]), model.predict_proba(["xqzw"]))
    assert not np.array_equal(model.predict_proba(["brown"]), model.predict_proba([""]))


@pytest.mark.parametrize("kind", KINDS)
def test_texts_without_any_known_word(kind):
    model = tiny(kind, min_count=2).fit(["a", "b", "c", "d"], [0, 0, 1, 1])
    assert model.words_ == [] and np.isfinite(model.predict_proba(["a", "。", ""])).all()


@pytest.mark.parametrize("kind, unit", [("cnn", "word"), ("dan", "word"), ("lstm", "byte")])
def test_ten_megabytes_cost_no_more_than_their_beginning(kind, unit):
    model = tiny(kind, unit).fit(TEXTS, LABELS)
    huge = "water 水 " * 1_000_000
    began = time.process_time()
    found = model.predict_proba([huge])
    assert time.process_time() - began < 10
    np.testing.assert_allclose(found, model.predict_proba([huge[:2000]]), atol=1e-6)


def test_early_stopping_holds_rows_back():
    texts, labels = TEXTS * 20, LABELS * 20
    model = tiny("cnn", epochs=9, lr=0.02, validation=0.2, patience=2).fit(texts, labels)
    said = model.history_.validations
    assert said and model.history_.best == min(said, key=lambda v: v["loss"])
    assert not tiny(validation=0.2).fit(TEXTS, LABELS).history_.validations, "too few to hold back"


def test_the_callers_threads_and_random_state_are_left_alone():
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    tiny("lstm", threads=1).fit(TEXTS, LABELS).predict(TEXTS)
    assert torch.get_num_threads() == 2 and torch.equal(torch.get_rng_state(), before)


def test_the_average_reads_questions(mirror):
    corpus = load("trec6")
    train, test = corpus.part("train"), corpus.part("valid")
    model = NeuralTextClassifier("dan", epochs=6, random_state=0, threads=1)
    model.fit(train.texts, train.labels)
    assert np.mean(model.predict(test.texts) == test.labels) > 0.7


@pytest.mark.parametrize("name", ["dim", "width", "min_count", "epochs", "batch_size", "max_length",
                                  "patience", "threads", "dropout", "validation", "lr"])
@pytest.mark.parametrize("bad", ["4", [1], -1, 1j])
def test_settings_of_the_wrong_kind_are_refused(name, bad):
    with pytest.raises(UserError, match=name) as told:
        tiny(**{name: bad}).fit(TEXTS, LABELS)
    assert "\n" not in str(told.value)


def test_no_folder_and_no_such_net():
    for bad in (None, 3, ""):
        with pytest.raises(UserError, match="folder"):
            NeuralTextClassifier.from_pretrained(bad)
    for bad in (dict(kind=None), dict(kind="gru"), dict(kind="rnn", pooling="mean")):
        with pytest.raises(UserError, match="kind must be"):
            make_net(bad.pop("kind"), 9, 3, 4, 5, 0.0, 0.0, **bad)
