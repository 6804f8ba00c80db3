"""coref-hoi with candidates scored, pruned and paired without their vectors: the same mentions and antecedents.

Run it where `model` can be imported: in a checkout of github.com/lxucs/coref-hoi, or with that on PYTHONPATH, after the
two changes to `model.py` that today's libraries want (docs/span-packages.md).
"""

import tempfile

import torch
from model import CorefModel
from transformers import BertConfig, BertModel

import spanbert_kernels as sk

LENGTH, SENTENCE = 60, 12
torch.manual_seed(0)

# A small random model in the place of Runner(...).initialize_model()
encoder = BertConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
config = {
    "genres": ["bc", "nw"], "max_segment_len": LENGTH, "max_span_width": 8, "max_training_sentences": 3,
    "top_span_ratio": 0.4, "max_num_extracted_spans": 50, "max_top_antecedents": 10, "dropout_rate": 0.3,
    "ffnn_size": 64, "ffnn_depth": 1, "cluster_ffnn_size": 64, "feature_emb_size": 20, "use_features": True,
    "use_metadata": True, "use_segment_distance": True, "use_width_prior": True, "use_distance_prior": True,
    "model_heads": True, "fine_grained": True, "coref_depth": 2, "higher_order": "attended_antecedent",
    "loss_type": "marginalized", "mention_loss_coef": 0, "false_new_delta": 1.5,
}  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    BertModel(encoder).save_pretrained(folder)
    model = CorefModel({**config, "bert_pretrained_name_or_path": folder}, "cpu").eval()

ids = torch.randint(1, 100, (1, LENGTH))
document = [ids, torch.ones_like(ids), torch.zeros_like(ids), None, torch.tensor(1), torch.arange(LENGTH) // SENTENCE]
with torch.no_grad():
    expected = model(*document, False)
    report = sk.accelerate(model)
    found = model(*document, False)
print(report)
print("the same mentions:", torch.equal(torch.stack(found[3:5]), torch.stack(expected[3:5])))
print("the same antecedents:", torch.equal(found[5], expected[5]))
print("largest difference:", (found[6] - expected[6]).nan_to_num().abs().max().item())
