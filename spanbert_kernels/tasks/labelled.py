"""Names that stand in `spanbert_kernels.data`, where they were before."""

from spanbert_kernels.data.labelled import LabelledDocument as LabelledDocument
from spanbert_kernels.data.labelled import read_labelled as read_labelled
