from rgtg.config import Generate
from rgtg.evaluation.results import measure
from rgtg.evaluation.variants import variants
from rgtg.report.evaluation import as_markdown, at_equal_kl, kl_grid
from tests.evaluation.test_results import completion, row


def results(*points):
    """A family of PARGS with KL and reward, one member a point."""
    ways = variants([f"pargs beta={i + 1}" for i in range(len(points))], Generate())
    rows = [[row(completion(guided=-5.0 + kl, reward=reward))] * 2 for kl, reward in points]
    return [measure(way, given, {}, 1.0) for way, given in zip(ways, rows, strict=True)]


def test_families_are_compared_at_kls_that_they_reach():
    assert kl_grid(results((26.0, 1.0), (40.0, 2.0))) == [28.0, 30.0, 32.0, 35.0, 37.0]
    assert kl_grid(results((0.5, 1.0), (32.0, 2.0))) == [1.0, 2.0, 4.0, 8.0, 16.0]
    names, (line,) = at_equal_kl(results((0.5, 1.0), (32.0, 2.0)))
    assert names[2:] == ["KL 1", "KL 2", "KL 4", "KL 8", "KL 16"]
    assert line[:2] == ["pargs", "score"]
    assert line[-1].startswith("+1.492")


def test_a_single_way_has_nothing_to_compare_with():
    alone = results((2.0, 1.0))
    assert kl_grid(alone) == []
    assert "equal distance" not in as_markdown(alone, {}, [])
