"""The same as for `accelerate`: they test the same encoders."""

from acceleration.conftest import one_thread, our_attention

__all__ = ["one_thread", "our_attention"]
