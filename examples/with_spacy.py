"""spaCy's span categoriser with three names of its config changed: the same spans, suggested and pooled faster."""

import spacy
from spacy.tokens import Span
from spacy.training import Example
from spacy.util import fix_random_seed

TEXTS = {
    "Anna Smith works at Acme in Paris": [(0, 2, "PERSON"), (4, 5, "COMPANY"), (6, 7, "PLACE")],
    "Bob lives in New York": [(0, 1, "PERSON"), (3, 5, "PLACE")],
    "cats sleep": [],
}


def train(package: str) -> spacy.Language:
    fix_random_seed(0)
    nlp = spacy.blank("en")
    spancat = {
        "suggester": {"@misc": f"{package}.ngram_suggester.v1", "sizes": [1, 2, 3]},
        "model": {
            "@architectures": f"{package}.SpanCategorizer.v1",
            "scorer": {"@layers": "spacy.LinearLogistic.v1"},
            "reducer": {"@layers": f"{package}.mean_max_reducer.v1", "hidden_size": 32},
            "tok2vec": {
                "@architectures": "spacy.HashEmbedCNN.v2",
                **{"pretrained_vectors": None, "width": 32, "depth": 1, "embed_size": 200, "window_size": 1},
                **{"maxout_pieces": 2, "subword_features": True},
            },
        },
    }
    nlp.add_pipe("spancat", config=spancat)
    examples = []
    for text, spans in TEXTS.items():
        reference = nlp.make_doc(text)
        reference.spans["sc"] = [Span(reference, *each) for each in spans]
        examples.append(Example(nlp.make_doc(text), reference))
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(30):
        nlp.update(examples, sgd=optimizer)
    return nlp


theirs, ours = train("spacy"), train("spanbert_kernels")
for text in TEXTS:
    docs = theirs(text), ours(text)
    expected, found = ([str(span) for span in doc.spans["sc"]] for doc in docs)
    print(found, "as spaCy's" if found == expected else f"where spaCy finds {expected}")

# A model that spaCy saved goes on with ours, and the other way round.
ours.get_pipe("spancat").model.from_bytes(theirs.get_pipe("spancat").model.to_bytes())
