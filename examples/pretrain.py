"""SpanBERT's pre-training on a few texts: masked spans of words, predicted from their place and from their border."""

from pathlib import Path
from tempfile import TemporaryDirectory

from spanbert_kernels import SpanBERTForPreTraining
from spanbert_kernels.tasks import pretraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

ANIMALS, PLACES = ("heron", "otter", "hare", "owl"), ("river", "meadow", "wood", "shore")
texts = [f"The {animal} of the {place} sleeps. It wakes when the sun sets." for animal in ANIMALS for place in PLACES]

start = Start(size="tiny", vocabulary_size=120)
tokenizer = start.tokenizer(texts)
model = start.build(SpanBERTForPreTraining, tokenizer, seed=0)

with TemporaryDirectory() as folder:
    options = TrainingOptions(
        Path(folder), steps=40, batch_size=8, learning_rate=2e-3, evaluate_steps=20, seed=1, quiet=True
    )
    training = pretraining.pretrain(model, tokenizer, texts[:-2], texts[-2:], options, length=32)
for name in ("eval_mlm_loss", "eval_sbo_loss"):
    print(name, [round(value, 2) for value in training.values(name)])
print("paths:", training.paths)
