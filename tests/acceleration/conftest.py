"""What the tests of encoders share."""

from collections.abc import Iterator

import pytest
import torch

from spanbert_kernels import ops


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from more, and waiting for each other takes most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def our_attention() -> Iterator[None]:
    """Where kernels were not built, the definition stands in for them: PyTorch's attention has tests of its own."""
    if ops.backends.without_kernels("document_attention", "cpu", torch.float32) is None:
        yield
        return
    with ops.backends.use("eager"):
        yield
