"""Selection in the Trainer of transformers for an image classifier: scanned digits, noisy and imbalanced.

    pip install '.[hugging_face]'
    python examples/hugging_face_image.py

Takes seconds and downloads nothing. The code is the same for a pretrained model, and for any data set that yields
`pixel_values` and `labels`.
"""

import tempfile

import torch
from noisy_digits import NUM_CLASSES, make_data
from transformers import ResNetConfig, ResNetForImageClassification, TrainingArguments

import reducr
from reducr.hugging_face import SelectiveTrainer


def make_model():
    """A small residual network, always with the same initial parameters."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=NUM_CLASSES, **sizes))


def rows(inputs, labels):
    """The examples as the Trainer takes them, in twice the size."""
    images = inputs.view(-1, 1, 8, 8).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]


@torch.no_grad()
def accuracies(model, inputs, labels):
    """Accuracy of the worst class and over all images, as text."""
    images = torch.stack([row["pixel_values"] for row in rows(inputs, labels)])
    is_right = model.eval()(pixel_values=images).logits.argmax(dim=1) == labels
    worst = min(is_right[labels == label].float().mean() for label in range(NUM_CLASSES))
    return f"worst class {worst:.3f}  mean {is_right.float().mean():.3f}"


noisy, clean, test = make_data()
holdout = torch.utils.data.DataLoader(rows(*clean), batch_size=100)
reference = reducr.fit_reference(make_model(), holdout, num_epochs=30, num_folds=0)
print(f"reference  {accuracies(reference, *test)}")
quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False}
sizes = {"per_device_train_batch_size": 100, "num_train_epochs": 40}  # 100 candidates
for name in ("uniform", "reducr"):
    trainer = SelectiveTrainer(
        make_model(),
        TrainingArguments(tempfile.mkdtemp(), learning_rate=3e-3, **sizes, **quiet),
        train_dataset=rows(*noisy),
        selector=reducr.make_selector(name, num_groups=NUM_CLASSES),
        irreducible=reducr.Reference(reference),
        holdout_dataset=rows(*clean),
    )
    trainer.train()
    print(f"{name:10} {accuracies(trainer.model, *test)}")
print(trainer.report())
