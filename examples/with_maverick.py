"""Maverick's mentions, with the layers over their bounds run once a token: the same. It needs `maverick-coref`."""

import tempfile

import torch
from maverick.models.model_mes import Maverick_mes
from transformers import BertConfig, BertModel

import spanbert_kernels as sk

LENGTH, SENTENCE = 60, 12
torch.manual_seed(0)

# A small random model in the place of Maverick(hf_name_or_path=...).model
config = BertConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
with tempfile.TemporaryDirectory() as folder:
    BertModel(config).save_pretrained(folder)
    model = Maverick_mes(
        huggingface_model_name=folder, freeze_encoder=False, span_representation="concat_start_end"
    ).eval()

sentence = torch.arange(LENGTH) // SENTENCE
allowed = (sentence[:, None] == sentence).triu()[None].double()


def mentions() -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        states = model.encoder(torch.randint(0, 100, (1, LENGTH))).last_hidden_state
        return model.eos_mention_extraction(states, allowed, None, None, stage="test")[1][0]


expected = mentions()
report = sk.accelerate(model)
found = mentions()
print(report)
print("the same mentions:", torch.equal(found, expected), len(found))
