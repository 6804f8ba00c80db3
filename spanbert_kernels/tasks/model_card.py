"""The README.md of a trained model, as the Hugging Face hub reads it: data, scores, and what the weights began as."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, hf_hub_download
from transformers import AutoConfig

from spanbert_kernels import __version__
from spanbert_kernels.models.checkpoints import resolve_model
from spanbert_kernels.tasks import atomic

if TYPE_CHECKING:
    from spanbert_kernels.tasks.training import Training, TrainingOptions

README = "README.md"
WEIGHTS = "model.safetensors"
PIPELINES = {  # the hub's names of tasks
    "tagging": "token-classification",
    "nested": "token-classification",
    "parsing": "token-classification",
    "classification": "text-classification",
    "question_answering": "question-answering",
    "summarisation": "summarization",
    "extraction": "summarization",
    "translation": "translation",
    "pretraining": "fill-mask",
}
LICENCES = {"SpanBERT/spanbert-base-cased": "cc-by-nc-4.0", "SpanBERT/spanbert-large-cased": "cc-by-nc-4.0"}
LOCAL = ("checkpoint-*", ".*", "training_args.bin")  # of no use to others
SHOWN = (  # of the options
    *("epochs", "steps", "least_steps", "batch_size", "batch_tokens", "accumulation", "learning_rate"),
    *("head_learning_rate", "layer_decay", "schedule", "warmup", "weight_decay", "precision", "seed", "backend"),
)


@dataclass(frozen=True)
class Origin:
    """The weights that a training began with.

    Attributes:
        name: a hub name or the name of a folder; None for random weights.
        commit: on the hub; None in a folder.
        digest: the SHA-256 of a folder's weights.
        licence: as its own card states it.
        base: the hub name that a folder's own card names, or the hub name itself.
        lower_layers: how many layers of the encoder are kept, from the lowest on; None for all.

    Example:
        >>> str(Origin("encoder", licence="mit", lower_layers=5))
        '`encoder`, the lowest 5 of its layers. Their licence: mit.'
    """

    name: str | None = None
    commit: str | None = None
    digest: str | None = None
    licence: str | None = None
    base: str | None = None
    lower_layers: int | None = None

    @classmethod
    def of(cls, model: str | None, lower_layers: int | None = None) -> Origin:
        """Of the checkpoint that `--model` names, of which so many layers are kept."""
        if model is None:
            return cls()
        folder = Path(model)
        if folder.is_dir():
            stated = _stated(folder / README)
            own = (folder.resolve().name, None, _digest(folder / WEIGHTS))
            return cls(*own, stated.get("license"), stated.get("base_model"), lower_layers)
        name = resolve_model(model)
        stated, commit = {}, None
        with contextlib.suppress(OSError):  # the hub is out of reach, or the card is not there
            commit = AutoConfig.from_pretrained(name)._commit_hash
            stated = _stated(Path(hf_hub_download(name, README)))
        return cls(name, commit, None, stated.get("license") or LICENCES.get(name), name, lower_layers)

    def __str__(self) -> str:
        if self.name is None:
            return "Random weights."
        version = f", commit {self.commit}" if self.commit else f", SHA-256 {self.digest}" if self.digest else ""
        licence = f"Their licence: {self.licence}." if self.licence else "No licence is stated there."
        kept = "" if self.lower_layers is None else f", the lowest {self.lower_layers} of its layers"
        return f"`{self.name}`{version}{kept}. {licence}"


def _digest(weights: Path) -> str | None:
    if not weights.is_file():
        return None
    found = hashlib.sha256()
    with weights.open("rb") as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


def _stated(card: Path) -> dict[str, Any]:
    """What the head of a card says; nothing where there is none, or none that can be read."""
    if not card.is_file():
        return {}
    try:
        return dict(ModelCard.load(card).data.to_dict())
    except ValueError:
        return {}


def card(
    task: str,
    text: str,
    origin: Origin,
    options: TrainingOptions,
    training: Training,
    *,
    data: Sequence[str] = (),
    files: Mapping[str, Sequence[Path]] | None = None,
    scores: Mapping[str, float] | None = None,
    baseline: Mapping[str, float] | None = None,
) -> str:
    """The card's text.

    Args:
        task: its name; `text` says what it finds.
        data: sentences on what was taken and left out.
        files: the files to train, choose and test on, by what they are for.
        scores, baseline: on the test data.
    """
    tested = ", ".join(path.name for path in (files or {}).get("test", ()))
    results = [EvalResult(task, tested, tested, name, round(value, 4)) for name, value in (scores or {}).items()]
    head = ModelCardData(
        library_name="spanbert_kernels",
        license=origin.licence,
        base_model=origin.base,
        pipeline_tag=PIPELINES.get(task),
        tags=["spanbert_kernels", task],
        model_name=options.output.resolve().name,
        eval_results=results or None,
    )
    parts = [f"---\n{head.to_yaml()}\n---\n\n# {options.output.resolve().name}\n", f"Finds {text}. Trained with "]
    parts[-1] += f"`spanbert-kernels train {task}`, version {__version__}.\n"
    parts += [f"## Began with\n\n{origin}\n", "## Data\n"]
    parts += [f"- {use}: {', '.join(f'`{path.name}`' for path in paths)}" for use, paths in (files or {}).items()]
    parts += [f"- {line}" for line in data]
    if scores:
        parts += ["\n## Scores on the test data\n", "| | model | trivial baseline |", "| --- | --- | --- |"]
        parts += [f"| {name} | {value:.4f} | {(baseline or {}).get(name, 0.0):.4f} |" for name, value in scores.items()]
    parts.append("\n## Training\n")
    shown = {name: getattr(options, name) for name in SHOWN}
    parts += [f"- {name.replace('_', ' ')}: {value}" for name, value in shown.items() if value is not None]
    if training.losses is not None:
        first, last, steps = training.losses
        parts.append(f"- loss, a mean over {steps} steps: {first:.4f} at first, {last:.4f} at last")
    if training.best is not None:
        parts.append(f"- kept: the model of step {training.best[1]}, with {training.best[0]:.4f} on development data")
    return "\n".join(parts) + "\n"


def write(folder: Path, text: str) -> None:
    """Puts a card into a model's folder.

    Raises:
        CannotWrite: the file cannot be written.
    """
    atomic.write_text(folder / README, text)


def push(folder: Path, name: str) -> str:
    """Uploads a model's folder to the hub, where it is made if it is not there, and gives its address.

    Raises:
        OSError: nobody is logged in, or the hub is out of reach.
    """
    api = HfApi()
    address = str(api.create_repo(name, exist_ok=True))
    api.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=list(LOCAL))
    return address
