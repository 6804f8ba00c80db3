"""AllenNLP's span extractors, of the same arguments, parameters and results: the import alone is another one."""

import torch

# from allennlp.modules.span_extractors import EndpointSpanExtractor, SelfAttentiveSpanExtractor
from spanbert_kernels.nn import EndpointSpanExtractor, SelfAttentiveSpanExtractor

SIZE, WIDEST = 32, 5
torch.manual_seed(0)
sequence = torch.randn(2, 12, SIZE, requires_grad=True)  # an encoder's states
spans = torch.tensor([(start, end) for start in range(12) for end in range(start, min(start + WIDEST, 12))])
spans = spans.expand(2, -1, -1)

endpoint = EndpointSpanExtractor(SIZE, "x,y,x*y", num_width_embeddings=WIDEST, span_width_embedding_dim=4)
attentive = SelfAttentiveSpanExtractor(SIZE)
vectors = torch.cat([endpoint(sequence, spans), attentive(sequence, spans)], -1)
vectors.square().mean().backward()

print("vectors:", list(vectors.shape), "of", endpoint.get_output_dim() + attentive.get_output_dim(), "numbers")
print("parameters:", ", ".join([*endpoint.state_dict(), *attentive.state_dict()]))
