"""How much memory attention by distance takes, beside transformers' own."""

from __future__ import annotations

import sys
from pathlib import Path

import children
import pytest

from spanbert_kernels.ops import library

# Forward and backward of DeBERTa's attention at base size, one document; prints by how much memory grew.
SCRIPT = """
import sys
from pathlib import Path
import torch
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention
from spanbert_kernels import ops

def memory(field):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024

own, training, length, heads = sys.argv[1] == "own", sys.argv[2] == "training", 2048, 12
torch.set_grad_enabled(training)
config = DebertaV2Config(
    hidden_size=768, num_attention_heads=heads, relative_attention=True, position_buckets=256,
    max_relative_positions=512, pos_att_type=["p2c", "c2p"], share_att_key=True,
)
module, table = DisentangledSelfAttention(config), torch.randn(512, 768)

def attention(hidden):
    length = hidden.shape[1]
    if not own:
        return module(hidden, torch.ones(1, 1, length, length), rel_embeddings=table)[0]
    q, k, v = (
        getattr(module, name)(hidden[0]).view(length, heads, 64) for name in ("query_proj", "key_proj", "value_proj")
    )
    keys, queries = (getattr(module, name)(table).view(512, heads, 64) for name in ("key_proj", "query_proj"))
    terms = ops.RelativeTerms(ops.log_bucketed_index(256, 512), keys=keys, queries=queries)
    return ops.document_attention(q, k, v, torch.tensor([0, length]), dropout_p=0.1 * training, relative=terms)

def run(hidden):
    output = attention(hidden)
    if training:
        output.sum().backward()

run(torch.randn(1, 8, 768))
hidden = torch.randn(1, length, 768)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
run(hidden)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the memory")
@pytest.mark.skipif(library.cpu_isa() is None, reason="the CPU library is not built")
@pytest.mark.parametrize(("mode", "share"), [("inference", 20), ("training", 15)])
def test_a_long_document_takes_a_small_share_of_the_memory(mode: str, share: int) -> None:
    """In training most of ours are the projections, the output, and the gradients of these."""
    grown = {}
    for way in ("own", "theirs"):
        done = children.run([sys.executable, "-c", SCRIPT, way, mode], check=True, capture_output=True, text=True)
        grown[way] = int(done.stdout.split()[-1])
    assert grown["own"] * share <= grown["theirs"], grown
