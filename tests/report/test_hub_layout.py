"""Names of files, and what a manifest tells, without a hub."""

from rgtg.report.hub_layout import Table, manifest, tables


def test_shards_know_how_many_they_are():
    names = [
        "exports/ranked/dataset_info.json",
        "exports/ranked/train/00000.jsonl",
        "exports/ranked/train/00000.parquet",  # not of this export
        "exports/sft/test/00000.parquet",
        "preferences/notes.parquet",
        "preferences/test-00000.parquet",
        "preferences/train-00000.parquet",
        "preferences/train-00001.parquet",
    ]
    assert tables(names) == [
        Table("preferences/train-00000.parquet", "data/train-00000-of-00002.parquet"),
        Table("preferences/train-00001.parquet", "data/train-00001-of-00002.parquet"),
        Table("exports/ranked/train/00000.jsonl", "exports/ranked/train/00000.jsonl"),
        Table("exports/ranked/train/00000.jsonl", "ranked/train-00000-of-00001.parquet", "ranked"),
        Table("preferences/test-00000.parquet", "data/test-00000-of-00001.parquet"),
        Table("exports/sft/test/00000.parquet", "exports/sft/test/00000.parquet"),
        Table("exports/ranked/dataset_info.json", "exports/ranked/dataset_info.json"),
    ]


def test_a_manifest_tells_kinds_of_reasons_and_quotes_no_row():
    counts = {
        "rows": 5,
        "unused": {"a role 'alice'": 2, "a role 'bob'": 1},
        "skipped_files": {"/a": "torn", "/b": "torn"},
    }
    stages = {"pairs": {"counts": counts, "seconds": 1.5}, "generate": {"status": "begun"}}
    assert manifest({"format": 1, "stages": stages})["stages"] == {
        "pairs": {"counts": {"rows": 5, "unused": {"a role '...'": 3}, "skipped_files": {"torn": 2}}, "seconds": 1.5},
        "generate": {"status": "begun"},
    }
