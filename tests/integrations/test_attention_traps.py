"""Settings that transformers would ignore or read wrongly without an error: each is right here, or raises.

Tokenizers that lose their vocabulary (tests/models/test_tokenization.py), arithmetic of Triton's interpreter
(tests/ops) and the CUDA library's symbols (tests/test_build.py) have their tests elsewhere.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from acceleration.agreement import LENGTH, PADDING, TINY, encoder, inputs
from torch import Tensor
from transformers import BertConfig, BertLMHeadModel, BertModel, DataCollatorWithFlattening, EncoderDecoderModel
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function
from transformers.modeling_utils import AttentionInterface

import spanbert_kernels
from spanbert_kernels import ops
from spanbert_kernels.integrations.transformers_attention import packed_attention, padding_mask
from spanbert_kernels.models import SpanBERTConfig, SpanBERTModel

MASK = PADDING["right"]
OURS = "spanbert_kernels"


def states(model: Any, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**batch).last_hidden_state


class TestPaddingIsNotIgnored:
    """Trap 1: a name without a mask function gets no mask at all."""

    def test_both_functions_stand_under_the_name(self) -> None:
        assert AttentionInterface()[OURS] is packed_attention
        assert AttentionMaskInterface()[OURS] is padding_mask

    @pytest.mark.parametrize("padding", ["right", "left", "middle"])
    def test_what_stands_at_padding_changes_nothing(self, padding: str) -> None:
        model, mask = encoder(attn_implementation=OURS), PADDING[padding]
        batch = inputs(mask)
        before = states(model, batch)
        batch["input_ids"] = torch.where(mask, batch["input_ids"], 7)
        assert torch.equal(states(model, batch)[mask], before[mask])
        del batch["attention_mask"]
        assert not torch.equal(states(model, batch)[mask], before[mask])


class TestEncoderDecoderOfParts:
    """Trap 2: switching such a model changes the encoder's mask but not the function that its layers call."""

    @staticmethod
    def of_parts(implementation: str) -> tuple[Any, dict[str, Tensor]]:
        torch.manual_seed(0)
        decoder = BertLMHeadModel(BertConfig(**TINY, is_decoder=True, add_cross_attention=True))
        model = EncoderDecoderModel(encoder=encoder(attn_implementation=implementation), decoder=decoder).eval()
        return model, {**inputs(MASK), "decoder_input_ids": torch.randint(2, 60, (4, 5))}

    def test_an_encoder_of_ours_works_inside(self) -> None:
        expected, batch = self.of_parts("eager")
        model, _ = self.of_parts(OURS)
        with torch.no_grad(), ops.backends.record() as calls:
            torch.testing.assert_close(model(**batch).logits, expected(**batch).logits, rtol=1e-4, atol=1e-5)
        assert len(calls) == 2

    @pytest.mark.parametrize("layers", ["eager", "sdpa"])
    def test_our_mask_in_a_layer_of_another_kind_raises(self, layers: str) -> None:
        model, batch = self.of_parts(layers)
        model.set_attn_implementation({"encoder": OURS})
        assert model.encoder.encoder.layer[0].attention.self.config._attn_implementation == layers
        with pytest.raises(TypeError, match="PaddingMask"):
            model(**batch)

    @pytest.mark.parametrize("mask", ["eager", "sdpa"])
    def test_a_mask_of_another_kind_in_a_layer_of_ours_raises(self, mask: str) -> None:
        model, batch = self.of_parts(OURS)
        model.set_attn_implementation({"encoder": mask})
        with pytest.raises(ValueError, match=r"cannot do a mask of 4 dimensions \(\[4, 1, 11, 11\]\)"):
            model(**batch)


class TestImplementationOfOurModels:
    """Trap 3: a class named *Attention*(nn.Module) in a modelling file makes set_attn_implementation do nothing."""

    def test_no_class_of_that_name(self) -> None:
        folder = Path(inspect.getfile(spanbert_kernels)).parent
        for path in [*(folder / "models").glob("*.py"), *(folder / "nn").glob("*.py")]:
            classes = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
            assert not [name for name in classes if "Attention" in name], path
        assert SpanBERTModel._can_set_attn_implementation()

    def test_setting_reaches_the_layers(self) -> None:
        model = SpanBERTModel(SpanBERTConfig(**TINY)).eval()
        model.set_attn_implementation(OURS)
        with ops.backends.record() as calls:
            states(model, inputs(MASK))
        assert [operation for operation, _ in calls] == ["document_attention"] * 2


