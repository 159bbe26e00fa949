"""scikit-learn's contract, checked for estimators over raw strings.

scikit-learn's own checks feed tables of numbers. Those that need no data are run as they are
(`sklearn_checks`); the others are in `NUMERIC`, each with the check below that asks the same of
text, or with the reason why the question does not arise.

Use: `run_checks(lambda: MyClassifier(epochs=1, random_state=0), texts, labels)` with at least 12
texts in two or more classes, or parametrize over `CHECKS` to see each by name. One is left out by
`skip={name: reason}`.
"""

import copy
import inspect
import io
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import check_is_fitted

DATA = "feeds a table of numbers; raw strings: "
NONE = "about the number of columns of a table; a list of texts has none: check_no_n_features_in"
NUMERIC = {
    "check_estimators_dtypes": DATA + "check_kinds_of_labels",
    "check_estimators_nan_inf": DATA + "check_bad_input",
    "check_estimators_pickle": DATA + "check_joblib",
    "check_estimators_overwrite_params": DATA + "check_fit_leaves_parameters_alone",
    "check_dont_overwrite_parameters": DATA + "check_fit_leaves_parameters_alone",
    "check_estimators_fit_returns_self": DATA + "check_fit_returns_self",
    "check_readonly_memmap_input": DATA + "check_input_is_not_modified",
    "check_estimators_unfitted": DATA + "check_unfitted",
    "check_fit_score_takes_y": DATA + "check_score",
    "check_estimators_empty_data_messages": DATA + "check_bad_input",
    "check_pipeline_consistency": DATA + "check_pipeline",
    "check_complex_data": DATA + "check_bad_input",
    "check_dtype_object": DATA + "check_containers",
    "check_estimator_sparse_tag": "about sparse matrices of numbers; texts are no matrix",
    "check_estimator_sparse_array": "about sparse matrices of numbers; texts are no matrix",
    "check_estimator_sparse_matrix": "about sparse matrices of numbers; texts are no matrix",
    "check_f_contiguous_array_estimator": "about the memory layout of a matrix; texts are none",
    "check_array_api_input": "about arrays of numbers on other devices; texts are no arrays",
    "check_sample_weights_pandas_series": "no sample weights",
    "check_sample_weights_not_an_array": "no sample weights",
    "check_sample_weights_list": "no sample weights",
    "check_sample_weights_shape": "no sample weights",
    "check_sample_weights_not_overwritten": "no sample weights",
    "check_sample_weight_equivalence_on_dense_data": "no sample weights",
    "check_sample_weight_equivalence_on_sparse_data": "no sample weights",
    "check_classifier_data_not_an_array": DATA + "check_containers",
    "check_classifier_multioutput": "one label per text",
    "check_classifiers_one_label": DATA + "check_bad_input",
    "check_classifiers_one_label_sample_weights": "no sample weights",
    "check_classifiers_classes": DATA + "check_kinds_of_labels",
    "check_classifiers_train": DATA + "check_probabilities",
    "check_classifiers_regression_target": DATA + "check_bad_input",
    "check_supervised_y_no_nan": DATA + "check_bad_input",
    "check_supervised_y_2d": DATA + "check_bad_input",
    "check_requires_y_none": DATA + "check_bad_input",
    "check_estimators_partial_fit_n_features": NONE,
    "check_n_features_in": NONE,
    "check_n_features_in_after_fitting": NONE,
    "check_fit2d_1feature": NONE,
    "check_fit2d_1sample": DATA + "check_bad_input",
    "check_fit2d_predict1d": DATA + "check_bad_input",
    "check_fit1d": "asks that one-dimensional input is refused; ours is one-dimensional",
    "check_positive_only_tag_during_fit": "about negative numbers in a table",
    "check_non_transformer_estimators_n_iter": "no attribute n_iter_",
    "check_transformer_n_iter": "no attribute n_iter_",
    "check_decision_proba_consistency": DATA + "check_probabilities",
    "check_class_weight_classifiers": "no class weights",
    "check_methods_sample_order_invariance": DATA + "check_each_text_for_itself",
    "check_methods_subset_invariance": DATA + "check_each_text_for_itself",
    "check_dict_unchanged": DATA + "check_prediction_changes_nothing",
    "check_fit_idempotent": DATA + "check_fit_twice",
    "check_fit_check_is_fitted": DATA + "check_unfitted",
    "check_transformer_data_not_an_array": DATA + "check_containers",
    "check_transformer_general": DATA + "check_containers",
    "check_transformer_preserve_dtypes": "texts have no dtype to keep",
    "check_transformers_unfitted": DATA + "check_unfitted",
    "check_transformers_unfitted_stateless": DATA + "test_bow.py",
}


