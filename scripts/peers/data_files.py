"""Files of rows as pandas, polars, pyarrow and datasets write them.

Usage: data_files.py   (needs pandas, polars, pyarrow, datasets)

Writes one small table to tests/fixtures/data_files in each way that these programs have, reads each file back with the program
that wrote it, and leaves the table and the versions in golden.json: the tests read the same rows from every file.
"""

import csv
import json
import pathlib
import shutil

import datasets
import pandas
import polars
import pyarrow
import pyarrow.parquet

FOLDER = pathlib.Path(__file__).parents[2] / "tests" / "fixtures" / "data_files"
TEXTS = [
    "a slow but honest film",
    'they call it "art", twice',
    "two\nlines",
    "a\ttab, a comma; a semicolon",
    "café – 3 €",
    '"quoted"',
    "  padded ",
]
LABELS = [1, 0, 1, 1, 0, 0, 1]


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS})
    for codec in ["snappy", "gzip", "brotli", "lz4", "zstd"]:
        frame.to_parquet(FOLDER / f"pandas-{codec}.parquet", compression=codec, index=False)
        pandas.testing.assert_frame_equal(pandas.read_parquet(FOLDER / f"pandas-{codec}.parquet"), frame)
    columns = polars.DataFrame({"text": TEXTS, "label": LABELS})
    columns.write_parquet(FOLDER / "polars-default.parquet")
    columns.write_parquet(FOLDER / "polars-lz4.parquet", compression="lz4")
    columns.write_ndjson(FOLDER / "polars.ndjson")
    columns.write_json(FOLDER / "polars.json")
    columns.write_csv(FOLDER / "polars.csv")
    columns.write_csv(FOLDER / "polars.tsv", separator="\t")
    assert polars.read_parquet(FOLDER / "polars-default.parquet").equals(columns)
    table = pyarrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    pictures = pyarrow.array([{"bytes": bytes([0x89, 0xFF, row]), "path": None} for row in range(len(TEXTS))])
    pyarrow.parquet.write_table(table.append_column("image", pictures), FOLDER / "pyarrow-image.parquet", compression="zstd")
    pyarrow.parquet.write_table(table, FOLDER / "pyarrow-v2.parquet", data_page_version="2.0", compression="zstd", use_dictionary=False)
    frame.to_csv(FOLDER / "pandas.csv", index=False)
    frame.to_csv(FOLDER / "pandas-semicolon.csv", index=False, sep=";")
    frame.to_csv(FOLDER / "pandas.tsv", index=False, sep="\t")
    frame[["label", "text"]].to_csv(FOLDER / "pandas-text-last.tsv", index=False, sep="\t")
    frame.to_csv(FOLDER / "pandas-all-quoted.tsv", index=False, sep="\t", quoting=csv.QUOTE_ALL)
    frame.to_csv(FOLDER / "pandas-return.csv", index=False, lineterminator="\r")
    frame.to_csv(FOLDER / "pandas-gz.csv.gz", index=False, compression={"method": "gzip", "mtime": 1})
    frame.to_json(FOLDER / "pandas-records.json", orient="records")
    frame.to_json(FOLDER / "pandas-lines.jsonl", orient="records", lines=True)
    for name, separator in [("pandas.tsv", "\t"), ("pandas-all-quoted.tsv", "\t"), ("pandas-semicolon.csv", ";")]:
        pandas.testing.assert_frame_equal(pandas.read_csv(FOLDER / name, sep=separator), frame)
    loaded = datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS})
    loaded.to_json(FOLDER / "datasets.jsonl")
    loaded.to_parquet(FOLDER / "datasets.parquet")
    loaded.to_csv(FOLDER / "datasets.tsv", sep="\t")
    for name, kind in [("datasets.jsonl", "json"), ("pandas-records.json", "json"), ("datasets.parquet", "parquet")]:
        rows = datasets.load_dataset(kind, data_files=str(FOLDER / name), split="train")
        assert rows["text"][:] == TEXTS and rows["label"][:] == LABELS, name
    versions = {program.__name__: program.__version__ for program in [pandas, polars, pyarrow, datasets]}
    golden = {"versions": versions, "text": TEXTS, "label": LABELS}
    (FOLDER / "golden.json").write_text(json.dumps(golden, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(versions)


if __name__ == "__main__":
    main()
