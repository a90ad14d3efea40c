"""Writes tests/fixtures/metrics_golden.json: generated cases, judged by scikit-learn, scipy and transformers.

Run by hand when a metric or a case is added, in an environment of its own:
    pip install scikit-learn scipy "transformers<5"
    python scripts/peers/metrics_golden.py tests/fixtures/metrics_golden.json
An invalid prediction is -1 in the file, and one label more to scikit-learn. transformers holds SQuAD's script (its
squad_metrics module left with version 5).
"""

import json
import platform
import random
import sys

import numpy
import scipy
import scipy.stats
import sklearn
import transformers
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers.data.metrics.squad_metrics import compute_exact, compute_f1, normalize_answer

random.seed(20)


def classification():
    for case in range(48):
        classes = random.choice([2, 2, 2, 3, 4])
        size = random.choice([1, 2, 5, 20, 77])
        skew = [random.random() ** 3 + 0.01 for _ in range(classes)]
        invalid = random.choice([0.0, 0.0, 0.1, 0.5, 1.0])
        agreement = random.choice([0.0, 0.3, 0.8, 1.0])
        labels = random.choices(range(classes), skew, k=size)
        predictions = [
            -1 if random.random() < invalid
            else label if random.random() < agreement
            else random.randrange(classes)
            for label in labels
        ]
        groups = [random.randrange(1 + size // 3) for _ in labels]
        to_sklearn = [classes if prediction < 0 else prediction for prediction in predictions]
        right = {}
        for prediction, label, group in zip(predictions, labels, groups):
            right.setdefault(group, []).append(prediction == label)
        yield {
            "classes": classes,
            "predictions": predictions,
            "labels": labels,
            "groups": groups,
            "accuracy": float(accuracy_score(labels, to_sklearn)),
            "f1": float(f1_score(labels, to_sklearn, labels=[1], average="macro", zero_division=0)),
            "macro-f1": float(
                f1_score(labels, to_sklearn, labels=list(range(classes)), average="macro", zero_division=0)
            ),
            "matthews": float(matthews_corrcoef(labels, to_sklearn)),
            "question-exact-match": float(numpy.mean([all(answers) for answers in right.values()])),
        }


def correlation():
    for case in range(32):
        size = random.choice([2, 3, 10, 60, 300])
        ties = random.choice([False, True])
        slope = random.choice([-1.0, 0.0, 0.5, 5.0])
        references = [random.uniform(0, 5) for _ in range(size)]
        predictions = [slope * reference + random.gauss(0, 1) for reference in references]
        if ties:
            references = [round(value) for value in references]
            predictions = [round(value) for value in predictions]
        # The generation that is no number stands at -1.
        predictions = [None if random.random() < random.choice([0.0, 0.1]) else value for value in predictions]
        numbers = [-1.0 if value is None else value for value in predictions]
        if len(set(numbers)) < 2 or len(set(references)) < 2:
            continue
        yield {
            "predictions": predictions,
            "references": references,
            "pearson": float(scipy.stats.pearsonr(numbers, references)[0]),
            "spearman": float(scipy.stats.spearmanr(numbers, references)[0]),
        }


WORDS = [
    "the", "The", "a", "an", "AN", "cat", "Cat", "Größe", "naïve", "U.S.", "u s", "1945", "1,945", "e-mail", "C_D",
    "“quoted”", "“the”", "don't", "—", "İstanbul", "ΣΊΣΥΦΟΣ", "नमस्ते", "日本", "a\u0301", "the\u00a0end", "½", "x\u2009y", "\t",
    "...", "theatre", "another", "ab\x1fthe",
]


def text():
    return random.choice([" ", " ", ", "]).join(random.choices(WORDS, k=random.randrange(1, 7)))


def answers():
    for case in range(48):
        predictions, references = [], []
        while len(predictions) < random.choice([1, 4, 9]):
            accepted = [text() for _ in range(random.randrange(1, 4))]
            # Versions 1.1 and 2.0 of the script differ on text that is empty once normalised.
            if any(not normalize_answer(answer).split() for answer in accepted):
                continue
            words = random.choice(accepted).split(" ")
            random.shuffle(words)
            predictions.append(random.choice([random.choice(accepted), " ".join(words), text(), ""]))
            references.append(accepted)
        pairs = list(zip(predictions, references))
        yield {
            "predictions": predictions,
            "references": references,
            "normalised": [normalize_answer(prediction) for prediction in predictions],
            "exact-match": sum(max(compute_exact(r, p) for r in accepted) for p, accepted in pairs) / len(pairs),
            "answer-f1": sum(max(compute_f1(r, p) for r in accepted) for p, accepted in pairs) / len(pairs),
        }


golden = {
    "versions": {
        "python": platform.python_version(),
        "scikit-learn": sklearn.__version__,
        "scipy": scipy.__version__,
        "numpy": numpy.__version__,
        "transformers": transformers.__version__,
    },
    "classification": list(classification()),
    "correlation": list(correlation()),
    "answers": list(answers()),
}
with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.write("{\n")
    file.write(f'"versions": {json.dumps(golden["versions"])}')
    for kind in ["classification", "correlation", "answers"]:
        lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in golden[kind])
        file.write(f',\n"{kind}": [\n{lines}\n]')
    file.write("\n}\n")
