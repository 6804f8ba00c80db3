"""Names that stand in `spanbert_kernels.data`, where they were before."""

from spanbert_kernels.data.conll_ner import TaggedSentence as TaggedSentence
from spanbert_kernels.data.entities import read_tagged as read_tagged
from spanbert_kernels.data.faults import DataFault as DataFault
