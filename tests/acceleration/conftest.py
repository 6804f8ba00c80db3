"""What the tests of encoders share."""

from collections.abc import Iterator

import pytest
import torch

from spanbert_kernels import ops


@pytest.fixture(autouse=True)
def our_attention() -> Iterator[None]:
    """Where kernels were not built, the definition stands in for them: PyTorch's attention has tests of its own."""
    if ops.backends.without_kernels("document_attention", "cpu", torch.float32) is None:
        yield
        return
    with ops.backends.use("eager"):
        yield
