"""`spanbert-kernels encode` over corpora that are made from the texts at hand: throughput, memory, costs by stage."""
