"""exports/ as a run leaves them, read by `datasets`, which all these trainers read with."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import preference_files, preferences
from pipelines.runtime.run_directory import RunDirectory
from rgtg import storage
from rgtg.errors import UserError
from rgtg.methods import EXPORTS
from rgtg.preferences.steps import Step
from rgtg.schemas import MESSAGES

ALL = {"preferences.export": f"[{','.join(EXPORTS)}]"}
HOSTILE = [
    '</script><img src=x onerror=alert(1)> "quoted" \\ud800 {"role": "user"}',
    "one\u2028two\u2029three\x85four\x1cfive\r\nsix\vseven",
    "\u202eright to left\u202c \u200f\u061c \ufeff\ufffe",
    "NUL \0 and escape \x1b[2J \x9b2J \x7f",
    "a" * 100_000,
    "𝄞 é 字 \U0010ffff",
    "2020-01-01 00:00:00",
]


def prompts(kind, texts):
    return texts if kind == "text" else [[{"role": "user", "content": text}] for text in texts]


def types(kind):
    return () if kind == "text" else (MESSAGES,)


def loaded(directory, name):
    return {split: rows.to_list() for split, rows in datasets.load_dataset(directory.path("exports", name)).items()}


def contents(directory):
    """The bytes of every file of preferences/ and exports/, by path."""
    root = Path(directory.uri)
    files = [*root.glob("preferences/**/*"), *root.glob("exports/**/*")]
    return {str(file.relative_to(root)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("select", ["best-worst", "ranked"])
@pytest.mark.parametrize("kind", ["text", "messages"])
def test_all_exports_hold_the_splits_of_the_preferences(finished, kind, select):
    rows = [(prompt, [("a", 1.0), ("b", 3.0), ("c", 0.0)]) for prompt in prompts(kind, [f"p{i}" for i in range(60)])]
    changes = {"preferences.test_fraction": 0.2, "preferences.select": select}
    directory = preferences.run(finished(rows, *types(kind), **changes, **ALL))
    ids = {
        split: [row["prompt_id"] for row in pairs]
        for split, pairs in datasets.load_dataset(directory.path("preferences")).items()
    }
    counts = directory.counts(preferences.STAGE)["exports"]
    for name in EXPORTS:
        found = loaded(directory, name)
        sides = {"unpaired": 2, "stepwise": 3 if select == "ranked" else 2}.get(name, 1)
        assert {split: [row["prompt_id"] for row in of] for split, of in found.items()} == {
            split: [i for i in of for _ in range(sides)] for split, of in ids.items()
        }
        assert counts[name] == {split: len(of) for split, of in found.items()}


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_hostile_texts_come_back_as_they_were(finished, kind):
    given = prompts(kind, HOSTILE)
    rows = [(prompt, [(text + " w", 1.0), (text, 3.0)]) for prompt, text in zip(given, HOSTILE, strict=True)]
    changes = {"preferences.test_fraction": 0, "preferences.max_similarity": 1.0}
    directory = preferences.run(finished(rows, *types(kind), **changes, **ALL))
    chats = [[{"role": "user", "content": text}] for text in HOSTILE]
    pairs = loaded(directory, "chat-pairs")["train"]
    assert [row["prompt"] for row in pairs] == chats
    assert [row["chosen"]["content"] for row in pairs] == HOSTILE
    assert [row["rejected_response"] for row in pairs] == [f"{text} w" for text in HOSTILE]
    ranks = loaded(directory, "ranked")["train"]
    assert [row["context"] for row in ranks] == chats
    assert [row["completions"][0]["completion"][0]["content"] for row in ranks] == HOSTILE
    assert [row["prompt"] for row in loaded(directory, "unpaired")["train"]][::2] == given
    stepwise = loaded(directory, "stepwise")["train"]
    assert ["".join(row["completions"]) for row in stepwise][::2] == HOSTILE
    supervised = loaded(directory, "sft")["train"]
    texts = [row["completion"] if kind == "text" else row["messages"][-1]["content"] for row in supervised]
    assert texts == HOSTILE


def test_no_export_by_default_and_those_no_longer_named_go_away(finished, configure):
    rows = [("p", [("a", 1.0), ("b", 3.0)])]
    directory = preferences.run(finished(rows))
    assert not storage.exists(directory.path("exports"))
    preferences.run(configure(**{"preferences.export": "[sft,ranked,sft]"}))
    folder = Path(directory.path("exports"))
    assert {path.name for path in folder.iterdir()} == {"sft", "ranked"}
    preferences.run(configure(**{"preferences.export": "unpaired"}))
    assert {path.name for path in folder.iterdir()} == {"unpaired"}
    preferences.run(configure())
    assert not folder.exists()


def test_a_split_without_rows_is_no_folder_and_no_data_set_of_llama_factory(finished):
    directory = preferences.run(finished([("p", [("a", 1.0), ("b", 3.0)])], **{"preferences.test_fraction": 0}, **ALL))
    for name in EXPORTS:
        assert [path.name for path in Path(directory.path("exports", name)).iterdir() if path.is_dir()] == ["train"]
    info = json.loads(Path(directory.path("exports", "chat-pairs", "dataset_info.json")).read_text())
    assert info == {
        "preferences": {
            **{"file_name": "train", "formatting": "sharegpt", "ranking": True},
            "columns": {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"},
            "tags": {
                **{"role_tag": "role", "content_tag": "content"},
                **{"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"},
            },
        }
    }


def test_the_same_bytes_again_and_of_completions_in_other_files(finished, configure, monkeypatch):
    monkeypatch.setattr(preference_files, "GROUP_ROWS", 7)
    changes = {"preferences.test_fraction": 0.3, **ALL}
    config = finished([(f"p{i}", [("a", 1.0), ("b", 3.0 + i)]) for i in range(50)], **changes)
    directory = preferences.run(config)
    first = contents(directory)
    preferences.run(configure(**{"preferences.test_fraction": 0.1}))
    assert contents(directory).keys() != first.keys()
    place = Path(directory.path("completions"))
    whole = pq.read_table(place / "part.parquet")
    (place / "part.parquet").unlink()
    for start in range(0, 50, 9):
        pq.write_table(whole[start : start + 9], place / f"part-{start:02d}.parquet")
    preferences.run(configure(**changes))
    assert contents(directory) == first


def test_files_are_of_a_bounded_number_of_rows_and_bytes(finished, configure, monkeypatch):
    monkeypatch.setattr(preference_files, "GROUP_ROWS", 2)
    monkeypatch.setattr(preference_files, "FILE_ROWS", 6)
    config = finished(
        [(f"p{i}", [("a", 1.0), ("b", 3.0)]) for i in range(10)], **{"preferences.test_fraction": 0, **ALL}
    )
    directory = preferences.run(config)
    files = {
        name: sorted(path.name for path in Path(directory.path("exports", name, "train")).iterdir())
        for name in EXPORTS
    }
    assert files["sft"] == [f"{i:05d}.parquet" for i in range(2)]
    assert files["unpaired"] == [f"{i:05d}.parquet" for i in range(4)]
    assert files["ranked"] == files["chat-pairs"] == [f"{i:05d}.jsonl" for i in range(2)]
    first = Path(directory.path("exports", "ranked", "train", "00000.jsonl"))
    assert first.read_bytes().count(b"\n") == 6
    monkeypatch.setattr(preference_files, "FILE_BYTES", 1)
    preferences.run(configure(**{"preferences.test_fraction": 0, "preferences.export": "ranked"}))
    assert first.read_bytes().count(b"\n") == 2
    assert len(loaded(directory, "ranked")["train"]) == 10


@pytest.mark.parametrize("done", [0, 1, 3, 9])
def test_a_stage_that_was_stopped_writes_all_of_them_again(finished, configure, monkeypatch, done):
    changes = {"preferences.test_fraction": 0.3, **ALL}
    config = finished([(f"p{i}", [("a", 1.0), ("b", 3.0 + i)]) for i in range(30)], **changes)
    write, written = storage.write_bytes, []

    def stop(uri, data):
        if "/preferences/" in uri or "/exports/" in uri:
            if len(written) == done:
                raise KeyboardInterrupt
            written.append(uri)
        write(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", stop)
        with pytest.raises(KeyboardInterrupt):
            preferences.run(config)
    assert not RunDirectory(config).is_done(preferences.STAGE)
    resumed = contents(preferences.run(config))
    assert len(resumed) == 2 * (1 + len(EXPORTS)) + 1
    preferences.run(configure())
    assert contents(preferences.run(config)) == resumed  # never stopped


def test_the_card_says_how_to_load_each(finished, configure):
    directory = preferences.run(finished([("p", [("a", 1.0), ("b", 3.0)])], **ALL))
    card = Path(directory.path("report"), "README.md").read_text()
    for name, export in EXPORTS.items():
        assert f"* `exports/{name}`: {export.loads}\n" in card
    preferences.run(configure())
    assert "exports/" not in Path(directory.path("report"), "README.md").read_text()


def test_exports_go_to_a_store(s3):
    row = {"prompt": "p", "prompt_id": "i", "chosen": "b", "rejected": "a"}
    exports = preference_files.ExportFiles(f"{s3}/exports", list(EXPORTS), pa.string())
    steps = {"rendered": "p", "steps": [[Step("b", 1.0, True)]]}
    exports.add("train", [row | {"score_chosen": 1.0, "score_rejected": 0.0} | steps])
    assert exports.close()["unpaired"] == {"train": 2, "test": 0}
    found = {file.path.partition("/exports/")[2] for file in storage.list_files(f"{s3}/exports")}
    written = {f"{name}/train/00000.{export.suffix}" for name, export in EXPORTS.items()}
    assert found == {"chat-pairs/dataset_info.json", *written}
    preference_files.ExportFiles(f"{s3}/exports", [], pa.string())
    assert not storage.exists(f"{s3}/exports")


def test_steps_need_the_reward_of_every_token(finished, configure):
    config = finished([("p", [("a", 1.0), ("b", 3.0)])])
    path = Path(RunDirectory(config).path("completions"), "part.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    for completion in rows[0]["completions"]:
        completion["token_rewards"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(
        UserError, match="export=stepwise needs the reward of every token, which no completion of .* has"
    ):
        preferences.run(configure(**{"preferences.export": "stepwise"}))
    assert not RunDirectory(config).is_done(preferences.STAGE)


def test_steps_of_messages_stand_behind_the_prompt_as_the_model_has_read_it(finished):
    prompt = [{"role": "user", "content": "hi"}]
    config = finished(
        [(prompt, [("Bad. Bad", 1.0), ("No.\nno", 3.0)])],
        MESSAGES,
        **{"preferences.test_fraction": 0, "preferences.export": "stepwise"},
    )
    chosen, rejected = loaded(preferences.run(config), "stepwise")["train"]
    assert chosen == {
        **{"prompt": "u:hi;a:", "completions": ["No.\n", "no"], "labels": [False, False], "rewards": [-2.0, -3.0]},
        "prompt_id": "id-0",
    }
    assert (rejected["prompt"], rejected["completions"]) == ("u:hi;a:", ["Bad.", " Bad"])
