"""Selection in the Trainer of transformers: train on a tenth of every batch, selected uniformly or by REDUCR.

    pip install '.[hugging_face]'
    python examples/hugging_face.py

Takes seconds and downloads nothing: each synthetic text has three words of its topic and nine random words. The same
code works with a tokenizer and a pretrained model, and with images.
"""

import tempfile

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import reducr
from reducr.hugging_face import SelectiveTrainer

NUM_TOPICS = 6


def make_data():
    """A training set with 30 % wrong labels and few texts of the last topics, a clean holdout set and a test set."""
    random = np.random.default_rng(0)
    labels = random.integers(NUM_TOPICS, size=3000)
    words = random.integers(100, 200, size=(3000, 12))
    words[:, :3] = 10 * labels[:, None] + random.integers(10, size=(3000, 3))
    words = random.permuted(words, axis=1)
    test, holdout, rest = np.split(np.arange(3000), [400, 700])
    train = rest[random.random(len(rest)) < 0.1 ** (labels[rest] / (NUM_TOPICS - 1))]
    noisy_labels = labels.copy()
    wrong = train[random.random(len(train)) < 0.3]
    noisy_labels[wrong] = (labels[wrong] + random.integers(1, NUM_TOPICS, len(wrong))) % NUM_TOPICS
    return ([{"input_ids": words[i], "labels": int(noisy_labels[i])} for i in part] for part in (train, holdout, test))


def make_model():
    """A very small BERT, always with the same initial parameters."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=200, num_labels=NUM_TOPICS, **sizes))


def accuracies(trainer, test):
    """Accuracy of the worst topic and over all texts, as text."""
    predicted = trainer.predict(test)
    correct = predicted.predictions.argmax(axis=1) == predicted.label_ids
    worst = min(correct[predicted.label_ids == label].mean() for label in range(NUM_TOPICS))
    return f"worst topic {worst:.3f}  mean {correct.mean():.3f}"


noisy, clean, test = make_data()
arguments = TrainingArguments(
    tempfile.mkdtemp(),
    per_device_train_batch_size=100,  # the number of candidates
    num_train_epochs=20,
    learning_rate=1e-2,
    save_strategy="no",
    disable_tqdm=True,
    dataloader_pin_memory=False,
    report_to=[],
)
reference = Trainer(make_model(), arguments, train_dataset=clean)
reference.train()
print(f"reference  {accuracies(reference, test)}")

for name, options in {"uniform": {}, "reducr": {"step_size": 1e-3}}.items():
    trainer = SelectiveTrainer(
        make_model(),
        arguments,
        train_dataset=noisy,
        selector=reducr.make_selector(name, num_groups=NUM_TOPICS, **options),
        irreducible=reducr.Reference(reference.model),
        fraction=0.1,
        holdout_dataset=clean,
        refresh_steps=20,
    )
    trainer.train()
    print(f"{name:10} {accuracies(trainer, test)}")
print(trainer.report())
