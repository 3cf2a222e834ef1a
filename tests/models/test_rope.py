"""Rotary frequencies that follow from the longest row of a batch: no row depends on its company."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from rgtg.decoding.cuda_graphs import Watch
from rgtg.decoding.decoder import Decoder
from rgtg.errors import RowError
from rgtg.models.loading import context_length, load_config
from rgtg.models.reward import RewardModel
from rgtg.models.rope import first_length, keep_frequencies
from tests.fake_cuda import CARD, fake_cuda, fake_model

FIRST = 32  # the length up to which frequencies are the first ones


def longrope(frequencies):
    return {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0] * frequencies,
        "long_factor": [2.0**i for i in range(frequencies)],
        "original_max_position_embeddings": FIRST,
    }


LONGROPE = longrope(4)  # heads have the size 8
VARIANTS = {
    "longrope": {"rope_parameters": LONGROPE, "max_position_embeddings": 128},
    "dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
        "max_position_embeddings": FIRST,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_does_not_depend_on_its_company(make_reward, plain, variant):
    place = make_reward(**VARIANTS[variant])
    ids = torch.arange(3, 3 + FIRST)[None]
    with torch.inference_mode():
        expected = plain(place).model(input_ids=ids).last_hidden_state
        model = RewardModel.load(place)
        company = torch.cat([ids, ids + 1], 1).repeat(2, 1)  # rows that nobody else would read: twice as long
        found = model.backbone(input_ids=company).last_hidden_state[:1, :FIRST]
        after = model.backbone(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_context_ends_with_the_first_frequencies(make_language, make_reward, variant):
    """Completions end there, and a prompt of that length is an error of its row alone."""
    language, reward = make_language(**VARIANTS[variant], eos_scale=0.0), make_reward(**VARIANTS[variant])
    assert context_length(load_config(language, "models.language")) == FIRST
    decoder = Decoder.load(language, reward, "pargs", slots=8)
    ((alone,),) = decoder.generate(["ab"], max_new_tokens=100)
    assert alone.num_tokens == FIRST - 3
    (together,), _ = decoder.generate(["ab", "a" * 20], max_new_tokens=100)
    assert together == alone
    with pytest.raises(RowError, match=f"leaves no room for a completion in the context of {FIRST}"):
        decoder.request("a" * FIRST, samples=1, max_new_tokens=1, seed=0)


@pytest.mark.parametrize("parameters", [longrope(8), VARIANTS["dynamic"]["rope_parameters"]])
def test_a_call_waits_for_no_length(parameters):
    with fake_cuda(), torch.inference_mode():
        model = fake_model(AutoModelForCausalLM, "llama", 8, 4, 12, torch.bfloat16, rope_parameters=parameters)
        keep_frequencies(model)
        ids = torch.zeros(8, 4, dtype=torch.long, device=CARD)
        with Watch() as watch:
            model(input_ids=ids, position_ids=ids, use_cache=False)
    assert watch.asked is None


def test_saved_models_have_the_config_that_they_came_with(make_reward, tmp_path):
    place = make_reward(**VARIANTS["longrope"])
    RewardModel.load(place).save(tmp_path)
    saved, given = (load_config(str(directory), "models.reward") for directory in (tmp_path, place))
    assert saved.rope_parameters == given.rope_parameters
    assert saved.max_position_embeddings == 128


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (None, None),
        ({"rope_type": "yarn", "original_max_position_embeddings": 8}, None),
        (LONGROPE, FIRST),
        ({"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default"}}, FIRST),
        ({**LONGROPE, "original_max_position_embeddings": "many"}, None),
    ],
)
def test_the_first_length_is_that_of_longrope(parameters, expected):
    assert first_length(SimpleNamespace(rope_parameters=parameters)) == expected
