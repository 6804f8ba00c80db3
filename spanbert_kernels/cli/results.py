"""Everything a run of the demo found out, for the table and the report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.collecting import Collection
from spanbert_kernels.cli.encoding import Selection
from spanbert_kernels.cli.stages import StageResult
from spanbert_kernels.cli.stages.document_weights import SeenCluster

_AS_THEY_ARE = (
    *("padded_tokens", "warnings", "batch_size", "memory_method", "acceleration", "weights"),
    *("model", "tokenizer", "versions", "machine", "command", "seconds"),
)


@dataclass
class DemoResult:
    """One run: the documents, the stages, and what it ran on."""

    collection: Collection
    selection: Selection
    cluster_labels: list[str]
    clustered_by: str
    stages: list[StageResult]
    document_weights: list[SeenCluster] | None  # of a model that has such layers
    padded_tokens: int
    batch_size: int
    positions: int
    acceleration: list[str]  # what `accelerate` reports
    weights: str | None  # which the accelerated way has instead of the model's
    model: str
    tokenizer: str
    memory_method: str
    versions: dict[str, str]
    machine: dict[str, str]
    backends: list[tuple[str, str, str | None]]
    warnings: list[str] = field(default_factory=list)
    command: str = ""
    seconds: float = 0.0

    @property
    def padding_share(self) -> float:
        """The share of the padded batches that is padding."""
        return 1.0 - self.selection.tokens / self.padded_tokens

    @property
    def failed(self) -> list[StageResult]:
        """The stages whose results were outside the tolerance."""
        return [stage for stage in self.stages if not stage.agreement.holds]

    @property
    def disturbed(self) -> bool:
        """Whether a stage had one round only, so that other load on the machine shows in its times."""
        return any(stage.timing.fewest == 1 for stage in self.stages)

    def summary(self) -> str:
        """What came out, in one sentence, and a second one where a stage failed."""
        encoder, spans, across = self.stages
        paces = (
            f"On {formatting.count(len(self.selection.documents), 'document')} ({self.selection.tokens:,} tokens; "
            f"{formatting.share(self.padding_share)} of transformers' batches is padding) the encoder ran "
            f"{_pace(encoder)}, span representations {_pace(spans)} and cross-document attention {_pace(across)}"
        )
        return f"{paces}; {self.verdict()}"

    def verdict(self) -> str:
        """Whether both ways agree, to end a sentence with."""
        if not self.failed:
            largest = max(stage.relative_error for stage in self.stages)
            if largest == 0:
                return "all results are identical."
            return f"results differ by at most {formatting.error(largest)} of the largest value."
        names = " and ".join(stage.title for stage in self.failed)
        return f"FAILED: the results of {names} are outside the tolerance."

    def changes(self) -> str:
        """What other weights changed in what a reader of the hidden states sees; empty with the model's weights."""
        if self.weights is None:
            return ""
        encoder = self.stages[0]
        said = (
            f"{self.weights} weights changed the hidden states by at most {encoder.relative_error:.2%} of the largest"
        )
        changed = encoder.changed_predictions
        if changed is None:
            return f"{said}."
        return f"{said}, and the prediction of {changed:,} of {encoder.count:,} tokens ({changed / encoder.count:.2%})."

    def coverage(self) -> list[str]:
        """What was used and what was not, a sentence each; sentences about nothing are left out."""
        selection, collection, count = self.selection, self.collection, formatting.count
        windows = sum(len(document.windows) for document in selection.split)
        sentences = {
            f"{count(len(selection.documents), 'document')} of {len(collection.documents):,} used, "
            f"{selection.tokens:,} tokens in {count(len(selection.windows), 'window')}.": True,
            f"{count(len(selection.split), 'document')} longer than the model's {self.positions} positions: "
            f"split into {windows} windows.": selection.split,
            "The first document alone exceeds --tokens: it was cut to fit.": selection.cut,
            f"{count(selection.left_out, 'document')} left out: beyond the --tokens budget.": selection.left_out,
            f"{count(selection.without_tokens, 'document')} left out: without a token.": selection.without_tokens,
            f"{count(collection.duplicates, 'document')} met before and counted once.": collection.duplicates,
            f"{count(len(collection.faults), 'file')} read in part, with a warning.": collection.faults,
            f"{count(len(collection.skipped), 'file')} skipped with a warning.": collection.skipped,
            f"{count(len(collection.passed_over), 'file')} passed over: no documents.": collection.passed_over,
        }
        return [sentence for sentence, said in sentences.items() if said]

    def as_dict(self) -> dict[str, Any]:
        """The numbers alone, for machines: valid JSON, so what is not finite is None."""
        values = {
            "summary": self.summary(),
            "stages": [stage.as_dict() for stage in self.stages],
            "documents": len(self.selection.documents),
            "tokens": self.selection.tokens,
            "windows": len(self.selection.windows),
            "split": len(self.selection.split),
            "left_out": self.selection.left_out,
            "without_tokens": self.selection.without_tokens,
            "duplicates": self.collection.duplicates,
            **{name: getattr(self, name) for name in _AS_THEY_ARE},
            **{
                name: [[formatting.path(path), reason] for path, reason in getattr(self.collection, name)]
                for name in ("faults", "skipped", "passed_over")
            },
        }
        found: dict[str, Any] = json.loads(json.dumps(values), parse_constant=lambda constant: None)
        return found


def _pace(stage: StageResult) -> str:
    factor = formatting.speed_up(stage.speed_up).removesuffix(" x")
    return f"{factor} times as fast" if stage.speed_up >= 1 else f"at {factor} times the speed"
