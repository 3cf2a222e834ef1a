import pytest

from rgtg.config import Generate
from rgtg.errors import UserError
from rgtg.evaluation.variants import variants


def test_an_entry_with_several_values_is_several_variants_of_one_family():
    found = variants(["pargs beta=0.5,2 objective=full", "unguided"], Generate(beta=9.0, samples=3, temperature=0.7))
    assert [v.name for v in found] == ["pargs beta=0.5 objective=full", "pargs beta=2 objective=full", "unguided"]
    assert [v.family for v in found] == ["pargs objective=full"] * 2 + ["unguided"]
    assert [v.beta for v in found] == [0.5, 2.0, 0.0]
    assert {v.settings.samples for v in found} == {3}, "what is no method's own is as the config has it"
    assert {v.settings.temperature for v in found} == {0.7}
    assert found[2].settings.beta is None, "what is a method's own is the method's default, not the config's"


def test_every_method_knows_how_its_reward_model_is_trained():
    trained = {
        v.settings.method: (v.objective, v.head) for v in variants(["args", "pargs-next-token", "farma"], Generate())
    }
    assert trained == {
        "args": ("full", "scalar"),
        "pargs-next-token": ("partial", "next-token"),
        "farma": ("farma", "next-token"),
    }


def test_values_are_read_as_in_the_settings():
    assert variants(["pargs beta=1e-1"], Generate())[0].beta == 0.1


def test_what_is_said_twice_is_done_once():
    assert len(variants(["pargs beta=1,2", "pargs beta=2"], Generate())) == 2


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("pargs bta=1", "'bta=1' in 'pargs bta=1' is none of beta"),
        ("pargs beta=", "with a value"),
        ("", "method '' is unknown"),
        ("nothing", "method 'nothing' is unknown"),
        ("pargs beta=-1", "greater than or equal to 0"),
        ("pargs beta=x", "beta"),
        ("pargs proposals=3", "'pargs' has no proposals"),
        ("pargs objective=best", "objectives are partial"),
        ("cards", "needs a target_reward"),
        ("farma head=scalar", "needs the head 'next-token'"),
        ("pargs beta=[", "beta"),
    ],
)
def test_a_mistake_is_one_sentence(entry, said):
    with pytest.raises(UserError, match=said) as error:
        variants([entry], Generate())
    assert "\n" not in str(error.value)
