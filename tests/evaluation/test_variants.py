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
    assert [v.name for v in variants(["pargs beta=1,1.0,1e0"], Generate())] == ["pargs beta=1"]


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
        ("pargs objective=best", "there are partial"),
        ("cards", "needs a target_reward"),
        ("farma head=scalar", "needs the head 'next-token'"),
        ("pargs beta=[", "beta"),
        ("pargs beta=1 beta=2", "beta stands twice"),
        ("pargs beta=" + ",".join(map(str, range(400))) + " k=1,2,3", "longer than 1000 characters"),
        ("pargs k=1,2,3,4,5,6,7,8,9 beta=" + ",".join(map(str, range(100))), "more than 500 ways"),
        ("pargs language=s3://b//c", "empty, a . or a .. part"),
        ("pargs language=https://me:planted@host/m", "holds credentials"),
        ("pargs beta=\0", "not printable"),
        ("pargs/../x", "is unknown"),
        ("pargs beta={a: 1}", "none of beta"),
    ],
)
def test_a_mistake_is_one_sentence(entry, said):
    with pytest.raises(UserError, match=said) as error:
        variants([entry], Generate())
    assert "\n" not in str(error.value)
    assert "planted" not in str(error.value)
