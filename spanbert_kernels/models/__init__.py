"""The reference SpanBERT: BERT and SpanBERT checkpoints unchanged, with cross-document layers where asked."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from spanbert_kernels.integrations import register_attention
from spanbert_kernels.models.configuration import SpanBERTConfig
from spanbert_kernels.models.coreference import SpanBERTForCoreference
from spanbert_kernels.models.encoders import SpanEncoderConfig, WindowedSpanEncoderConfig, kind_for, kind_on
from spanbert_kernels.models.extraction import SpanBERTForExtraction
from spanbert_kernels.models.generation import WindowedSpanBERTConfig, WindowedSpanBERTModel
from spanbert_kernels.models.heads import (
    SpanBERTForMaskedLM,
    SpanBERTForQuestionAnswering,
    SpanBERTForSequenceClassification,
    SpanBERTForTokenClassification,
)
from spanbert_kernels.models.modeling import SpanBERTModel
from spanbert_kernels.models.parsing import SpanBERTForDependencyParsing
from spanbert_kernels.models.pretraining import SpanBERTForPreTraining, load_released_heads
from spanbert_kernels.models.relations import SpanBERTForRelations
from spanbert_kernels.models.spans import SpanBERTForSpanClassification
from spanbert_kernels.models.tokenization import SpanBERTTokenizer

for config in (SpanBERTConfig, WindowedSpanBERTConfig, SpanEncoderConfig, WindowedSpanEncoderConfig):
    AutoConfig.register(config.model_type, config, exist_ok=True)
AutoTokenizer.register(SpanBERTConfig, tokenizer_class=SpanBERTTokenizer, exist_ok=True)
for auto, model in (
    (AutoModel, SpanBERTModel),
    (AutoModelForMaskedLM, SpanBERTForMaskedLM),
    (AutoModelForQuestionAnswering, SpanBERTForQuestionAnswering),
    (AutoModelForSequenceClassification, SpanBERTForSequenceClassification),
    (AutoModelForTokenClassification, SpanBERTForTokenClassification),
):
    auto.register(SpanBERTConfig, model, exist_ok=True)
AutoModel.register(WindowedSpanBERTConfig, WindowedSpanBERTModel, exist_ok=True)
register_attention()

__all__ = [
    "SpanBERTConfig",
    "SpanBERTForCoreference",
    "SpanBERTForDependencyParsing",
    "SpanBERTForExtraction",
    "SpanBERTForMaskedLM",
    "SpanBERTForPreTraining",
    "SpanBERTForQuestionAnswering",
    "SpanBERTForRelations",
    "SpanBERTForSequenceClassification",
    "SpanBERTForSpanClassification",
    "SpanBERTForTokenClassification",
    "SpanBERTModel",
    "SpanBERTTokenizer",
    "SpanEncoderConfig",
    "WindowedSpanBERTConfig",
    "WindowedSpanBERTModel",
    "WindowedSpanEncoderConfig",
    "kind_for",
    "kind_on",
    "load_released_heads",
]
