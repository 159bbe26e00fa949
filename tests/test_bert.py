"""bert: Hugging Face's numbers; checkpoints that are missing, damaged or out of reach."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bert import TEXTS, tiny_checkpoint, tiny_config, tiny_tokenizer

from ftnb.bert import (
    MINILM_PACKAGE,
    Bert,
    BertConfig,
    BertForPreTraining,
    Encoder,
    batches_by_length,
    compiled_wordpiece,
    encode_ids,
    find_checkpoint,
    known_digest,
    load_tokenizer,
    mean_pool,
    pad,
    published_names,
    token_ids,
    unknown_share,
    weight_files,
)  # fmt: skip
from ftnb.core import UserError
from ftnb.data import load


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def auto_model(folder, **options):
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, use_safetensors=True, **options).eval()


def real_texts(n):
    "Docstrings of the libraries at hand, short and long ones in turn."
    found = {inspect.getdoc(x) or "" for m in (np, torch, torch.nn) for x in vars(m).values()
             if isinstance(x, type | types.FunctionType | types.BuiltinFunctionType)}  # fmt: skip
    found = sorted(found - {""}, key=lambda t: (len(t), t))
    return [found[int(i)] for i in np.linspace(0, len(found) - 1, n)]


def rows_of_all_lengths(n, tokenizer):
    "Token numbers of n real texts of all lengths, more short ones than long ones."
    texts = load("docstrings", limit=8_000).texts
    texts = sorted({*texts, *(t.strip().split("\n")[0] for t in texts[:2_000])})  # and first lines
    rows = sorted(token_ids(texts, tokenizer), key=len)
    lengths = np.array([len(r) for r in rows])
    wanted = lengths[0] + (512 - lengths[0]) * np.linspace(0, 1, n) ** 6
    places = np.searchsorted(lengths, wanted - 0.5)
    for i in range(1, n):  # each text once
        places[i] = max(places[i], places[i - 1] + 1)
    places = np.minimum(places, len(rows) - n + np.arange(n))
    assert len(set(places)) == n
    return [rows[i] for i in places]


# --- the same numbers -----------------------------------------------------------------------------


def test_hidden_states_are_hugging_face_s_on_a_thousand_real_texts_of_all_lengths():
    folder = find_checkpoint()
    ours, theirs = Bert.from_pretrained(folder), auto_model(folder)
    rows = rows_of_all_lengths(1_000, load_tokenizer(folder, 512))
    lengths = [len(r) for r in rows]
    assert min(lengths) < 10 and max(lengths) == 512 and len(set(lengths)) > 150
    for batch in batches_by_length(lengths, 2048):
        ids, mask = pad([rows[i] for i in batch])
        full = torch.ones_like(ids) if mask is None else mask
        with torch.inference_mode():
            a = ours(ids, mask)
            b = theirs(input_ids=ids, attention_mask=full.long())
            assert (ours.pool(a) - b.pooler_output).abs().max() < 1e-5
        assert (a - b.last_hidden_state)[full.bool()].abs().max() < 1e-5


def test_states_and_all_gradients_of_the_trained_model_are_hugging_face_s_in_float64():
    folder = find_checkpoint()
    ours, theirs = Bert.from_pretrained(folder).double(), auto_model(folder, dtype=torch.float64)
    rows = rows_of_all_lengths(1_000, load_tokenizer(folder, 512))
    g = torch.Generator().manual_seed(0)
    for batch in (rows[100:108], rows[600:604], rows[-1:]):
        ids, mask = pad(batch)
        full = torch.ones_like(ids) if mask is None else mask
        a = ours(ids, mask)
        b = theirs(input_ids=ids, attention_mask=full.long())
        assert (a - b.last_hidden_state)[full.bool()].abs().max() < 1e-12
        weight = full[..., None] * torch.randn(a.shape, dtype=a.dtype, generator=g) / full.sum()
        ((a * weight).sum() + ours.pool(a).square().mean()).backward()
        ((b.last_hidden_state * weight).sum() + b.pooler_output.square().mean()).backward()
    grads = {n: p.grad for n, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        their = torch.cat([grads[n] for n in published_names(name)])
        error = (p.grad - their).abs().max() / their.abs().max()
        assert error < 1e-10, f"{name}: {error:.1e}"  # keys' biases: 0 but for rounding


def test_float64_segments_and_gradients_are_hugging_face_s(tiny):
    ours, theirs = Bert.from_pretrained(tiny).double(), auto_model(tiny, dtype=torch.float64)
    ids, mask = pad(token_ids(TEXTS, load_tokenizer(tiny, 64)))
    segments = (torch.arange(ids.shape[1]) > 4).long().expand_as(ids)
    a = ours(ids, mask, segments)
    b = theirs(input_ids=ids, attention_mask=mask.long(), token_type_ids=segments).last_hidden_state
    assert (a - b)[mask.bool()].abs().max() < 1e-13
    weight = mask[..., None] * torch.randn(a.shape, dtype=a.dtype)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    grads = dict(theirs.named_parameters())
    for i, layer in enumerate(ours.layers):
        name = f"encoder.layer.{i}.attention.self.%s.weight"
        joined = torch.cat([grads[name % part].grad for part in ("query", "key", "value")])
        torch.testing.assert_close(layer.attention.qkv.weight.grad, joined)
    theirs_rows = grads["embeddings.word_embeddings.weight"].grad
    torch.testing.assert_close(ours.embeddings.token.weight.grad, theirs_rows)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_each_activation_is_hugging_face_s(tmp_path, act):
    folder = tiny_checkpoint(tmp_path, hidden_act=act)
    ids = torch.arange(5, 35).reshape(3, 10)
    with torch.inference_mode():
        a = Bert.from_pretrained(folder)(ids)
        torch.testing.assert_close(a, auto_model(folder)(input_ids=ids).last_hidden_state)


def test_saved_by_us_loaded_by_auto_model_and_back(tiny, tmp_path):
    theirs = auto_model(tiny)
    theirs.save_pretrained(tmp_path / "back")
    a, b = (Bert.from_pretrained(f).state_dict() for f in (tiny, tmp_path / "back"))
    assert all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()
    stored = load_file(tiny / "model.safetensors")
    assert stored.keys() == {k for k in theirs.state_dict() if "position_ids" not in k}


def test_other_spellings_of_the_published_names(tiny, tmp_path):
    "A prefix, gamma and beta, half precision, no pooler, heads of another task, shards."
    stored = load_file(tiny / "model.safetensors")
    spelt = {}
    for name, tensor in stored.items():
        if not name.startswith("pooler"):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            spelt["bert." + old.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor.half()
    spelt["cls.predictions.bias"] = torch.zeros(200)
    shutil.copy(tiny / "config.json", tmp_path)
    names, where = sorted(spelt), {}
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({n: spelt[n] for n in part}, tmp_path / f"model-{i}.safetensors")
        where |= dict.fromkeys(part, f"../elsewhere/model-{i}.safetensors")  # only names are used
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert [p.parent for p in weight_files(tmp_path)] == [tmp_path] * 2
    model = Bert.from_pretrained(tmp_path)
    assert model.pooler is None and model.embeddings.token.weight.dtype == torch.float32
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(model(ids), Bert.from_pretrained(tiny)(ids), atol=0.05, rtol=0.05)


def test_loading_draws_no_random_numbers(tiny, pretraining):
    before = torch.get_rng_state()
    for kind, folder in ((Bert, tiny), (BertForPreTraining, pretraining)):
        model = kind.from_pretrained(folder)
        assert not any(t.is_meta for t in model.state_dict().values())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mask_that_does_not_fit_is_refused(tiny):
    model, ids = Bert.from_pretrained(tiny), torch.arange(5, 15).reshape(2, 5)
    for shape in ((2, 4), (1, 5), (5,), (2, 5, 5)):
        with pytest.raises(UserError, match="mask"):
            model(ids, torch.ones(shape))


def test_training_does_not_touch_the_file(tiny):
    before = (tiny / "model.safetensors").read_bytes()
    model = Bert.from_pretrained(tiny)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert (tiny / "model.safetensors").read_bytes() == before


# --- vectors --------------------------------------------------------------------------------------


def test_padding_and_company_do_not_matter(tiny):
    encoder = Encoder(tiny, max_length=16)
    together = encoder.encode([*TEXTS, "", "lamp " * 90], normalize=False)
    alone = [encoder.encode([t], normalize=False)[0] for t in [*TEXTS, "", "lamp " * 90]]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    small = encoder.encode(TEXTS, normalize=False, tokens=20)
    np.testing.assert_allclose(small, together[: len(TEXTS)], atol=1e-5)


def test_what_stands_at_a_padded_place_does_not_matter(tiny):
    model, (ids, mask) = Bert.from_pretrained(tiny), pad([[2, 9, 3], [2, 8, 7, 6, 3]])
    other = ids.masked_fill(mask == 0, 150)
    with torch.inference_mode():
        assert torch.equal(mean_pool(model(ids, mask), mask), mean_pool(model(other, mask), mask))


def test_sentence_vectors_are_the_mean_of_hugging_face_s_hidden_states():
    folder, texts = find_checkpoint(), real_texts(12)
    ours = Encoder(folder, max_length=256).encode(texts)
    theirs = auto_model(folder)
    for row, vector in zip(token_ids(texts, load_tokenizer(folder, 256)), ours, strict=True):
        with torch.inference_mode():
            mean = theirs(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0)
        assert np.abs((mean / mean.norm()).numpy() - vector).max() < 1e-5


def test_odd_texts(tiny):
    encoder = Encoder(tiny, max_length=16)
    odd = ["", " \n", "\x00", "half \ud800 surrogate", "电影不好看", "x" * 1_000_000, "🙂" * 50]
    vectors = encoder.encode(odd)
    assert vectors.shape == (7, 32) and np.isfinite(vectors).all()
    assert encoder.encode([]).shape == (0, 32)
    for wrong in ("one text", [1, 2], [None], [b"bytes"]):
        with pytest.raises(UserError):
            encoder.encode(wrong)
    assert encode_ids(encoder.bert, [[2, 3]]).shape == (1, 32)


def test_unknown_share(tiny):
    tokenizer = load_tokenizer(tiny, 16)
    assert unknown_share(TEXTS, tokenizer) == 0 and unknown_share([""], tokenizer) == 0
    assert unknown_share(["电影", "the lamp"], tokenizer) == 0.5


ODD = ["", " \n", "\x00a\x00", "half \ud800", "电影不好看 ok", "x" * 101, "🙂" * 50, "[mask]",
       "[MASK] [SEP]x[PAD]", "naïve Ｆｕｌｌ ﬁne", "e\u0301\u0323a\u0323\u0301", "don't--stop...",
       "\u200bzero\xadwidth", "İstanbul ẞ", "a b " * 3_000]  # fmt: skip


@pytest.mark.parametrize("stored", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("longest", [3, 17, 512])
def test_the_compiled_tokenizer_gives_the_library_s_numbers(tmp_path, monkeypatch, stored, longest):
    texts = [*load("docstrings", limit=2_000).texts, *ODD]
    shutil.copy(find_checkpoint() / stored, tmp_path)
    tokenizer = load_tokenizer(tmp_path, longest)
    assert compiled_wordpiece(tokenizer.to_str()) is not None
    whole = [t.encode("utf-8", "replace").decode() for t in texts]
    theirs = [e.ids for e in tokenizer.encode_batch_fast(whole)]
    monkeypatch.setattr("ftnb.bert.MANY", 10**12)
    assert token_ids(texts, tokenizer) == theirs
    monkeypatch.setattr("ftnb.bert.MANY", 0)
    assert token_ids(texts, tokenizer) == theirs
    assert token_ids([], tokenizer) == [] and token_ids([""], tokenizer) == [[101, 102]]


@pytest.mark.parametrize(
    "change",
    [("normalizer", "clean_text", False), ("normalizer", "strip_accents", False),
     ("normalizer", "handle_chinese_chars", False), ("model", "unk_token", "[PAD]"),
     ("model", "max_input_chars_per_word", 200), ("model", "continuing_subword_prefix", "@@"),
     ("truncation", "direction", "Left"), ("truncation", "stride", 5),
     ("normalizer", None, None), ("pre_tokenizer", "type", "Whitespace"),
     ("added_tokens", None, []), ("post_processor", None, None)],
    ids=str,
)  # fmt: skip
def test_any_other_recipe_is_left_to_the_library(monkeypatch, change):
    part, key, value = change
    about = json.loads(load_tokenizer(find_checkpoint(), 64).to_str())
    assert compiled_wordpiece(json.dumps(about)) is not None
    if key is None:
        about[part] = value
    else:
        about[part][key] = value
    assert compiled_wordpiece(json.dumps(about)) is None


def test_a_further_special_token_is_left_to_the_library(monkeypatch):
    tokenizer = load_tokenizer(find_checkpoint(), 64)
    tokenizer.add_special_tokens(["[CITY]"])
    monkeypatch.setattr("ftnb.bert.MANY", 0)
    assert 30522 in token_ids(["in [CITY] tonight"], tokenizer)[0]


def test_tokeniser_from_a_plain_vocabulary(tiny, tmp_path):
    vocab = tiny_tokenizer().get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n")
    ids = token_ids(TEXTS, load_tokenizer(tmp_path, 16))
    assert ids == token_ids(TEXTS, load_tokenizer(tiny, 16))


# --- checkpoints ----------------------------------------------------------------------------------


def one_line(caught):
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_a_folder_is_taken_as_it_is(tiny):
    assert find_checkpoint(str(tiny)) == tiny.resolve()


def test_the_package_is_found_and_its_digest_is_asked_once(cache, monkeypatch):
    folder = find_checkpoint("all-MiniLM-L6-v2")
    assert folder == find_checkpoint() and folder.parent.name == MINILM_PACKAGE
    monkeypatch.setattr("ftnb.bert.file_digest", lambda path: pytest.fail("hashed again"))
    assert find_checkpoint() == folder
    assert MINILM_PACKAGE not in sys.modules, "the package's code was run"


def test_damaged_weights_are_refused(cache, tmp_path, monkeypatch):
    model = tmp_path / MINILM_PACKAGE / "model"
    model.mkdir(parents=True)
    (tmp_path / MINILM_PACKAGE / "__init__.py").write_text("raise SystemExit('imported')")
    shutil.copytree(find_checkpoint(), model, dirs_exist_ok=True)
    with open(model / "model.safetensors", "r+b") as f:
        f.seek(-1000, 2)
        byte = f.read(1)
        f.seek(-1000, 2)
        f.write(bytes([byte[0] ^ 1]))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        find_checkpoint()
    assert "SHA-256" in one_line(caught)


def test_a_changed_file_is_hashed_again(cache, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    first = known_digest(path)
    path.write_bytes(b"abcd")
    assert known_digest(path) != first
    for kept in (cache / "digests").iterdir():
        kept.write_text("damaged")
    path.write_bytes(b"abc")
    assert known_digest(path) == first


@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_no_network_is_one_line(tmp_path, how):
    "In a process of its own: huggingface_hub reads its settings when it is imported."
    code = (
        "import sys; from ftnb.bert import find_checkpoint; from ftnb.core import UserError\n"
        "try: find_checkpoint('someone/some-model', 'v1')\n"
        "except UserError as e: print(e); sys.exit(2)"
    )
    away = {"HF_HUB_OFFLINE": "1"} if how == "offline" else {"HF_ENDPOINT": "http://127.0.0.1:9"}
    env = os.environ | {"HF_HOME": str(tmp_path), "FTNB_CACHE": str(tmp_path / "c")}
    env = {k: v for k, v in env.items() if "HUB_OFFLINE" not in k and "proxy" not in k.lower()}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env | away, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout.count("\n") == 1 and "someone/some-model at revision v1" in ran.stdout


def test_missing_and_foreign_checkpoints(tiny, tmp_path):
    with pytest.raises(UserError) as caught:
        find_checkpoint("./not/there")
    one_line(caught)
    (tmp_path / "pickle").mkdir()
    shutil.copy(tiny / "config.json", tmp_path / "pickle")
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UserError) as caught:
        find_checkpoint(tmp_path / "pickle")
    assert "safetensors" in one_line(caught)


@pytest.mark.parametrize(
    "change",
    [{"model_type": "gpt2"}, {"position_embedding_type": "relative_key"}, {"is_decoder": True},
     {"hidden_act": "swish"}, {"hidden_size": 33}, {"hidden_size": 64}],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused(tiny, tmp_path, change):
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    about = json.loads((tiny / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError) as caught:
        Bert.from_pretrained(tmp_path)
    one_line(caught)


def test_damaged_files_are_one_line_each(tiny, tmp_path):
    cut = (tiny / "model.safetensors").read_bytes()
    lacking = load_file(tiny / "model.safetensors")
    del lacking["encoder.layer.1.attention.self.key.bias"]
    save_file(lacking, tmp_path / "lacking")
    damage = {
        "model.safetensors": [b"", cut[: len(cut) // 2], (tmp_path / "lacking").read_bytes()],
        "config.json": [b"", b"[]", b"{", b"\xff"],
        "tokenizer.json": [b"", b"{}"],
    }
    for name, contents in damage.items():
        for content in contents:
            folder = tmp_path / "damaged"
            shutil.copytree(tiny, folder, dirs_exist_ok=True)
            (folder / name).write_bytes(content)
            with pytest.raises(UserError) as caught:
                Encoder(folder, max_length=16)
            one_line(caught)


def test_too_long_and_misshapen_input(tiny):
    model = Bert.from_pretrained(tiny)
    for ids in (torch.zeros(1, 65, dtype=torch.long), torch.zeros(5, dtype=torch.long)):
        with pytest.raises(UserError):
            model(ids)
    with pytest.raises(UserError):
        Encoder(tiny, max_length=65)


def test_configuration_round_trip(tmp_path):
    config = tiny_config(hidden_act="relu", pad_token_id=1)
    Bert(config).save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path) == config


# --- the heads of pre-training --------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    "A folder with random weights, biases and norms included."
    folder = tmp_path_factory.mktemp("pretraining")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = BertForPreTraining(tiny_config())
        for name, p in model.named_parameters():
            if p.ndim == 1:
                torch.nn.init.normal_(p, mean=float("norm.weight" in name), std=0.1)
    model.save_pretrained(folder)
    return folder


def hugging_face_pretraining(folder, **options):
    from transformers import BertForPreTraining as Theirs

    model, info = Theirs.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def pretraining_batch():
    ids, mask = pad([[2, 9, 8, 3, 7, 3], [2, 8, 7, 6, 3, 11, 12, 3]])
    return ids, mask, (torch.arange(8) > 3).long().expand(2, 8), torch.tensor([2, 4, 9, 14])


def test_scores_and_gradients_of_pretraining_are_hugging_face_s(pretraining):
    ours = BertForPreTraining.from_pretrained(pretraining).double()
    theirs = hugging_face_pretraining(pretraining, dtype=torch.float64)
    ids, mask, segments, places = pretraining_batch()
    tokens, relation = ours(ids, mask, segments, places)
    said = theirs(input_ids=ids, attention_mask=mask.long(), token_type_ids=segments)
    their_tokens = said.prediction_logits.flatten(0, 1)[places]
    torch.testing.assert_close(tokens, their_tokens, atol=1e-12, rtol=0)
    torch.testing.assert_close(relation, said.seq_relationship_logits, atol=1e-12, rtol=0)
    every, _ = ours(ids, mask, segments)
    torch.testing.assert_close(every, said.prediction_logits, atol=1e-12, rtol=0)
    for a, b in ((tokens, relation), (their_tokens, said.seq_relationship_logits)):
        (a.logsumexp(-1).sum() + b.pow(3).sum()).backward()
    grads = {n.removeprefix("bert."): p.grad for n, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        parts = [grads[n] for n in published_names(name)]
        torch.testing.assert_close(p.grad, torch.cat(parts), atol=1e-10, rtol=1e-8)


def test_pretraining_written_by_transformers_is_read_by_us(pretraining, tmp_path):
    hugging_face_pretraining(pretraining).save_pretrained(tmp_path / "back")
    folders = pretraining, tmp_path / "back"
    a, b = (BertForPreTraining.from_pretrained(f).state_dict() for f in folders)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_decoder_stored_twice_is_read_and_an_untied_one_refused(pretraining, tmp_path):
    stored = load_file(pretraining / "model.safetensors")
    shutil.copy(pretraining / "config.json", tmp_path)
    stored["cls.predictions.decoder.weight"] = stored["bert.embeddings.word_embeddings.weight"] + 0
    stored["cls.predictions.decoder.bias"] = stored.pop("cls.predictions.bias")
    save_file(stored, tmp_path / "model.safetensors")
    again = BertForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(again.predictions.bias, stored["cls.predictions.decoder.bias"])
    stored["cls.predictions.decoder.weight"][5] += 1
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="tied"):
        BertForPreTraining.from_pretrained(tmp_path)


def test_an_encoder_without_heads_is_refused_in_one_line(tiny):
    with pytest.raises(UserError, match="cls.predictions") as caught:
        BertForPreTraining.from_pretrained(tiny)
    one_line(caught)


def test_the_encoder_of_a_pretraining_checkpoint_loads_alone(pretraining):
    ids = torch.arange(5, 15)[None]
    whole = BertForPreTraining.from_pretrained(pretraining)
    assert torch.equal(Bert.from_pretrained(pretraining)(ids), whole.bert(ids))


def test_initial_weights_are_the_published_ones():
    "Normal with the stated deviation, cut at two of them; biases 0, norms 1."
    torch.manual_seed(0)
    model = BertForPreTraining(tiny_config(initializer_range=0.02, vocab_size=5_000))
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == float("norm.weight" in name)).all(), name
        else:
            assert p.abs().max() <= 0.04 + 1e-6 and abs(p.mean()) < 0.005, name
    rows = model.bert.embeddings.token.weight
    assert abs(rows.std() - 0.02 * 0.8796) < 2e-4  # of a normal variable cut at two deviations
    assert "decoder" not in " ".join(model.state_dict()), "the table is stored once"


def test_no_masked_place_gives_no_scores(pretraining):
    model, (ids, mask, _, _) = BertForPreTraining.from_pretrained(pretraining), pretraining_batch()
    tokens, relation = model(ids, mask, positions_of_masked=torch.tensor([], dtype=torch.long))
    assert tokens.shape == (0, 200) and relation.shape == (2, 2)
