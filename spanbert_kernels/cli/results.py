"""Everything a run of the demo found out, for the table and the report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.collecting import Collection
from spanbert_kernels.cli.encoding import Selection
from spanbert_kernels.cli.stages import StageResult
from spanbert_kernels.cli.stages.cross_document import DocumentWeights


@dataclass
class DemoResult:
    """One run: the documents, the stages, and what it ran on."""

    collection: Collection
    selection: Selection
    cluster_labels: list[str]
    clustered_by: str
    stages: list[StageResult]
    document_weights: DocumentWeights
    padded_tokens: int
    batch_size: int
    positions: int
    repacked_bytes: int
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

    def coverage(self) -> list[str]:
        """What was used and what was not, a sentence each; sentences about nothing are left out."""
        selection, collection = self.selection, self.collection
        windows = sum(len(document.windows) for document in selection.split)
        sentences = [
            f"{formatting.count(len(selection.documents), 'document')} of {len(collection.documents):,} used, "
            f"{selection.tokens:,} tokens in {formatting.count(len(selection.windows), 'window')}.",
        ]
        if selection.split:
            sentences.append(
                f"{formatting.count(len(selection.split), 'document')} longer than the model's {self.positions} "
                f"positions: split into {windows} windows."
            )
        if selection.cut:
            sentences.append("The first document alone exceeds --tokens: it was cut to fit.")
        if selection.left_out:
            sentences.append(
                f"{formatting.count(selection.left_out, 'document')} left out: beyond the --tokens budget."
            )
        if selection.without_tokens:
            sentences.append(f"{formatting.count(selection.without_tokens, 'document')} left out: without a token.")
        if collection.duplicates:
            sentences.append(f"{formatting.count(collection.duplicates, 'document')} met before and counted once.")
        if collection.faults:
            sentences.append(f"{formatting.count(len(collection.faults), 'file')} read in part, with a warning.")
        if collection.skipped:
            sentences.append(f"{formatting.count(len(collection.skipped), 'file')} skipped with a warning.")
        if collection.passed_over:
            sentences.append(f"{formatting.count(len(collection.passed_over), 'file')} passed over: no documents.")
        return sentences

    def as_dict(self) -> dict[str, Any]:
        """The numbers alone, for machines: valid JSON, so what is not finite is None."""
        values: dict[str, Any] = _finite(self._values())
        return values

    def _values(self) -> dict[str, Any]:
        return {
            "summary": self.summary(),
            "stages": [stage.as_dict() for stage in self.stages],
            "documents": len(self.selection.documents),
            "tokens": self.selection.tokens,
            "padded_tokens": self.padded_tokens,
            "windows": len(self.selection.windows),
            "split": len(self.selection.split),
            "left_out": self.selection.left_out,
            "without_tokens": self.selection.without_tokens,
            "duplicates": self.collection.duplicates,
            **{
                name: [[formatting.path(path), reason] for path, reason in getattr(self.collection, name)]
                for name in ("faults", "skipped", "passed_over")
            },
            "warnings": self.warnings,
            "batch_size": self.batch_size,
            "memory_method": self.memory_method,
            "repacked_bytes": self.repacked_bytes,
            "model": self.model,
            "tokenizer": self.tokenizer,
            "versions": self.versions,
            "machine": self.machine,
            "command": self.command,
            "seconds": self.seconds,
        }


def _pace(stage: StageResult) -> str:
    factor = stage.speed_up
    if factor >= 1:
        return f"{formatting.speed_up(factor).removesuffix(' x')} times as fast"
    return f"at {formatting.speed_up(factor).removesuffix(' x')} times the speed"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
