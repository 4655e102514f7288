"""Selection for a causal language model, by sequence and by token: a noisy domain and a rare one.

    python examples/causal_lm.py

Takes seconds. Most texts are sums such as `3+4=7`, half of them wrong; a few are products. Transformers fit as well.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

import reducr
from reducr.functional import TokenLoss, sequence_loss


class LanguageModel(nn.Module):
    """Logits (B, T, 128) of the next letter, from the last five."""

    def __init__(self):
        super().__init__()
        self.letters, self.layer, self.head = nn.Embedding(128, 16), nn.Conv1d(16, 128, 5), nn.Linear(128, 128)

    def forward(self, tokens):
        states = nn.functional.pad(self.letters(tokens).transpose(1, 2), (4, 0))
        return self.head(self.layer(states).relu().transpose(1, 2))


def make_data(num_sums, num_products, wrong=0.0):
    """Padded texts; labels are the tokens themselves, and -100 for padding."""
    numbers = torch.randint(10, (num_sums + num_products, 3)).tolist()
    texts = [f"{a}+{b}={a + b + error * (torch.rand(()).item() < wrong)}" for a, b, error in numbers[:num_sums]]
    texts += [f"{a}*{b}={a * b}" for a, b, _ in numbers[num_sums:]]
    rows = [(torch.tensor(list(text.ljust(6, "\0").encode())), int("*" in text)) for text in texts]
    return [{"input": row, "labels": row.masked_fill(row == 0, -100), "group": group} for row, group in rows]


def right_answers(model):
    """Share of the clean texts of each domain whose digits after `=` are predicted."""
    batch = default_collate(make_data(500, 500))
    is_answer = ((batch["input"] == ord("=")).cumsum(dim=1)[:, :-1] > 0) & (batch["labels"][:, 1:] != -100)
    is_wrong = is_answer & (model(batch["input"])[:, :-1].argmax(dim=2) != batch["labels"][:, 1:])
    sums, products = (~is_wrong.any(dim=1)).view(2, 500).float().mean(dim=1)
    return f"right answers: sums {sums:.2f}  products {products:.2f}"


torch.manual_seed(0)
noisy, clean = make_data(4000, 200, wrong=0.5), DataLoader(make_data(60, 60), batch_size=120)
reference = reducr.fit_reference(LanguageModel(), clean, num_epochs=30, num_folds=0, loss=sequence_loss)
print(f"{'reference':18} {right_answers(reference)}")
for name in ("uniform", "rho_loss", "priority_sampling", "rho_loss by token"):
    model, loss = LanguageModel(), TokenLoss() if "token" in name else sequence_loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    selector, train = reducr.make_selector(name.split()[0], num_groups=2), DataLoader(noisy, 100, shuffle=True)
    loader = reducr.SelectiveLoader(train, model, selector, reducr.Reference(reference), holdout=clean, loss=loss)
    for batch in (batch for _ in range(5) for batch in loader):  # a tenth of the sequences, or of the labels
        optimizer.zero_grad()
        TokenLoss()(model(batch["input"]), batch["labels"]).mean().backward()
        optimizer.step()
    print(f"{name:18} {right_answers(model)}")
