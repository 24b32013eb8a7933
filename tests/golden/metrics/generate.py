"""Golden artefacts of metrics: scikit-learn and SciPy on random predictions, many of them odd.

Numbers are stored as JSON, whose floats Python and Rust read back to the same bits; null is NaN.
"""

import hashlib
import json
import os
import warnings

import numpy as np
from scipy import stats
from sklearn import metrics as sk

here = os.path.dirname(os.path.abspath(__file__))
warnings.filterwarnings("ignore")  # of undefined figures, which are what is asked for


def plain(value):
    """JSON's types, with null where a float is not finite."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value


def store(name, cases):
    path = os.path.join(here, name)
    text = json.dumps(plain(cases), separators=(",", ":"), allow_nan=False).replace('},{"name"', '},\n{"name"')
    with open(path, "w") as file:
        file.write(text + "\n")
    size, digest = os.path.getsize(path), hashlib.sha256(open(path, "rb").read()).hexdigest()[:16]
    assert size < 500_000, f"{path}: {size} bytes"
    print(f"{name}  {size} bytes  {digest}  {len(cases)} cases")


def correlation(function, a, b):
    return float(function(a, b)[0]) if len(a) > 1 else None


def regression_case(name, predictions, targets):
    p, t = np.asarray(predictions, float), np.asarray(targets, float)
    mse = sk.mean_squared_error(t, p)
    return dict(name=name, predictions=p, targets=t, mae=sk.mean_absolute_error(t, p), mse=mse,
                rmse=sk.root_mean_squared_error(t, p), r2=sk.r2_score(t, p),
                pearson=correlation(stats.pearsonr, p, t), spearman=correlation(stats.spearmanr, p, t))


def regression_cases(rng):
    cases = [
        regression_case("one sample", [1.5], [1.0]),
        regression_case("one sample, right", [1.0], [1.0]),
        regression_case("constant targets, right", [2.0] * 5, [2.0] * 5),
        regression_case("constant targets, wrong", [2.0, 2.5, 2.0], [2.0] * 3),
        regression_case("constant predictions", [3.0] * 4, [1.0, 2.0, 3.0, 4.0]),
        regression_case("two samples", [1.0, 4.0], [2.0, 3.0]),
    ]
    for n in (2, 3, 10, 57, 300):
        t = rng.normal(size=n)
        cases.append(regression_case(f"noise, {n}", t + rng.normal(size=n), t))
        cases.append(regression_case(f"unrelated, {n}", rng.normal(size=n), t))
        mpa = rng.lognormal(6, 0.7, size=n)
        cases.append(regression_case(f"MPa, {n}", mpa * rng.normal(1, 0.2, size=n), mpa))
        whole = rng.integers(-3, 4, size=n).astype(float)
        cases.append(regression_case(f"ties, {n}", np.round(whole + rng.normal(size=n)), whole))
        far = 1e6 + rng.normal(size=n)
        cases.append(regression_case(f"far from zero, {n}", far + rng.normal(size=n) * 0.3, far))
    return cases


def area(scores, positives):
    return sk.roc_auc_score(positives, scores) if 0 < positives.sum() < len(positives) else None


def classification_case(name, probabilities, targets, curve=False):
    """`probabilities` [n, classes] sums to 1 in each row, so that scikit-learn takes it for its own macro AUC."""
    p, t = np.asarray(probabilities, float), np.asarray(targets)
    classes = p.shape[1]
    answers = p.argmax(axis=1)
    # labels=None: a class that occurs neither among targets nor answers is left out of means.
    how = dict(zero_division=0, average="binary" if classes == 2 else "macro")
    each = dict(zero_division=0, average=None, labels=range(classes))
    of_class = [sk.recall_score(t != k, answers != k, zero_division=0) for k in range(classes)]
    occurs = [k for k in range(classes) if (t == k).any() or (answers == k).any()]
    areas = [area(p[:, k], t == k) for k in range(classes)]
    known = [a for a in areas if a is not None]
    auc = areas[1] if classes == 2 else (float(np.mean(known)) if known else None)
    if len(known) == classes:
        own = sk.roc_auc_score(t, p[:, 1]) if classes == 2 else sk.roc_auc_score(t, p, multi_class="ovr", average="macro")
        assert abs(own - auc) < 1e-14
    out = dict(
        name=name, classes=classes, probabilities=p.ravel(), targets=t,
        accuracy=sk.accuracy_score(t, answers), balanced_accuracy=sk.balanced_accuracy_score(t, answers),
        precision=sk.precision_score(t, answers, **how), sensitivity=sk.recall_score(t, answers, **how),
        specificity=of_class[1] if classes == 2 else np.mean([of_class[k] for k in occurs]),
        f1=sk.f1_score(t, answers, **how), auc=auc,
        confusion=sk.confusion_matrix(t, answers, labels=range(classes)),
        per_class=dict(precision=sk.precision_score(t, answers, **each), sensitivity=sk.recall_score(t, answers, **each),
                       specificity=of_class, f1=sk.f1_score(t, answers, **each), auc=areas),
    )
    if curve:
        out["curves"] = [
            None if a is None else dict(zip(("fpr", "tpr", "threshold"), sk.roc_curve(t == k, p[:, k])))
            for k, a in enumerate(areas)
        ]
    return out


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def classification_cases(rng):
    cases = []
    for classes in (2, 3, 7):
        for n in (1, 2, 10, 60, 250 if classes < 7 else 120):
            kinds = {
                "even": np.ones(classes) / classes,
                "rare": np.r_[0.9, np.full(classes - 1, 0.1 / (classes - 1))],
                "last class absent": np.r_[np.ones(classes - 1) / (classes - 1), 0.0],
                "one class alone": np.eye(classes)[0],
            }
            for kind, shares in kinds.items():
                t = rng.choice(classes, size=n, p=shares)
                signal = 1.5 * np.eye(classes)[t]
                # Sixteenths: exact, and full of ties, of the likeliest class too.
                tied = np.stack([rng.multinomial(16, row) for row in softmax(signal)]) / 16
                cases.append(classification_case(f"{classes} classes, {n}, {kind}, ties", tied, t, curve=True))
                if n > 2 and kind in ("even", "rare"):
                    smooth = softmax(signal + rng.normal(size=(n, classes)))
                    curve = n < 100
                    cases.append(classification_case(f"{classes} classes, {n}, {kind}", smooth, t, curve))
        t = np.arange(30) % classes
        cases.append(classification_case(f"{classes} classes, perfect", np.eye(classes)[t], t, curve=True))
        wrong = np.eye(classes)[(t + 1) % classes]
        cases.append(classification_case(f"{classes} classes, all wrong", wrong, t, curve=True))
        never = np.tile(np.eye(classes)[0], (30, 1))
        cases.append(classification_case(f"{classes} classes, one answer", never, t, curve=True))
    return cases


if __name__ == "__main__":
    store("regression.json", regression_cases(np.random.default_rng(2024)))
    store("classification.json", classification_cases(np.random.default_rng(2025)))
