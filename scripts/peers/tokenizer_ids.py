"""Writes tests/fixtures/tokenizer_ids.json: ids that Python gives for a few sentences with T5's own tokenizer files.

Usage: python scripts/peers/tokenizer_ids.py FOLDER, where FOLDER holds tokenizer.json and spiece.model of any T5 v1.0.
Needs transformers and sentencepiece. `ids` come from transformers, with the end of sequence; `sentencepiece` is given
where that library, which normalises and breaks ties differently in rare cases, cuts the text in another way.
"""

import json
import pathlib
import sys

import sentencepiece
import transformers

TEXTS = [
    "",
    " ",
    "  \t ",
    "The kettle sings before the water boils.",
    "sst2 sentence: a slow , patient film that rewards its audience .",
    "It cost $1,234.56 (about 30% less) on 12/31/2019!",
    "  leading and trailing blanks   ",
    "two  blanks   three    four",
    "tab\tnewline\ncarriage\rreturn",
    "no\u00a0break\u2009thin\u3000ideographic",
    "zero\u200bwidth\u200djoiner\ufeffmark",
    "caf\u00e9 cafe\u0301 na\u00efve Z\u00fcrich \u00c5ngstr\u00f6m",
    "\ufb01ne \ufb02our o\ufb03ce",
    "\uff26\uff55\uff4c\uff4c\uff57\uff49\uff44\uff54\uff48 \u2460\u2461 \u00bd \u2122",
    "\u4eca\u65e5\u306f\u826f\u3044\u5929\u6c17",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u03ba\u03cc\u03c3\u03bc\u03b5",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\U0001f600\U0001f680 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "x\u0301\u0302\u0303y",
    "control\x01\x02characters\x7f",
    "a\x00b",
    "\u2581 already marked \u2581\u2581twice",
    "<extra_id_0> is to <extra_id_1>",
    "<extra_id_99><extra_id_50>",
    "a pad <pad> inside",
    "unknown <unk> inside",
    "ends in </s>",
    "</s>",
    "xxx aaa eee zzz",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "ALL CAPS and miXed CaSe",
    "https://example.org/a?b=c&d=%20e#f",
    "snake_case camelCase kebab-case",
    "\u201cquotes\u201d \u2018single\u2019 \u2014 dashes \u2013 \u2026",
    "\u00e0\u00e8\u00ec\u00f2\u00f9 \u00df \u0153 \u00e6",
    "\ufb01\u0301 keeps its accent only in one of the libraries",
    "word" * 60,
]


def main():
    folder = pathlib.Path(sys.argv[1])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>")
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
    rows = []
    for text in TEXTS:
        row = {"text": text, "ids": fast(text)["input_ids"]}
        plain = pieces.encode(text) + [pieces.eos_id()]
        if plain != row["ids"]:
            row["sentencepiece"] = plain
        rows.append(row)
    path = pathlib.Path(__file__).parents[2] / "tests" / "fixtures" / "tokenizer_ids.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
