"""Names that stand in `spanbert_kernels.data`, where they were before."""

from spanbert_kernels.data.conll_coref import MarkedDocument as MarkedDocument
from spanbert_kernels.data.conll_coref import Mention as Mention
from spanbert_kernels.data.entities import read_marked as read_marked
