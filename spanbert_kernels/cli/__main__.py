"""`python -m spanbert_kernels.cli`: the command `spanbert-kernels`, for torchrun and others that start a module."""

from spanbert_kernels.cli import main

if __name__ == "__main__":
    main()
