"""Training in which a step sees one random span of each document: the whole is encoded, the span carries the loss."""

from pathlib import Path
from tempfile import TemporaryDirectory

from spanbert_kernels import SpanBERTForTokenClassification
from spanbert_kernels.data.conll_ner import TaggedSentence
from spanbert_kernels.tasks import tagging
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

NAMES, PLACES = ("Anna", "Boris", "Clara", "Diego"), ("Oslo", "Lima", "Perth", "Kyoto")
sentences = []
for line, (name, place) in enumerate(((name, place) for name in NAMES for place in PLACES), start=1):
    words = (name, "went", "from", "here", "to", place, "by", "train")
    labels = ("B-PERSON", "O", "O", "O", "O", "B-PLACE", "O", "O")
    sentences.append(TaggedSentence(words, labels, Path("sentences"), line))

start = Start(size="tiny", vocabulary_size=90)
tokenizer = start.tokenizer(" ".join(sentence.words) for sentence in sentences)
id2label = dict(enumerate(tagging.TASK.labels_in(sentences)))
model = start.build(SpanBERTForTokenClassification, tokenizer, seed=0, id2label=id2label)

with TemporaryDirectory() as folder:
    options = TrainingOptions(Path(folder), steps=40, batch_size=8, learning_rate=1e-3, quiet=True)
    training = tagging.train(model, tokenizer, sentences, options, SpanTraining(span_length=3, crop="loss"))
print(f"loss {training.values('loss')[0]:.2f} at first, {training.values('loss')[-1]:.2f} at last")
print("paths:", training.paths)
print("scores:", tagging.evaluate(model, tokenizer, sentences))
