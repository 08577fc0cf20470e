from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recsys.evaluation.bootstrap import Draws
from recsys.evaluation.compare import compare, compare_with_first, metrics_in_common
from recsys.evaluation.ctr import auc, gauc, rela_impr
from recsys.evaluation.evaluate import Report

DRAWS = Draws(seed=0, num_draws=200)


def a_report(arrays: dict[str, Tensor], model: str = "model") -> Report:
    metrics = dict.fromkeys(("auc", "logloss", "gauc", "recall@20"), 0.5)
    return Report(model=model, split="test", protocol="", metrics=metrics, counts={}, arrays=arrays)


def of_users(shift: float, seed: int) -> Report:
    values = torch.rand(400, generator=torch.Generator().manual_seed(9)) * 0.5 + shift
    noise = torch.randn(400, generator=torch.Generator().manual_seed(seed)) * 0.05
    return a_report({"users": torch.arange(400), "recall@20": values + noise})


def of_rows(sharpness: float, seed: int = 1) -> Report:
    random = torch.Generator().manual_seed(0)
    truth = torch.randn(600, generator=random)
    labels = (torch.rand(600, generator=random) < truth.sigmoid()).float()
    logits = truth * sharpness + torch.randn(600, generator=torch.Generator().manual_seed(seed))
    users = torch.arange(600) // 12
    return a_report({"labels": labels, "logits": logits, "clusters": users, "group": users})


def test_retrieval_reports_are_compared_by_user() -> None:
    assert compare(of_users(0.1, 1), of_users(0.0, 2), "recall@20", DRAWS).above
    assert compare(of_users(0.0, 1), of_users(0.1, 2), "recall@20", DRAWS).below
    seeds = [of_users(shift, 3) for shift in (0.02, -0.02)]
    assert not compare(seeds, of_users(0.0, 2), "recall@20", DRAWS).above


@pytest.mark.parametrize("metric", ["auc", "gauc"])
def test_ranking_reports_are_compared_by_row(metric: str) -> None:
    found = compare(of_rows(3.0), of_rows(0.5), metric, DRAWS)
    assert found.above
    assert found.rela_impr is not None
    assert found.rela_impr.value == pytest.approx(rela_impr(found.a, found.b))
    assert 0 < found.rela_impr.low < found.rela_impr.value < found.rela_impr.high
    assert compare(of_rows(0.5), of_rows(3.0), metric, DRAWS).below
    same = compare(of_rows(1.0), of_rows(1.0), metric, DRAWS)
    assert (same.difference.low, same.difference.value, same.difference.high) == (0, 0, 0)


def test_logloss_above_means_worse() -> None:
    assert compare(of_rows(1.0), of_rows(0.1), "logloss", DRAWS).below
    assert compare(of_rows(1.0), of_rows(0.1), "logloss", DRAWS).rela_impr is None


def test_calibrated_logloss_is_that_of_the_logits_that_are_served() -> None:
    plain = of_rows(1.0)
    mended = replace(plain, arrays={**plain.arrays, "calibrated_logits": plain.arrays["logits"] / 2})
    twin = replace(plain, arrays={**plain.arrays, "logits": plain.arrays["logits"] / 2})
    served = compare(mended, plain, "calibrated_logloss", DRAWS)
    assert replace(served, metric="logloss") == compare(twin, plain, "logloss", DRAWS)
    assert compare(mended, plain, "logloss", DRAWS).difference.value == 0
    measured = replace(mended, metrics={**mended.metrics, "calibrated_logloss": 0.5})
    assert metrics_in_common([plain, measured]) == ["auc", "gauc", "logloss", "calibrated_logloss"]


def test_values_are_the_metrics_of_the_reports_averaged_over_seeds() -> None:
    mine, other = [of_rows(1.0, seed) for seed in (1, 2, 3)], [of_rows(0.2, seed) for seed in (1, 2)]
    for metric, measure in (("auc", auc), ("gauc", gauc)):
        found = compare(mine, other, metric, DRAWS)
        for side, reports in ((found.a, mine), (found.b, other)):
            values = []
            for report in reports:
                extra = (report.arrays["group"],) if metric == "gauc" else ()
                values.append(measure(report.arrays["labels"], report.arrays["logits"], *extra))
            assert side == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_several_models_are_compared_with_the_first_as_one_by_one() -> None:
    models = [[of_rows(0.2)], [of_rows(1.0), of_rows(1.0, 5)], [of_rows(0.5)]]
    for metric in ("auc", "gauc", "logloss"):
        found = compare_with_first(models, metric, DRAWS)
        assert found == [compare(model, models[0], metric, DRAWS) for model in models[1:]]


