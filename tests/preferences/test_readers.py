"""Every format of preference data, and every reason why a row is no pair."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgtg.preferences.readers import PAIR_COLUMNS, Pair, read_pair, read_pairs


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
SKY = user("What colour is the sky?")
NOT_SHARED = "the pair does not share its prompt"
HELD_BY_BOTH = "prompt is null, but chosen and rejected hold it: drop that column to read them"
ONE_EACH = "there is no prompt: chosen and rejected hold one message each"
ALIKE = "chosen and rejected differ in white space at their ends, line ends or Unicode form alone"
SYSTEMS_DIFFER = "the system column and the system turn of the messages differ"
NO_ANSWER = "messages beside rejected_response do not end with an assistant turn"
LOST = "a message of {} has {}, which would be lost: only role and text are read"
TOO_FEW = "fewer than two completions have text and a score"


def annotated(response, *ratings):
    """A completion as in the raw UltraFeedback, whose ratings are text."""
    aspects = ("helpfulness", "honesty", "truthfulness")
    annotations = {
        aspect: {"Rating": rating, "Rationale": "so"} for aspect, rating in zip(aspects, ratings, strict=False)
    }
    return {"model": "m", "response": response, "annotations": annotations}


def overall(response, score, *ratings):
    return {**annotated(response, *ratings), "overall_score": score}


PAIRS = {
    "TRL standard": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        Pair("The sky is", " blue.", " green."),
    ),
    "empty prompt": ({"prompt": "", "chosen": "a", "rejected": "b"}, Pair("", "a", "b")),
    "stated prompt, responses that begin alike": (
        {"prompt": "The sky is", "chosen": " so blue", "rejected": " so green"},
        Pair("The sky is", " so blue", " so green"),
    ),
    "TRL conversational": (
        {"prompt": [SYSTEM, SKY], "chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]},
        Pair([SYSTEM, SKY], "Blue.", "Green."),
    ),
    "stated messages that both conversations repeat": (
        {"prompt": [SKY], "chosen": [SKY, assistant("Blue.")], "rejected": [assistant("Green.")]},
        Pair([SKY], "Blue.", "Green."),
    ),
    "messages as prompt, text as responses": (
        {"prompt": [SKY], "chosen": "Blue.", "rejected": "Green."},
        Pair([SKY], "Blue.", "Green."),
    ),
    "fields of messages that Arrow adds": (
        {
            "prompt": [SKY | {"name": None}],
            "chosen": [assistant("Blue.") | {"name": None}],
            "rejected": [assistant("Green.") | {"name": None}],
        },
        Pair([SKY], "Blue.", "Green."),
    ),
    "TRL implicit standard": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        Pair("The sky is", " blue.", " green."),
    ),
    "implicit, ends before a word shared in part": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        Pair("The sky is", " blue.", " black."),
    ),
    "implicit, one text begins the other": (
        {"chosen": "The sky is", "rejected": "The sky is a lid"},
        Pair("The sky", " is", " is a lid"),
    ),
    "implicit, a line break stays with the prompt": (
        {"chosen": "Q: sky?\nblue", "rejected": "Q: sky?\ngreen"},
        Pair("Q: sky?\n", "blue", "green"),
    ),
    "implicit, parted by unlike spaces": (
        {"chosen": "Say hello\nnow", "rejected": "Say hello twice"},
        Pair("Say hello", "\nnow", " twice"),
    ),
    "TRL implicit conversational": (
        {"chosen": [SYSTEM, SKY, assistant("Blue.")], "rejected": [SYSTEM, SKY, assistant("Green.")]},
        Pair([SYSTEM, SKY], "Blue.", "Green."),
    ),
    "implicit conversational of several turns": (
        {
            "chosen": [SKY, assistant("Blue."), user("Sure?"), assistant("Yes.")],
            "rejected": [SKY, assistant("Blue."), user("Sure?"), assistant("No.")],
        },
        Pair([SKY, assistant("Blue."), user("Sure?")], "Yes.", "No."),
    ),
    "HH-RLHF": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant: Blue.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant: Black.",
        },
        Pair("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant:", " Blue.", " Black."),
    ),
    "binarized UltraFeedback": (
        {
            "prompt": SKY["content"],
            "chosen": [SYSTEM, SKY, assistant("Blue.")],
            "rejected": [SYSTEM, SKY, assistant("Green.")],
            "score_chosen": 8.0,
            "score_rejected": 3.5,
        },
        Pair([SYSTEM, SKY], "Blue.", "Green."),
    ),
    "binarized, the responses alone": (
        {"prompt": SKY["content"], "chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]},
        Pair([SKY], "Blue.", "Green."),
    ),
    "one score unknown is no tie": (
        {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_rating": 4.0, "rejected_rating": None},
        Pair("p", "a", "b"),
    ),
    "instruction with chosen and rejected": (
        {"instruction": SKY["content"], "chosen": "Blue.", "rejected": "Green."},
        Pair([SKY], "Blue.", "Green."),
    ),
    "UltraFeedback by overall score": (
        {
            "instruction": SKY["content"],
            "completions": [overall("Grey.", 5.0, "5"), overall("Blue.", 8.5, "1"), overall("Green.", "2", "3")],
        },
        Pair([SKY], "Blue.", "Green."),
    ),
    "UltraFeedback by mean rating": (
        {
            "instruction": SKY["content"],
            "completions": [
                annotated("Grey.", "3", "N/A", "4"),
                annotated("Green.", "2", "1", "2"),
                annotated("Blue.", "5", None),
            ],
        },
        Pair([SKY], "Blue.", "Green."),
    ),
    "one overall score alone: ratings, not a mixture": (
        {"prompt": "p", "completions": [overall("a", 2.0, "5"), annotated("b", "4")]},
        Pair("p", "a", "b"),
    ),
    "completions without text or score are passed over": (
        {
            "prompt": "p",
            "completions": [overall(None, 9.0), overall("a", 7.0), overall("b", 6.0), overall("c", None), None],
        },
        Pair("p", "a", "b"),
    ),
    "completions and scores as lists": (
        {"prompt": "p", "completions": ["a", "b", "c"], "scores": [0.1, -2.0, 0.3]},
        Pair("p", "c", "b"),
    ),
    "responses and rewards as lists, the first of equals": (
        {"prompt": [SKY], "responses": ["a", "b", "c", "d"], "rewards": [1, 1, 0, 0]},
        Pair([SKY], "a", "c"),
    ),
    "a question is what a user says": (
        {"question": SKY["content"], "chosen": "The answer is blue", "rejected": "The answer is green"},
        Pair([SKY], "The answer is blue", "The answer is green"),
    ),
    "Orca: a system column beside the question": (
        {"system": SYSTEM["content"], "question": SKY["content"], "chosen": "Blue.", "rejected": "Green."},
        Pair([SYSTEM, SKY], "Blue.", "Green."),
    ),
    "an empty system column": (
        {"system": "", "question": SKY["content"], "chosen": "Blue.", "rejected": "Green."},
        Pair([SKY], "Blue.", "Green."),
    ),
    "a system column beside messages": (
        {"system_prompt": SYSTEM["content"], "prompt": [SKY], "chosen": "Blue.", "rejected": "Green."},
        Pair([SYSTEM, SKY], "Blue.", "Green."),
    ),
    "a system column that the conversations repeat": (
        {"system": SYSTEM["content"], "chosen": [SYSTEM, SKY, assistant("Blue.")]}
        | {"rejected": [SYSTEM, SKY, assistant("Green.")]},
        Pair([SYSTEM, SKY], "Blue.", "Green."),
    ),
    "a system column beside whole conversations": (
        {"system": SYSTEM["content"], "prompt": [SKY], "chosen": [SKY, assistant("Blue.")]}
        | {"rejected": [SKY, assistant("Green.")]},
        Pair([SYSTEM, SKY], "Blue.", "Green."),
    ),
    "Alpaca: an instruction and its input": (
        {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"},
        Pair([user("Add.\n1 2")], "3", "4"),
    ),
    "Alpaca without input": (
        {"instruction": "Add 1 2.", "input": "", "chosen": "3", "rejected": "4"},
        Pair([user("Add 1 2.")], "3", "4"),
    ),
    "ShareGPT with one answer each": (
        {"conversations": [{"from": "human", "value": SKY["content"]}]}
        | {"chosen": {"from": "gpt", "value": "Blue."}, "rejected": {"from": "gpt", "value": "Green."}},
        Pair([SKY], "Blue.", "Green."),
    ),
    "messages and one answer each": (
        {"messages": [SYSTEM, SKY], "chosen": assistant("Blue."), "rejected": assistant("Green.")},
        Pair([SYSTEM, SKY], "Blue.", "Green."),
    ),
    "content in parts": (
        {
            "prompt": [
                {"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]}
            ]
        }
        | {"chosen": "Blue.", "rejected": "Green."},
        Pair([user("What is it?")], "Blue.", "Green."),
    ),
    "messages as JSON text": (
        {"prompt": json.dumps([SKY]), "chosen": json.dumps([assistant("Blue.")])}
        | {"rejected": json.dumps([assistant("Green.")])},
        Pair([SKY], "Blue.", "Green."),
    ),
    "JSON that is no messages is text": (
        {"prompt": "Write JSON.", "chosen": '[{"a": "role"}]', "rejected": '{"b": 1}'},
        Pair("Write JSON.", '[{"a": "role"}]', '{"b": 1}'),
    ),
    "ms-swift": (
        {"messages": [SYSTEM, SKY, assistant("Blue.")], "rejected_response": "Green."},
        Pair([SYSTEM, SKY], "Blue.", "Green."),
    ),
    "NeMo-RL: ranked completions": (
        {
            "context": [SKY],
            "completions": [
                {"rank": 1, "completion": [assistant("Green.")]},
                {"rank": 0, "completion": [assistant("Blue.")]},
            ],
        },
        Pair([SKY], "Blue.", "Green."),
    ),
    "distilabel: generations and ratings": (
        {"instruction": SKY["content"], "generations": ["Green.", "Blue."], "ratings": [1.0, 5.0]},
        Pair([SKY], "Blue.", "Green."),
    ),
    "our own rankings": (
        {"prompt": [SKY], "completions": [[assistant("Blue.")], [assistant("Green.")]], "scores": [1.0, 0.5]},
        Pair([SKY], "Blue.", "Green."),
    ),
    "null columns of another format": (
        {"prompt": "p", "chosen": None, "rejected": None, "responses": ["a", "b"], "rewards": [0.0, 1.0]},
        Pair("p", "b", "a"),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_format(name):
    row, pair = PAIRS[name]
    assert read_pair(row) == pair
    assert row.keys() <= PAIR_COLUMNS
    # Wide tables bring other columns, which mean nothing here.
    assert read_pair({**row, "source": "x", "margin": 1.0, "scores": row.get("scores")}) == pair


@pytest.mark.parametrize("name", PAIRS)
def test_format_survives_arrow(name):
    """Struct members that a message lacks come back as nulls."""
    row, pair = PAIRS[name]
    if name != "UltraFeedback by overall score":  # Arrow refuses its mixed scores
        assert read_pair(pa.Table.from_pylist([row]).to_pylist()[0]) == pair


TEXTS = {"prompt": "p", "chosen": "a", "rejected": "b"}
TALKS = {"prompt": [SKY], "chosen": [assistant("a")], "rejected": [assistant("b")]}
WHOLE = {"chosen": [SKY, assistant("a")], "rejected": [SKY, assistant("b")]}
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"}
LISTS = {"prompt": "p", "responses": ["a", "b"], "rewards": [1.0, 0.0]}
REASONS = [
    ({}, "there is neither chosen and rejected nor a list of completions"),
    ({"prompt": "p"}, "there is neither chosen and rejected nor a list of completions"),
    ({"prompt": "p", "chosen": None, "rejected": None}, "chosen is missing"),
    (TEXTS | {"chosen": None}, "chosen is missing"),
    ({"prompt": "p", "chosen": "a"}, "rejected is missing"),
    (TEXTS | {"rejected": 7}, "rejected is neither text nor a list of messages"),
    (TEXTS | {"prompt": {"role": "user"}}, "a message of prompt has no role or no text"),
    (TEXTS | {"rejected": ""}, "rejected is empty or white space"),
    (TEXTS | {"chosen": " \n"}, "chosen is empty or white space"),
    (HH | {"chosen": "\n\nHuman: Hi\n\nAssistant:"}, "chosen is empty or white space"),
    (TEXTS | {"rejected": "a "}, ALIKE),
    (TEXTS | {"chosen": "a\nb", "rejected": "a\r\nb"}, ALIKE),
    (TEXTS | {"chosen": "caf\u00e9", "rejected": "cafe\u0301"}, ALIKE),
    (TEXTS | {"score_chosen": 1.0, "score_rejected": 2.0}, "score_chosen is below score_rejected"),
    (TEXTS | {"chosen_rating": "1", "rejected_rating": "2"}, "chosen_rating is below rejected_rating"),
    (TEXTS | {"context": "c"}, "prompt and context could each be the prompt, or a part of it: leave one of them"),
    (HH | {"system": "s"}, "there is a system column and no prompt"),
    (TALKS | {"prompt": [SYSTEM, SKY], "system": "s"}, SYSTEMS_DIFFER),
    (TALKS | {"system": 7}, "system is not text"),
    (TALKS | {"prompt": [SKY | {"name": "Ann"}]}, LOST.format("prompt", "name")),
    (TALKS | {"prompt": [SKY | {"tool_calls": [{"id": 1}], "id": 3}]}, LOST.format("prompt", "id, tool_calls")),
    (
        TALKS | {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]},
        "a message of prompt holds content of type image_url, and only text is read",
    ),
    (TALKS | {"prompt": [SKY | {"b" * 99: 1}]}, LOST.format("prompt", "b" * 20)),
    (TALKS | {"prompt": [SKY | {"\ud800": 1}]}, LOST.format("prompt", r"\ud800")),
    (
        TALKS | {"prompt": [{"role": "user", "content": [{"type": 10**5000}]}]},
        "a message of prompt holds content of type int, and only text is read",
    ),
    (TALKS | {"prompt": str([SKY])}, "prompt holds messages as text that is not JSON"),
    ({"messages": [SKY], "rejected_response": "b"}, NO_ANSWER),
    ({"messages": [SKY, assistant("a")], "rejected_response": [1]}, "rejected_response is not text"),
    (LISTS | {"responses": [[SKY], [SKY]]}, "a completion is not one message of the assistant"),
    (TEXTS | {"chosen": "\ud800"}, "chosen is not valid Unicode"),
    (TEXTS | {"prompt": "a\udfff"}, "prompt is not valid Unicode"),
    (TEXTS | {"rejected": "a"}, "chosen equals rejected"),
    (TEXTS | {"prompt": None}, "prompt is null"),
    (HH | {"prompt": None}, HELD_BY_BOTH),
    (WHOLE | {"prompt": None}, HELD_BY_BOTH),
    (TALKS | {"prompt": None}, "prompt is null"),
    (TALKS | {"prompt": []}, "prompt is an empty list"),
    (TALKS | {"chosen": []}, "chosen is an empty list"),
    (TALKS | {"chosen": "a"}, "one of chosen and rejected is text, the other messages"),
    (TALKS | {"chosen": [user("a")]}, "chosen does not end with an assistant turn"),
    (TALKS | {"rejected": [assistant("b"), user("c")]}, "rejected does not end with an assistant turn"),
    (TALKS | {"chosen": [assistant("a"), assistant("b")]}, "chosen has several messages behind its prompt"),
    (TALKS | {"rejected": [user("?"), assistant("b")]}, "rejected has several messages behind its prompt"),
    (TALKS | {"rejected": TALKS["chosen"]}, "chosen equals rejected"),
    (TALKS | {"prompt": [{"role": "user", "content": None}]}, "a message of prompt has no role or no text"),
    (TALKS | {"chosen": [{"role": None, "content": None}]}, "a message of chosen has no role or no text"),
    (TALKS | {"chosen": [None]}, "a message of chosen has no role or no text"),
    (TALKS | {"chosen": ["a"]}, "a message of chosen has no role or no text"),
    (TALKS | {"rejected": [assistant("\udc00")]}, "a message of rejected has no role or no text"),
    ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, ONE_EACH),
    (WHOLE | {"rejected": [user("Hi"), assistant("b")]}, NOT_SHARED),
    (WHOLE | {"prompt": "Hi", "rejected": [assistant("b")]}, NOT_SHARED),
    (WHOLE | {"rejected": WHOLE["chosen"]}, "chosen equals rejected"),
    (WHOLE | {"prompt": "p", "score_chosen": 5.0, "score_rejected": 5}, "scores are tied"),
    (WHOLE | {"prompt": "p", "chosen_rating": 4, "rejected_rating": 4.0}, "scores are tied"),
    ({"chosen": "yes", "rejected": "no"}, NOT_SHARED),
    ({"chosen": "", "rejected": "no"}, NOT_SHARED),
    ({"chosen": "same", "rejected": "same"}, "chosen equals rejected"),
    (HH | {"rejected": "\n\nHuman: Ho\n\nAssistant: b"}, NOT_SHARED),
    (HH | {"rejected": "\n\nHuman: Hi"}, NOT_SHARED),
    (HH | {"chosen": HH["chosen"] + "\n\nAssistant: c"}, NOT_SHARED),
    (HH | {"chosen": HH["chosen"] + "\n\nHuman: c"}, "chosen does not end with an assistant turn"),
    (HH | {"rejected": HH["chosen"]}, "chosen equals rejected"),
    (LISTS | {"prompt": None}, "prompt is missing"),
    (LISTS | {"responses": "a"}, "completions is not a list"),
    (LISTS | {"responses": []}, "there is not one score for each completion"),
    (LISTS | {"rewards": None}, "there is not one score for each completion"),
    (LISTS | {"rewards": [1.0]}, "there is not one score for each completion"),
    (LISTS | {"responses": [], "rewards": []}, TOO_FEW),
    (LISTS | {"rewards": [1.0, float("nan")]}, TOO_FEW),
    (LISTS | {"rewards": [True, False]}, TOO_FEW),
    (LISTS | {"rewards": [1.0, 10**400]}, TOO_FEW),
    (LISTS | {"responses": ["a", None]}, TOO_FEW),
    (LISTS | {"rewards": [1, 1.0]}, "scores are tied"),
    (LISTS | {"responses": ["a", "a"]}, "chosen equals rejected"),
    ({"instruction": "i", "completions": [overall("a", 9.0)]}, TOO_FEW),
    ({"instruction": "i", "completions": [annotated("a", "N/A"), annotated("b")]}, TOO_FEW),
    ({"instruction": "i", "completions": [{"response": "a", "annotations": None}, {"annotations": [1]}]}, TOO_FEW),
    ({"instruction": "i", "completions": [overall("a", 9.0), overall("b", 9.0)]}, "scores are tied"),
    ({"instruction": 3, "completions": [overall("a", 9.0)]}, "instruction is neither text nor a list of messages"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), REASONS)
def test_reason(row, reason):
    assert read_pair(row) == reason


def test_read_pairs_keeps_the_order_and_counts_the_rest():
    pairs, reasons = read_pairs(iter([TEXTS, {}, TALKS, HH | {"prompt": None}, {}]))
    assert pairs == [Pair("p", "a", "b"), Pair([SKY], "a", "b")]
    assert reasons == {"there is neither chosen and rejected nor a list of completions": 2, HELD_BY_BOTH: 1}


# Text with surrogates, the markers of transcripts, numbers without bound, nan: what a reader may meet, nested.
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=3),
    st.text(st.characters(), max_size=5), st.sampled_from(["", "assistant", "5", "N/A", HH["chosen"], 10**400]),
)  # fmt: skip
MEMBERS = st.sampled_from(["role", "content", "response", "overall_score", "annotations", "Rating", "type", "x"])
ROLES = st.sampled_from(["user", "assistant"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": SCALARS}), max_size=3)
VALUES = st.recursive(
    SCALARS | MESSAGES | st.just([1e308, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(PAIR_COLUMNS)), VALUES, max_size=6))
def test_no_row_raises(row):
    pair = read_pair(row)
    if isinstance(pair, Pair):
        assert pair.chosen != pair.rejected
        (pair.chosen + pair.rejected).encode()
    else:
        assert isinstance(pair, str)


@settings(max_examples=200, deadline=None)
@given(st.text("ab \n", max_size=8), st.text("ab \n", max_size=5), st.text("ab \n", max_size=5))
def test_an_implicit_prompt_loses_no_text(start, chosen, rejected):
    pair = read_pair({"chosen": start + chosen, "rejected": start + rejected})
    if isinstance(pair, Pair):
        assert pair.prompt + pair.chosen == start + chosen
        assert pair.prompt + pair.rejected == start + rejected


def test_the_sum_of_huge_ratings_is_no_score():
    huge = {aspect: {"Rating": 1.7e308} for aspect in ("helpfulness", "honesty")}
    row = {"prompt": "p", "completions": [{"response": "a", "annotations": huge}, annotated("b", "1")]}
    assert read_pair(row) == TOO_FEW
