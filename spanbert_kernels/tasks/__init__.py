"""SpanBERT at work: one file a task, each over transformers' Trainer and the metric library of its field."""
