"""accelerate / restore: the padding-free path inside transformers' own encoders."""

from spanbert_kernels.acceleration.forward import AccelerationWarning
from spanbert_kernels.acceleration.install import accelerate, restore
from spanbert_kernels.acceleration.report import AccelerationReport

__all__ = ["AccelerationReport", "AccelerationWarning", "accelerate", "restore"]