def test_interval_over_seeds_that_differ_is_wider() -> None:
    same = compare([of_rows(1.0)] * 3, of_rows(0.5), "auc", DRAWS).difference
    differ = compare([of_rows(sharpness) for sharpness in (0.6, 1.0, 2.0)], of_rows(0.5), "auc", DRAWS).difference
    assert differ.high - differ.low > same.high - same.low


def test_groups_are_drawn_by_user_or_alone_when_they_have_rows_of_several() -> None:
    first, second = of_rows(1.0), of_rows(0.5)
    pairs = torch.arange(600) // 6  # two groups a user
    nested = [replace(report, arrays={**report.arrays, "group": pairs}) for report in (first, second)]
    found = compare(nested[0], nested[1], "gauc", DRAWS).difference
    assert found.low < found.value < found.high
    across = [replace(report, arrays={**report.arrays, "clusters": pairs}) for report in (first, second)]
    alone = [replace(report, arrays={k: v for k, v in report.arrays.items() if k != "clusters"}) for report in across]
    assert compare(across[0], across[1], "gauc", DRAWS) == compare(alone[0], alone[1], "gauc", DRAWS)


def test_further_labels_are_compared_by_their_name() -> None:
    first, second = of_rows(1.0), of_rows(0.5)
    bought = [replace(r, arrays={**r.arrays, "labels[buy]": r.arrays["labels"], "logits[buy]": r.arrays["logits"]})
              for r in (first, second)]  # fmt: skip
    assert replace(compare(bought[0], bought[1], "auc[buy]", DRAWS), metric="auc") == compare(
        first, second, "auc", DRAWS
    )
    with pytest.raises(ValueError, match="not all of the reports have a label 'buy'"):
        compare(bought[0], second, "auc[buy]", DRAWS)
    other = replace(second, arrays={**bought[1].arrays, "labels[buy]": 1 - second.arrays["labels"]})
    with pytest.raises(ValueError, match="are not of the same labels 'buy': no pairs"):
        compare(bought[0], other, "auc[buy]", DRAWS)


def test_metrics_in_common_are_those_that_can_be_compared() -> None:
    assert metrics_in_common([of_users(0, 1), of_users(0, 2)]) == ["recall@20"]
    without = replace(of_rows(1.0), metrics={"auc": 0.5, "logloss": 0.5, "pr_auc": 0.1})
    assert metrics_in_common([of_rows(1.0), without]) == ["auc", "logloss"]


def test_reports_that_cannot_be_paired_are_refused() -> None:
    users, rows = of_users(0.0, 1), of_rows(1.0)
    with pytest.raises(ValueError, match=r"has no values of 'ndcg@20'; it has \['recall@20'\]"):
        compare(users, users, "ndcg@20", DRAWS)
    with pytest.raises(ValueError, match="are not of the same users"):
        compare(users, a_report({"users": torch.arange(3), "recall@20": torch.ones(3)}), "recall@20", DRAWS)
    with pytest.raises(ValueError, match="it was made without arrays"):
        compare(users, a_report({}), "recall@20", DRAWS)
    with pytest.raises(ValueError, match="compared by auc, gauc, logloss, calibrated_logloss, not by 'ndcg'"):
        compare(rows, rows, "ndcg", DRAWS)
    other = replace(rows, arrays={**rows.arrays, "clusters": rows.arrays["clusters"] + 1})
    with pytest.raises(ValueError, match="are not of the same clusters: no pairs"):
        compare(rows, other, "auc", DRAWS)
    with pytest.raises(ValueError, match="needs a report"):
        compare([], rows, "auc", DRAWS)
    alone = a_report({name: rows.arrays[name] for name in ("labels", "logits")})
    with pytest.raises(ValueError, match="have no groups to compare by 'gauc'"):
        compare(alone, alone, "gauc", DRAWS)
