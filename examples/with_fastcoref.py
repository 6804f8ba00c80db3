"""fastcoref with mentions scored in a band: the same mentions and scores, without `[tokens, tokens]`.

It needs fastcoref (`pip install fastcoref`).
"""

import torch
from fastcoref.coref_models.modeling_fcoref import FCorefModel
from transformers import BertConfig, PreTrainedModel

import spanbert_kernels as sk


def init_weights(model: PreTrainedModel) -> None:
    """With transformers 5 a constructor ends with post_init(), where fastcoref's calls this."""
    if hasattr(model, "all_tied_weights_keys"):
        PreTrainedModel.init_weights(model)
    else:
        model.post_init()


FCorefModel.init_weights = init_weights

torch.manual_seed(0)
head = {"max_span_length": 30, "top_lambda": 0.4, "ffnn_size": 128, "dropout_prob": 0.3}
config = BertConfig(
    vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, coref_head=head
)
model = FCorefModel(config).eval()  # or FCoref(...).model

segments = torch.randint(5, 200, (1, 4, 128))  # a document of 512 tokens
nothing_left = {"input_ids": [], "attention_mask": []}
batch = {"input_ids": segments, "attention_mask": torch.ones_like(segments), "leftovers": nothing_left}
with torch.no_grad():
    *expected, _, expected_scores = model(batch, return_all_outputs=True)
    report = sk.accelerate(model)
    *found, _, scores = model(batch, return_all_outputs=True)
print(report)
print("same mentions:", all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)))
print("same antecedents:", torch.equal(scores.argmax(-1), expected_scores.argmax(-1)))
