"""A model whose documents see each other, and which document looked at which."""

import torch

from spanbert_kernels import SpanBERTConfig, SpanBERTModel
from spanbert_kernels.nn import CrossDocumentMixer
from spanbert_kernels.tasks.explanation import document_weights

torch.manual_seed(0)
config = SpanBERTConfig(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=128,
    cross_document_layers=[0, 1],
    pooler_token="anchor",
)
model = SpanBERTModel(config).eval()  # or SpanBERTModel.from_pretrained("spanbert-base", cross_document_layers=[5, 8])
for module in model.modules():
    if isinstance(module, CrossDocumentMixer):
        torch.nn.init.constant_(module.gate, 1.0)  # as training would open it

ids = torch.randint(1000, 2000, (5, 16))
clusters = torch.tensor([7, 7, 9, 7, 9])  # documents 0, 1 and 3, and documents 2 and 4
with torch.no_grad(), document_weights(model) as layers:
    together = model(ids, cluster_ids=clusters).pooler_output
    alone = model(ids).pooler_output
print("what the others changed:", [f"{change:.3f}" for change in (together - alone).abs().amax(1).tolist()])

# Rows and columns are documents in the order of their clusters; the smaller cluster has a column that is empty.
for document, weights in zip([0, 1, 3, 2, 4], layers[0].mean(1).tolist(), strict=True):
    print(f"document {document} looked at its cluster: {[round(weight, 2) for weight in weights]}")
