import math

import pytest
import torch

from reducr.metrics import ClassificationReport, PartitionAccuracy, summary, worst


def report_of(logits, targets, groups, num_groups):
    report = ClassificationReport(num_classes=logits.shape[1], num_groups=num_groups)
    for part in torch.arange(len(targets)).split(7):  # several batches, the last one shorter
        report.update(logits[part], targets[part], groups[part])
    return report.compute()


def test_accuracies_and_counts_against_a_slow_reference():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator)
    targets = torch.randint(0, 4, (50,), generator=generator)
    groups = torch.randint(0, 3, (50,), generator=generator)
    computed = report_of(logits, targets, groups, 3)
    is_correct = [int(logits[i].argmax()) == int(targets[i]) for i in range(50)]
    for part, values, size in (("class", targets, 4), ("group", groups, 3)):
        for place in range(size):
            own = [is_correct[i] for i in range(50) if int(values[i]) == place]
            assert int(computed[f"{part}_count"][place]) == len(own)
            assert float(computed[f"{part}_accuracy"][place]) == pytest.approx(sum(own) / len(own))
    assert float(computed["mean_accuracy"]) == pytest.approx(sum(is_correct) / 50)
    headline = summary(computed)
    assert headline["worst_class_accuracy"] == float(computed["class_accuracy"].min())
    assert headline["worst_group_accuracy"] == float(computed["group_accuracy"].min())


def test_a_part_without_examples_is_nan_and_never_the_worst():
    computed = report_of(torch.eye(3)[:2], torch.tensor([0, 1]), torch.tensor([0, 0]), 2)
    assert computed["class_accuracy"].tolist()[:2] == [1.0, 1.0]
    assert math.isnan(computed["class_accuracy"][2])
    assert worst(computed["class_accuracy"]) == 1.0
    assert worst(computed["group_accuracy"]) == 1.0


def test_reset_discards_all_examples():
    metric = PartitionAccuracy(2)
    metric.update(torch.tensor([True, False]), torch.tensor([0, 1]))
    metric.reset()
    metric.update(torch.tensor([True]), torch.tensor([1]))
    assert metric.num_examples.tolist() == [0, 1]
    report = ClassificationReport(num_classes=2, num_groups=2)
    report.update(torch.eye(2), torch.tensor([1, 0]), torch.tensor([1, 0]))
    report.reset()
    report.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert report.compute()["mean_accuracy"] == 1.0
    assert report.compute()["class_count"].tolist() == [1, 1]
