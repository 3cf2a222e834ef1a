"""What is published names no machine, bucket or user."""

import pytest

from rgtg.report.places import places_of, scrubbed, without_places


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ("/home/alice/prompts.jsonl", "prompts.jsonl"),
        ("/home/alice", "a directory"),
        ("/Users/alice/", "a directory"),
        ("~alice", "a directory"),
        ("~/runs", "runs"),
        ("../alice/../runs/", "runs"),
        ("..", "a directory"),
        ("s3://alice", "a directory"),
        ("s3://alice/", "a directory"),
        ("s3://alice/a b/prompts", "prompts"),
        ("file:///home/alice", "a directory"),
        ("hdfs://alice@host:9000/runs", "runs"),
        ("https://alice.internal/v1", "an endpoint"),
        ("cannot read '/home/alice/x.parquet': denied", "cannot read 'x.parquet': denied"),
        ("copied from s3://alice/x, then ~/alice/y", "copied from x, then y"),
        ("sha256:00 on /srv/alice/base", "sha256:00 on base"),
        ("see https://alice.internal/v1", "see an endpoint"),
    ],
)
def test_a_place_is_its_last_name(given, published):
    assert without_places(given) == published
    assert without_places({"a": [given], given: 1}) == {"a": [published], published: 1}


@pytest.mark.parametrize(
    "text", ["org/model", f"org/model@{'a' * 40}", "</s>", "12 tokens/s", "and/or", "1 / 2", "pargs beta=0.5", "1.0"]
)
def test_other_text_stays(text):
    assert without_places(text) == text


def test_a_page_is_scrubbed_of_what_the_run_names():
    places = places_of([{"/srv/a&b/runs": {"x": ["s3://alice/p/q.parquet", "/", ".", "org/model"]}}])
    assert places == {"/srv/a&b/runs", "s3://alice/p/q.parquet"}
    page = "<p>/srv/a&amp;b/runs/1 and s3://alice/p/q.parquet, by org/model</p>"
    assert scrubbed(page, places) == "<p>runs/1 and q.parquet, by org/model</p>"
