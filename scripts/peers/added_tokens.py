"""Writes tests/fixtures/added_tokens.json: ids that transformers gives where a tokenizer's folder adds tokens of its own.

Usage: python scripts/peers/added_tokens.py FOLDER, first where transformers 4 is installed, then where 5 is (PyTorch is not
needed; sentencepiece and protobuf are). Each case is a small SentencePiece model, given by its pieces, or a tokenizer.json
of the same pieces, with the files that stand beside it; `ids` come from AutoTokenizer of 5, and `four` is given where that
of 4 cuts the text in another way.
"""

import json
import pathlib
import sys

import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "fixtures" / "added_tokens.json"
NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4
PIECES = [("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN), ("\u2581", -2.0, NORMAL)]
PIECES += [(piece, -3.0 - place / 8, NORMAL) for place, piece in enumerate(["\u2581a", "\u2581b", "a", "b", "c", "x", "[", "]"])]
TEXTS = [
    "a [EVENT] b",
    "a[EVENT]b",
    "  [EVENT]  [EVENT] ab",
    "{ a }",
    "a{b}c",
    "[event] a",
    "a \u00c9 b",
    "a <extra_id_0> b",
    "a<extra_id_1>b",
    "<extra_id_0><extra_id_1> a",
    "a </s> b",
    "a <pad> b <unk> c",
    "ends in </s>",
    "ends in [EVENT]",
    "abc xab",
    "word [EVENT]s and s[EVENT]",
    "",
    "Hi \u00e9, \u65e5\u672c \U0001f44e",
    "a\t\u00a0[EVENT] \n<pad>\u2003b",
]


def token(content, **flags):
    plain = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=False)
    return dict(plain, content=content, **flags)


def decoder(first, *tokens):
    return {str(first + place): token for place, token in enumerate(tokens)}


def sentinels(kind, mark=""):
    return [(f"{mark}<extra_id_{number}>", -9.0, kind) for number in (1, 0)]


def cases():
    """Name, pieces, and the files beside them."""
    base = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    none = dict(base, extra_ids=0)
    end = len(PIECES)
    yield "plain", PIECES, {}
    yield "no sentinels", PIECES, {"tokenizer_config.json": none}
    yield "two sentinels", PIECES, {"tokenizer_config.json": dict(base, extra_ids=2)}
    three = [token("{"), token("}"), token("[EVENT]", special=True)]
    yield "added_tokens_decoder", PIECES, {
        "tokenizer_config.json": dict(
            none, added_tokens_decoder=decoder(end, *three), additional_special_tokens=["[EVENT]"]
        )
    }
    yield "added_tokens.json", PIECES, {
        "tokenizer_config.json": none,
        "added_tokens.json": {"{": end, "}": end + 1, "[EVENT]": end + 2},
    }
    yield "added_tokens.json and special_tokens_map.json", PIECES, {
        "tokenizer_config.json": none,
        "added_tokens.json": {"[EVENT]": end},
        "special_tokens_map.json": {
            "additional_special_tokens": ["[EVENT]"],
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
    }
    yield "additional_special_tokens alone", PIECES, {
        "tokenizer_config.json": dict(none, additional_special_tokens=["[EVENT]"])
    }
    for flags in ("lstrip", "rstrip", "normalized", "single_word", "special"):
        yield flags, PIECES, {
            "tokenizer_config.json": dict(none, added_tokens_decoder=decoder(end, token("[EVENT]", **{flags: True})))
        }
    yield "lstrip and rstrip", PIECES, {
        "tokenizer_config.json": dict(
            none, added_tokens_decoder=decoder(end, token("[EVENT]", lstrip=True, rstrip=True, special=True))
        )
    }
    yield "behind the sentinels", PIECES, {
        "tokenizer_config.json": dict(base, extra_ids=2, added_tokens_decoder=decoder(end + 2, *three))
    }
    yield "sentinels among the added tokens", PIECES, {
        "tokenizer_config.json": dict(
            base,
            extra_ids=2,
            additional_special_tokens=["<extra_id_0>", "<extra_id_1>"],
            added_tokens_decoder=decoder(
                end, token("<extra_id_1>", special=True), token("<extra_id_0>", special=True), *three
            ),
        )
    }
    for name, kind in (("normal", NORMAL), ("user-defined", USER)):
        for marked in ("", "\u2581"):
            held = PIECES + sentinels(kind, marked)
            about = f"{name} {'marked ' if marked else ''}sentinels in the vocabulary"
            yield about, held, {}
            yield f"{about}, extra_ids 0", held, {"tokenizer_config.json": none}
            yield f"{about}, extra_ids 2", held, {"tokenizer_config.json": dict(base, extra_ids=2)}
    yield "user-defined pieces", PIECES + [("[EVENT]", 0.0, USER), ("{", 0.0, USER)], {"tokenizer_config.json": none}
    yield "a piece made an added token", PIECES, {
        "tokenizer_config.json": dict(none, added_tokens_decoder=decoder(10, token("["), token("]")))
    }
    yield "legacy false", PIECES, {
        "tokenizer_config.json": dict(
            none, legacy=False, added_tokens_decoder=decoder(end, token("[EVENT]", special=True))
        )
    }


def fast(pieces, *added):
    """A tokenizer.json of these pieces, with these added tokens beside the usual three."""
    usual = [token(content, special=True) for content in ("<pad>", "</s>", "<unk>")]
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [dict(one, id=place) for place, one in enumerate(usual)] + list(added),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": None,
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "byte_fallback": False,
            "vocab": [[text, score] for text, score, _ in pieces],
        },
    }