def _as_if_for_tables(estimator):
    "The estimator with a tag that makes scikit-learn list all its checks."

    def tags(self):
        found = type(estimator).__sklearn_tags__(self)
        found.input_tags.two_d_array = True
        return found

    kind = type(type(estimator).__name__, (type(estimator),), {"__sklearn_tags__": tags})
    return kind(**estimator.get_params(deep=False))


def _name(check):
    return getattr(check, "func", check).__name__


def sklearn_checks(estimator):
    "scikit-learn's checks that need no table, as (name, function without arguments)."
    for other, check in estimator_checks_generator(_as_if_for_tables(estimator)):
        if _name(check) not in NUMERIC:
            same = estimator if type(other).__name__ == type(estimator).__name__ else other
            yield _name(check), lambda check=check, same=same: check(clone(same))


def fitted(factory, texts, labels):
    return factory().fit(texts, labels)


def check_parameters_round_trip(factory, texts, labels):
    one = factory()
    given = one.get_params()
    assert clone(one).get_params() == given
    assert one.set_params(**given) is one and one.get_params() == given
    with pytest.raises(ValueError):
        one.set_params(no_such_parameter=1)
    known = inspect.signature(type(one).__init__).parameters
    assert sorted(given) == sorted(set(known) - {"self"})


def check_init_sets_parameters_only(factory, texts, labels):
    one = factory()
    assert sorted(vars(one)) == sorted(one.get_params())
    default = type(one)()
    for name, parameter in inspect.signature(type(one).__init__).parameters.items():
        if name != "self":
            value = getattr(default, name)
            assert value is parameter.default or value == parameter.default, name


def check_fit_returns_self(factory, texts, labels):
    one = factory()
    assert one.fit(texts, labels) is one


def check_fit_leaves_parameters_alone(factory, texts, labels):
    one = factory()
    before = copy.deepcopy(one.get_params())
    one.fit(texts, labels)
    assert one.get_params() == before
    added = {name for name in vars(one) if name not in before}
    assert all(name.endswith("_") or name.startswith("_") for name in added), sorted(added)


def check_unfitted(factory, texts, labels):
    one = factory()
    for method in ("predict", "predict_proba", "decision_function", "top_ngrams"):
        if hasattr(one, method):
            with pytest.raises(NotFittedError):
                getattr(one, method)(texts)
    with pytest.raises(NotFittedError):
        check_is_fitted(one)
    check_is_fitted(one.fit(texts, labels))


def check_score(factory, texts, labels):
    one = fitted(factory, texts, labels)
    assert is_classifier(one)
    assert one.score(texts, labels) == np.mean(one.predict(texts) == np.asarray(labels))


def check_kinds_of_labels(factory, texts, labels):
    codes = np.unique(labels, return_inverse=True)[1]
    two = codes % 2
    names = np.array([f"class {c}" for c in range(codes.max() + 1)])
    reference = fitted(factory, texts, codes).predict(texts)
    kinds = (codes + 5, (codes - 3).astype(np.int8), names[codes], names[codes].astype(object))
    for y in (*kinds, names[codes].tolist(), pd.Series(names[codes], index=codes)):
        one = fitted(factory, texts, y)
        assert one.classes_.tolist() == sorted(set(np.asarray(y).tolist()))
        found = np.searchsorted(one.classes_, one.predict(texts))
        assert (found == reference).all(), "the names of the classes change the prediction"
    one = fitted(factory, texts, two.astype(bool))
    assert one.classes_.tolist() == [False, True] and one.predict(texts).dtype == bool


