"""What the tests of networks over characters and over words share: texts, and saved files."""

import json

import numpy as np
import pytest
from sklearn.base import clone

from ftnb.core import UserError

TEXTS = """no water today|the water is brown|water tap leaks|停水了|水管坏了|water?
lamp is out|street lamp broken|the lamp blinks|路灯坏了|灯不亮|lamp!"""
TEXTS = TEXTS.replace("\n", "|").split("|")
LABELS = ["water"] * 6 + ["light"] * 6


def check_saving(model, folder):
    "A fitted model that has learnt TEXTS comes back from its two files as it was."
    assert (model.predict(TEXTS) == LABELS).mean() > 0.9
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder)
    assert np.array_equal(again.predict_proba(TEXTS), model.predict_proba(TEXTS))
    assert again.classes_.tolist() == model.classes_.tolist()
    assert again.get_params() == model.get_params()
    assert (again.n_parameters_, again.size_bytes_) == (model.n_parameters_, model.size_bytes_)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    clone(again).fit(TEXTS, LABELS)


def spoil_config(folder, **change):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


SPOILED = [
    lambda d: (d / "config.json").unlink(),
    lambda d: (d / "model.safetensors").unlink(),
    lambda d: (d / "config.json").write_text("{"),
    lambda d: (d / "config.json").write_text("[]"),
    lambda d: (d / "model.safetensors").write_bytes(b"half"),
    lambda d: spoil_config(d, settings={"colour": "red"}),
    lambda d: spoil_config(d, classes=["one", "two", "three"]),
]


def check_spoiled_files(model, folder, spoil):
    "One line, whatever happened to the files."
    model.fit(TEXTS, LABELS).save_pretrained(folder)
    spoil(folder)
    with pytest.raises(UserError, match="cannot load") as e:
        type(model).from_pretrained(folder)
    assert "\n" not in str(e.value)


def check_mixed_files(one, other, folder):
    "The settings of one model and the numbers of another are refused."
    one.fit(TEXTS, LABELS).save_pretrained(folder / "a")
    other.fit(TEXTS, LABELS).save_pretrained(folder / "b")
    (folder / "b" / "config.json").replace(folder / "a" / "config.json")
    with pytest.raises(UserError, match="do not belong together"):
        type(one).from_pretrained(folder / "a")