def fast_cases():
    base = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    held = PIECES + sentinels(NORMAL)
    yield "json, no sentinels", fast(PIECES), {}
    yield "json, no sentinels, extra_ids 0", fast(PIECES), {"tokenizer_config.json": dict(base, extra_ids=0)}
    yield "json, sentinels in the vocabulary", fast(held), {}
    yield "json, sentinels in the vocabulary, extra_ids 2", fast(held), {
        "tokenizer_config.json": dict(base, extra_ids=2)
    }
    yield "json, sentinels in the vocabulary, extra_ids 0", fast(held), {
        "tokenizer_config.json": dict(base, extra_ids=0)
    }
    yield "json, another class", fast(held), {
        "tokenizer_config.json": dict(base, tokenizer_class="PreTrainedTokenizerFast")
    }
    yield "json, additional_special_tokens", fast(held), {
        "tokenizer_config.json": dict(base, extra_ids=0, additional_special_tokens=["[EVENT]", "<extra_id_0>"])
    }
    yield "json, added_tokens_decoder", fast(PIECES), {
        "tokenizer_config.json": dict(
            base, extra_ids=0, added_tokens_decoder=decoder(len(PIECES), token("[EVENT]", lstrip=True), token("{"))
        )
    }
    yield "json, added tokens of its own", fast(
        PIECES, dict(token("[EVENT]", rstrip=True, special=True), id=len(PIECES))
    ), {"tokenizer_config.json": dict(base, extra_ids=0)}


def byte_cases():
    base = {"tokenizer_class": "ByT5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    yield "bytes", {"tokenizer_config.json": base}
    yield "bytes, named by config.json", {"config.json": {"model_type": "t5", "tokenizer_class": "ByT5Tokenizer"}}
    yield "bytes, extra_ids 0", {"tokenizer_config.json": dict(base, extra_ids=0)}
    yield "bytes, as published", {
        "tokenizer_config.json": dict(
            {
                key: token(text, normalized=True, __type="AddedToken")
                for key, text in (("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>"))
            },
            tokenizer_class="ByT5Tokenizer",
            extra_ids=2,
            additional_special_tokens=["<extra_id_0>", "<extra_id_1>"],
        ),
    }
    for flags in ({}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"special": True}):
        yield f"bytes, added with {' '.join(flags) or 'no flag'}", {
            "tokenizer_config.json": dict(
                base, extra_ids=0, added_tokens_decoder=decoder(384, token("[EVENT]", **flags), token("{"))
            )
        }
    yield "bytes, added_tokens.json", {
        "tokenizer_config.json": dict(base, extra_ids=0),
        "added_tokens.json": {"[EVENT]": 259, "[EV": 260},
    }
    yield "bytes, a list alone", {
        "tokenizer_config.json": dict(base, extra_ids=0, additional_special_tokens=["[EVENT]", "{"])
    }


def model(pieces):
    proto = sentencepiece_model_pb2.ModelProto()
    for text, score, kind in pieces:
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type = 1
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id = 2, -1
    proto.trainer_spec.eos_id, proto.trainer_spec.pad_id = 1, 0
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = True
    proto.normalizer_spec.escape_whitespaces = True
    return proto.SerializeToString()


def encode(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def main():
    work = pathlib.Path(sys.argv[1])
    major = int(transformers.__version__.split(".")[0])
    results = []
    everything = list(cases()) + [(name, None, dict(files, **{"tokenizer.json": json})) for name, json, files in fast_cases()]
    everything += [(name, None, files) for name, files in byte_cases()]
    for number, (name, pieces, files) in enumerate(everything):
        folder = work / f"case-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        if pieces:
            (folder / "spiece.model").write_bytes(model(pieces))
        (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content))
        result = {"name": name, "pieces": pieces, "files": files}
        try:
            result["ids"] = encode(folder)
        except ValueError as error:
            # 5 refuses some of the folders that 4 opens.
            assert major == 5, error
            result["ids"] = None
        results.append(result)
    (work / f"{major}.version").write_text(transformers.__version__)
    (work / f"{major}.json").write_text(json.dumps([result["ids"] for result in results]))
    if major == 5:
        for result, four in zip(results, json.loads((work / "4.json").read_text())):
            # Without 5's word there is none on blanks that are neither a space nor mapped to one: 4 takes them for letters.
            plain = [ids if "\t" not in text else None for text, ids in zip(TEXTS, four)]
            result["ids"] = result["ids"] or plain
            if four != result["ids"]:
                result["four"] = [ids if ids != other else None for ids, other in zip(four, result["ids"])]
        golden = {"transformers": [transformers.__version__, (work / "4.version").read_text()], "texts": TEXTS, "cases": results}
        lines = ",\n".join(json.dumps(result) for result in results)
        head = json.dumps(dict(golden, cases=[]))[:-2]
        GOLDEN.write_text(f"{head}\n{lines}\n]}}\n")
    print(transformers.__version__, tokenizers.__version__)


if __name__ == "__main__":
    main()