def check_many_classes(factory, texts, labels):
    y = [i % 11 for i in range(22)]
    some = [f"{text} w{c}" for text, c in zip(texts * 22, y, strict=False)]
    one = fitted(factory, some, y)
    proba = one.predict_proba(some)
    assert proba.shape == (22, 11) and np.allclose(proba.sum(1), 1, atol=1e-5)


def check_probabilities(factory, texts, labels):
    two = (np.unique(labels, return_inverse=True)[1] > 0).astype(int)
    for y in (labels, two):
        one = fitted(factory, texts, y)
        proba = one.predict_proba(texts)
        assert proba.shape == (len(texts), len(one.classes_)) and (proba >= 0).all()
        assert np.isfinite(proba).all() and np.allclose(proba.sum(1), 1, atol=1e-5)
        assert (one.classes_[proba.argmax(1)] == one.predict(texts)).all()
        if hasattr(one, "decision_function"):
            margins = one.decision_function(texts)
            assert margins.shape == ((len(texts),) if len(one.classes_) == 2 else proba.shape)
            best = margins > 0 if margins.ndim == 1 else margins.argmax(1)
            assert (best == proba.argmax(1)).all()


def check_containers(factory, texts, labels):
    reference = fitted(factory, texts, labels).predict_proba(texts)
    series = pd.Series(texts, index=np.arange(len(texts))[::-1] * 3)
    for X in (tuple(texts), np.array(texts), np.array(texts, object), series):
        one = fitted(factory, X, np.asarray(labels))
        np.testing.assert_allclose(one.predict_proba(X), reference, rtol=1e-5, atol=1e-6)


def check_hostile_texts(factory, texts, labels):
    one = fitted(factory, texts, labels)
    odd = ["", "   ", "。，", "😀", "\ud800", "\x00", "e\u0301" * 50, "unseen xqzw", "水" * 3000]
    proba = one.predict_proba(odd)
    assert np.isfinite(proba).all() and np.allclose(proba.sum(1), 1, atol=1e-5)
    mixed = fitted(factory, [*texts, *odd], [*labels, *([labels[0]] * len(odd))])
    assert len(mixed.predict(odd)) == len(odd)


def check_bad_input(factory, texts, labels):
    one = factory()
    n = len(texts)
    bad = [("one string", labels), ([[t] for t in texts], labels), (np.zeros((n, 2)), labels)]
    bad += [([], []), ([*texts[:-1], None], labels), ([*texts[:-1], 1.5], labels)]
    bad += [(texts, labels[:-1]), (texts, [labels[0]] * n), (texts, None)]
    bad += [(texts, [float("nan")] * n), (texts, [[c] for c in labels]), (texts, np.zeros((n, 2)))]
    bad += [(texts, np.linspace(0, 1, n)), (np.zeros(n, complex), labels), (iter(texts), labels)]
    for X, y in bad:
        with pytest.raises(ValueError) as caught:
            one.fit(X, y)
        assert "\n" not in str(caught.value)
    one.fit(texts, labels)
    for X in ("one string", [[t] for t in texts], np.zeros((n, 2)), [None], []):
        for method in (one.predict, one.predict_proba):
            with pytest.raises(ValueError):
                method(X)


