"""The same as for `accelerate`: they test the same encoders."""

from acceleration.conftest import our_attention

__all__ = ["our_attention"]
