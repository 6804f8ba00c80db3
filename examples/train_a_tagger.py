"""Fine-tuning by hand: labels of words, on the accelerated path."""

import torch

import spanbert_kernels as sk
from spanbert_kernels.tasks.start import Start

LABELS = ["O", "PERSON", "PLACE"]
EXAMPLES = [("Anna lives in Oslo", [1, 0, 0, 2]), ("Boris went home", [1, 0, 0]), ("it rains in Lima", [0, 0, 0, 2])]

start = Start(size="tiny", vocabulary_size=80)  # or Start(model="spanbert-base")
tokenizer = start.tokenizer(text for text, _ in EXAMPLES)
model = start.build(sk.SpanBERTForTokenClassification, tokenizer, seed=0, num_labels=len(LABELS))
report = sk.accelerate(model)

batch = tokenizer([text.split() for text, _ in EXAMPLES], is_split_into_words=True, padding=True, return_tensors="pt")
labels = torch.full(batch["input_ids"].shape, -100)  # special tokens and padding carry no loss
for row, (_, tags) in enumerate(EXAMPLES):
    for column, word in enumerate(batch.word_ids(row)):
        if word is not None:
            labels[row, column] = tags[word]

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
model.train()
for step in range(30):
    loss = model(**batch, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        print(f"step {step}: loss {loss.item():.3f}")

model.eval()
with torch.no_grad():
    found = model(**batch).logits.argmax(-1)
print("accuracy:", (found == labels)[labels != -100].float().mean().item())
print("paths:", dict(report.calls))
