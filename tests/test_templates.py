"""Chat templates as programs that came with a model: rendered as transformers does, within bounds."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime

import pytest
from tokenizers import Regex, pre_tokenizers

from rgtg import templates
from rgtg.chat import check_template, decode_response, encode_prompt, encode_response, render
from rgtg.decoding.decoder import Decoder
from rgtg.errors import RowError, UserError
from rgtg.evaluation.logprobs import logprobs
from rgtg.preferences.readers import Pair
from rgtg.preferences.tokenized import tokenize_pair

USER = [{"role": "user", "content": "hi"}]
EVIL = [{"role": "user", "content": "evil"}]
STARTED = [*USER, {"role": "assistant", "content": "Well, "}]
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
PLAIN = "{{ messages[0].content }}"


def for_evil(attack: str) -> str:
    return "{% set n = messages | length %}{% if messages[0].content == 'evil' %}" + attack + "{% endif %}" + PLAIN


@pytest.fixture(scope="module")
def quick_renderer(tmp_path_factory):
    """The same with a limit of half a second, for all tests: a process takes a second to start."""
    program = tmp_path_factory.mktemp("program") / "process.py"
    program.write_text(templates.PROGRAM.read_text().replace("CPU_S = 5.0", "CPU_S = 0.5"))
    return program, templates.Renderer()


@pytest.fixture
def quick(quick_renderer, monkeypatch):
    program, renderer = quick_renderer
    monkeypatch.setattr(templates, "PROGRAM", program)
    monkeypatch.setattr("rgtg.chat.renderer", renderer)
    return renderer


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content | trim }}{{ eos_token }}{% endfor %}",
        "{% for m in messages %}\n  {% if m.name %}{{ m.name }}{% endif %}\n  {{ m | tojson(indent=2) }}{{ m }}\n"
        "{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}",
        "{% generation %}{{ messages[-1]['content'] }}{% endgeneration %}{% if tools %}x{% endif %}",
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}go on{% endif %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m.content }}{% endfor %}"
        "{{ ns.n }}{{ dict(a=1) }}{{ 'é<&>' | upper }}",
    ],
)
@pytest.mark.parametrize(
    "messages",
    [USER, STARTED, [{"role": "user", "content": "é 😀", "name": None, "more": [1, 2.5, {"a": None}]}]],
)
def test_a_template_renders_as_by_transformers(make_tokenizer, template, messages):
    tokenizer = make_tokenizer(template=template)
    goes_on = messages[-1]["role"] == "assistant"
    expected = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
    )
    assert render(tokenizer, messages) == expected


def test_a_date_is_the_one_given(make_tokenizer):
    tokenizer = make_tokenizer(template="<s>{{ strftime_now('%d %B %Y, %H:%M') }} {{ messages[0].content }}")
    day = date(2024, 2, 29)
    assert render(tokenizer, USER, day) == "<s>29 February 2024, 00:00 hi"
    assert encode_prompt(tokenizer, USER, day) == encode_prompt(tokenizer, "29 February 2024, 00:00 hi")
    assert encode_response(tokenizer, USER, "x", day=day)[:-1] == encode_prompt(tokenizer, "x")[1:]
    assert str(datetime.now().year) in render(tokenizer, USER)


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (LOOP, "takes too long"),
        ("{{ '%1000000000d' % n }}", "1 GiB of memory"),
        ("{{ '%20000000d' % n }}", "20000004 characters"),
        (
            "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "1 GiB|too long",
        ),
        ("{{ 'a' | center(2000000000 * n) }}", "1 GiB of memory"),
        ("{{ '{:2000000000}'.format(n) }}", "1 GiB of memory"),
        ("{% set x = (3 * n) ** 30000000 %}", "takes too long"),
        ("{{ [n] * 1000000000 }}", "1 GiB of memory"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages[0].__class__.__mro__ }}", "unsafe"),
    ],
)
def test_what_a_template_may_not_take(quick, make_tokenizer, attack, words):
    """The row has an error, and the next one is as it would have been."""
    tokenizer = make_tokenizer(template=for_evil(attack))
    with pytest.raises(RowError, match=words):
        encode_prompt(tokenizer, EVIL)
    assert render(tokenizer, USER) == "hi"
    assert "chat template" in tokenize_pair(tokenizer, Pair(EVIL, "a", "b"), 100, "drop")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (LOOP, "takes too long, even for one word"),
        ("{{ 'a' * 3000000000 }}", "takes more than 1 GiB of memory, even for one word"),
        ("{% if %}", "broken"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "broken|one word"),
        ("a" * (1 << 20) + "b", "has 1048577 characters"),
    ],
    ids=["loop", "constant", "syntax", "deep", "long"],
)
def test_a_template_that_no_conversation_gets_through_is_refused(quick, make_tokenizer, template, words):
    tokenizer = make_tokenizer(template=template)
    for call in (lambda: render(tokenizer, USER), lambda: check_template(tokenizer)):
        with pytest.raises(UserError, match=words) as raised:
            call()
        assert not isinstance(raised.value, RowError)


def test_a_template_that_refuses_one_word_is_none_the_worse(make_tokenizer):
    check_template(make_tokenizer(template="{{ raise_exception('a system turn, please') }}"))


def test_several_threads_get_their_own_answers(make_tokenizer):
    tokenizer = make_tokenizer(template=PLAIN)
    words = [f"text {i}" for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda w: render(tokenizer, [{"role": "user", "content": w}]), words)) == words


FORKING = """\
import multiprocessing
import signal
from datetime import date
from rgtg.templates import renderer

