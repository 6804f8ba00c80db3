"""The operations behind the interfaces of other libraries."""

from spanbert_kernels.integrations.transformers_attention import register_attention

__all__ = ["register_attention"]