def test_parameters_that_a_checkpoint_lacks_are_initialised(tmp_path: Path) -> None:
    """Trap 4: otherwise they hold whatever was in memory; and no buffer that is not saved stands in the mixer."""
    BertModel(BertConfig(**TINY)).save_pretrained(tmp_path)
    for _ in range(3):
        options = {"cross_document_layers": [0, 1], "cross_document_queries": "tokens"}
        model = SpanBERTModel.from_pretrained(tmp_path, attn_implementation=OURS, **options)
        for layer in model.encoder.layer:
            mixer = layer.cross_document
            assert mixer.gate.item() == 0
            assert all(parameter.isfinite().all() for parameter in mixer.parameters())
            assert all(parameter.abs().max() <= 1 for parameter in mixer.parameters())
            assert set(dict(mixer.named_buffers())) <= set(mixer.state_dict())


class TestSettingsThatChangeAttention:
    """Trap 7: transformers hands every argument down, and what a function does not read is lost without a word."""

    def test_attention_matrices(self) -> None:
        model = encoder(attn_implementation=OURS)
        with pytest.raises(ValueError, match=r"cannot do attention matrices \(output_attentions\).*\"eager\" for that"):
            model(**inputs(MASK), output_attentions=True)
        model(**inputs(MASK), output_attentions=False)

    def test_attention_matrices_by_configuration(self) -> None:
        model = encoder(attn_implementation="eager", output_attentions=True)
        model.set_attn_implementation(OURS)
        with pytest.raises(ValueError, match=r"cannot do attention matrices \(output_attentions\)"):
            model(**inputs(MASK))

    @pytest.mark.parametrize(
        ("setting", "text"),
        [
            ({"head_mask": torch.ones(2, 4)}, "cannot do head_mask"),
            ({"is_causal": True}, r"cannot do causal attention \(is_causal\)"),
            ({"sliding_window": 4}, r"sliding-window attention \(sliding_window\)"),
            ({"softcap": 30.0}, r"soft-capped scores \(softcap\)"),
            ({"s_aux": torch.zeros(4)}, r"attention sinks \(s_aux\)"),
            ({"position_bias": torch.zeros(1, 4, LENGTH, LENGTH)}, r"a position bias \(position_bias\)"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_raises_and_says_what(self, setting: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=f'^the attention implementation "{OURS}" cannot do .*attn_implementation'):
            encoder(attn_implementation=OURS)(**inputs(MASK), **setting)
        with pytest.raises(ValueError, match=text):
            encoder(attn_implementation=OURS)(**inputs(MASK), **setting)

    def test_hidden_states_are_given(self) -> None:
        output = encoder(attn_implementation=OURS)(**inputs(MASK), output_hidden_states=True)
        assert len(output.hidden_states) == 3

    def test_a_decoder(self) -> None:
        model = encoder(attn_implementation=OURS, is_decoder=True)
        with pytest.raises(ValueError, match="cannot do causal attention"):
            model(**inputs(MASK))
        layer = model.encoder.layer[0].attention.self
        with pytest.raises(ValueError, match="cannot do causal attention"):
            layer(torch.zeros(1, 3, TINY["hidden_size"]))

    def test_a_mask_that_is_not_one_of_padding(self) -> None:
        model, batch = encoder(attn_implementation=OURS), inputs(MASK)
        batch["attention_mask"] = torch.ones(4, 1, LENGTH, LENGTH, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"a mask of 4 dimensions .* not one of padding \[4, 11\]"):
            model(**batch)
        batch["attention_mask"] = torch.ones(4, LENGTH + 1)
        with pytest.raises(ValueError, match="11 queries, 12 keys"):
            model(**batch)
        batch["attention_mask"] = torch.ones(3, LENGTH)
        with pytest.raises(ValueError, match=r"attention_mask must be \[4, 11\], got \[3, 11\]"):
            model(**batch)

    def test_a_mask_that_is_the_same_for_all_queries(self) -> None:
        """As LayoutLM makes it: what is added to the scores is 0 or the least number there is, or it is refused."""
        layer, query = encoder().encoder.layer[0].attention.self, torch.randn(4, 4, LENGTH, 8)
        del layer.is_causal  # as LayoutLM's
        least = torch.finfo(torch.float32).min
        added = torch.zeros(4, LENGTH).masked_fill(~MASK, least)[:, None, None]
        expected, _ = packed_attention(layer, query, query, query, MASK)
        for mask in (added, MASK[:, None, None]):
            assert torch.equal(packed_attention(layer, query, query, query, mask)[0], expected)
        added[0, 0, 0, 1] = -1.0
        with pytest.raises(ValueError, match="adds other numbers to the scores than 0"):
            packed_attention(layer, query, query, query, added)
        with pytest.raises(ValueError, match="cannot do causal attention"):
            packed_attention(layer, query, query, query, None)

    @pytest.mark.parametrize(
        ("mask_function", "text"),
        [(causal_mask_function, "causal attention"), (lambda b, h, q, k: q == k, "a mask_function of your own")],
    )
    def test_a_mask_function(self, mask_function: Callable[..., Any], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            padding_mask(2, 5, 5, mask_function=mask_function)

    def test_other_lengths_and_heads_of_keys(self) -> None:
        layer = encoder().encoder.layer[0].attention.self
        query = torch.zeros(2, 4, 5, 8)
        for key, text in ((torch.zeros(2, 4, 6, 8), "5 queries, 6 keys"), (torch.zeros(2, 2, 5, 8), "grouped-query")):
            with pytest.raises(ValueError, match=text):
                packed_attention(layer, query, key, key, None)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_tracing(self) -> None:
        model = encoder(attn_implementation=OURS, return_dict=False)
        with pytest.raises(ValueError, match=r"torch\.jit\.trace"):
            torch.jit.trace(model, (inputs(MASK)["input_ids"], inputs(MASK)["attention_mask"]))


class TestPackedBatches:
    """Trap 8: sdpa lets the documents of a packed batch see each other."""

    @staticmethod
    def packed() -> dict[str, Any]:
        rows = [{"input_ids": row[real].tolist()} for row, real in zip(inputs(MASK)["input_ids"], MASK, strict=True)]
        collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
        batch = collate(rows, return_tensors="pt")
        kept = ("input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        token_types = inputs(MASK)["token_type_ids"][MASK][None]
        return {**{name: batch[name] for name in kept}, "token_type_ids": token_types}

    @pytest.mark.parametrize("leave_out", [[], ["max_length_q", "max_length_k"]])
    def test_equals_the_padded_batch(self, leave_out: list[str]) -> None:
        packed = {name: value for name, value in self.packed().items() if name not in leave_out}
        expected = states(encoder(attn_implementation="eager"), inputs(MASK))[MASK]
        with ops.backends.record() as calls:
            result = states(encoder(attn_implementation=OURS), packed)[0]
        assert [operation for operation, _ in calls] == ["document_attention"] * 2
        torch.testing.assert_close(result, expected)
        # The trap itself: if this fails, transformers has mended it.
        assert (states(encoder(attn_implementation="sdpa"), packed)[0] - expected).abs().max() > 1e-2

    def test_an_attention_mask_of_ones_is_no_contradiction(self) -> None:
        packed, model = self.packed(), encoder(attn_implementation=OURS)
        mask = torch.ones_like(packed["input_ids"])
        assert torch.equal(states(model, {**packed, "attention_mask": mask}), states(model, packed))
        mask[0, 3] = 0
        with pytest.raises(ValueError, match="attention_mask has padding"):
            model(**packed, attention_mask=mask)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"cu_seq_lens_k": None}, "must be given together"),
            ({"cu_seq_lens_q": None}, "must be given together"),
            ({"cu_seq_lens_k": torch.tensor([0, 10, 14, 21, 22])}, "between different documents"),
            ({"cu_seq_lens_k": torch.tensor([0, 22])}, "between different documents"),
            ({"max_length_q": 10}, "max_length_q is 10, but a document has 11 tokens"),
        ],
    )
    def test_offsets_that_do_not_fit(self, change: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            encoder(attn_implementation=OURS)(**{**self.packed(), **change})

    def test_offsets_of_another_batch(self) -> None:
        model, offsets = encoder(attn_implementation=OURS), torch.tensor([0, 4, 9])
        with pytest.raises(ValueError, match="cu_seq_lens_q must end with the number of tokens, 22, but ends with 9"):
            model(**{**self.packed(), "cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets})
        with pytest.raises(ValueError, match="is one row, got 4 rows"):
            model(**inputs(MASK), cu_seq_lens_q=offsets, cu_seq_lens_k=offsets)