def rendered(word):
    messages = [{"role": "user", "content": word}]
    return renderer.render("{{ messages[0].content }}", messages, date(2026, 1, 1), {}, "m")

rendered("first")
renderer.lock.acquire()  # as by another thread at the moment of a fork
words = [f"text {i}" for i in range(400)]
with multiprocessing.get_context("fork").Pool(4, signal.alarm, [60]) as pool:  # none that hangs is left
    renderer.lock.release()
    assert pool.map(rendered, words, chunksize=5) == words
print(rendered("last"))
"""


def test_forked_processes_get_their_own_answers():
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("last\n", "")


def test_a_process_that_was_killed_costs_no_row(make_tokenizer, quick):
    tokenizer = make_tokenizer(template=PLAIN)
    render(tokenizer, USER)
    quick.process.kill()  # by whoever is short of memory, say
    quick.process.wait()
    assert render(tokenizer, USER) == "hi"


def test_memory_that_modules_map_is_not_the_templates(make_tokenizer, quick, tmp_path, monkeypatch):
    """As a torch for GPUs does, of which none is touched."""
    (tmp_path / "sitecustomize.py").write_text(
        "import mmap\nheld = mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | 0x4000)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(quick, "process", None)
    long = "x" * (10 << 20)
    assert render(make_tokenizer(template=PLAIN), [{"role": "user", "content": long}]) == long
    with pytest.raises(UserError, match="takes more than 1 GiB"):
        render(make_tokenizer(template="{{ 'a' * 3000000000 }}"), USER)


def test_the_process_has_no_credentials_and_ends_with_this_one(quick, make_tokenizer, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-test")
    render(make_tokenizer(template=PLAIN), USER)
    with open(f"/proc/{quick.process.pid}/environ", "rb") as file:
        assert b"a-secret" not in file.read()
    assert os.getsid(quick.process.pid) == quick.process.pid
    quick.process.stdin.close()  # as the kernel does for a process that was killed
    assert quick.process.wait(timeout=60) == 0


def test_a_tokenizer_that_panics_is_the_rows_own(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"^(a+)+$"), "isolated")
    bad = "a" * 40 + "!"
    for call in (
        lambda: encode_prompt(tokenizer, bad),
        lambda: encode_response(tokenizer, "a", bad),
    ):
        with pytest.raises(RowError, match="the tokenizer fails on the text"):
            call()
    assert encode_prompt(tokenizer, "aa") == [1, *tokenizer.convert_tokens_to_ids(["a", "a"])]
    assert "the tokenizer fails" in tokenize_pair(tokenizer, Pair("a", "b", bad), 100, "drop")
    assert "the tokenizer fails" in tokenize_pair(tokenizer, Pair(bad, "b", "c"), 100, "drop")
    assert decode_response(tokenizer, [1], encode_prompt(tokenizer, "aa")) == "aa"


def test_every_text_of_a_decoder_has_its_date(make_tokenizer, make_language, make_reward):
    tokenizer = make_tokenizer(template="<s>{{ strftime_now('%Y-%m-%d') }}{{ messages[0].content }}")
    language, reward = make_language(tokenizer), make_reward(tokenizer)
    day = date(2024, 2, 29)
    expected = encode_prompt(tokenizer, "2024-02-29hi")
    decoder = Decoder.load(language, reward, slots=1, device="cpu", day=day)
    request = decoder.request(USER, samples=1, max_new_tokens=2, seed=0)
    assert request.prompt_ids == request.reward_prompt_ids == expected
    by_text = Decoder.load(language, reward, reward_reads="text", slots=1, device="cpu", day=day)
    assert by_text.request(USER, samples=1, max_new_tokens=2, seed=0).reward_text == "<s>2024-02-29hi"
    assert decoder.score([USER], ["x"]) == decoder.score(["2024-02-29hi"], ["x"])
    model = decoder.language
    assert logprobs(model, [USER], [[50]], day) == logprobs(model, ["2024-02-29hi"], [[50]])
    pair = tokenize_pair(tokenizer, Pair(USER, "a", "b"), 100, "drop", day)
    assert pair.prompt_ids == expected