def check_each_text_for_itself(factory, texts, labels):
    "A prediction depends neither on the order of the texts nor on the company."
    one = fitted(factory, texts, labels)
    whole = one.predict_proba(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = one.predict_proba([texts[i] for i in order])
    np.testing.assert_allclose(shuffled, whole[order], rtol=1e-4, atol=1e-5)
    single = np.vstack([one.predict_proba([text]) for text in texts])
    np.testing.assert_allclose(single, whole, rtol=1e-4, atol=1e-5)


def _state(one):
    return {name: joblib.hash(value) for name, value in vars(one).items()}


def check_prediction_changes_nothing(factory, texts, labels):
    one = fitted(factory, texts, labels)
    before = _state(one)
    first = one.predict_proba(texts)
    one.predict(texts)
    assert _state(one) == before
    np.testing.assert_array_equal(first, one.predict_proba(texts))


def check_fit_twice(factory, texts, labels):
    "The same random_state gives the same model, in the same object and in a clone."
    one = fitted(factory, texts, labels)
    first = one.predict_proba(texts)
    np.testing.assert_allclose(one.fit(texts, labels).predict_proba(texts), first, atol=1e-6)
    for other in (factory(), clone(one)):
        again = other.fit(texts, labels).predict_proba(texts)
        np.testing.assert_allclose(again, first, atol=1e-6)


def check_refit_forgets(factory, texts, labels):
    one = fitted(factory, texts, labels)
    other = [f"z{c}" for c in np.unique(labels, return_inverse=True)[1] % 2]
    again = one.fit(texts[::-1], other)
    fresh = fitted(factory, texts[::-1], other)
    assert again.classes_.tolist() == fresh.classes_.tolist() == ["z0", "z1"]
    np.testing.assert_allclose(again.predict_proba(texts), fresh.predict_proba(texts), atol=1e-6)


def check_input_is_not_modified(factory, texts, labels):
    X, y = np.array(texts, object), np.array(labels)
    before = X.tolist(), y.tolist()
    X.flags.writeable = y.flags.writeable = False
    fitted(factory, X, y).predict_proba(X)
    assert (X.tolist(), y.tolist()) == before


def check_pipeline(factory, texts, labels):
    alone = fitted(factory, texts, labels).predict_proba(texts)
    piped = make_pipeline(FunctionTransformer(), factory()).fit(texts, labels)
    np.testing.assert_allclose(piped.predict_proba(texts), alone, atol=1e-6)


def check_model_selection(factory, texts, labels):
    scores = cross_val_score(factory(), texts, labels, cv=2, error_score="raise")
    assert scores.shape == (2,) and np.isfinite(scores).all()
    name = "random_state" if "random_state" in factory().get_params() else None
    grid = {name: [0, 1]} if name else {}
    search = GridSearchCV(factory(), grid, cv=2, error_score="raise").fit(texts, labels)
    assert len(search.predict(texts)) == len(texts)


def check_no_n_features_in(factory, texts, labels):
    one = fitted(factory, texts, labels)
    assert not hasattr(one, "n_features_in_") and not hasattr(one, "feature_names_in_")
    assert one.__sklearn_tags__().input_tags.string
    assert not one.__sklearn_tags__().input_tags.two_d_array


def check_size(factory, texts, labels):
    one = fitted(factory, texts, labels)
    assert isinstance(one.n_parameters_, int) and one.n_parameters_ > 0
    assert isinstance(one.size_bytes_, int) and one.size_bytes_ >= one.n_parameters_


def check_joblib(factory, texts, labels):
    one = fitted(factory, texts, labels)
    expected = one.predict_proba(texts)
    with io.BytesIO() as file:
        joblib.dump(one, file)
        file.seek(0)
        restored = joblib.load(file)
    np.testing.assert_array_equal(restored.predict_proba(texts), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).predict_proba(texts), expected)


CHECKS = [f for name, f in sorted(globals().items()) if name.startswith("check_")
          and getattr(f, "__module__", None) == __name__]


def run_checks(factory, texts, labels, skip=None):
    "Run all of `CHECKS` but those in `skip` (a dict: name -> reason), then scikit-learn's own."
    skip = skip or {}
    assert all(isinstance(reason, str) and reason for reason in skip.values())
    unknown = set(skip) - {f.__name__ for f in CHECKS}
    assert not unknown, f"no such checks: {unknown}"
    for check in CHECKS:
        if check.__name__ not in skip:
            check(factory, list(texts), list(labels))
    for _, check in sklearn_checks(factory()):
        check()
