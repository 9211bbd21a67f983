"""Results of tasks on a run's own data, kept with the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tessella.core.tensors import read_header
from tessella.evaluation.results import Evaluation
from tessella.foundation.files import kept, place, write_atomic
from tessella.foundation.notes import note
from tessella.foundation.text import json_text
from tessella.foundation.validation import Malformed, read_json
from tessella.training.checkpoint import MODEL
from tessella.training.fitted_priors import prior_in_use

EVALUATION, FIDELITY, GAP = "evaluation-{}", "fidelity", "gap"
"""Names of results: of the evaluation of a split, of samples, of the inference gap."""


class StoredResult(Protocol):
    """A record that a task returns."""

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, record: Any) -> Any:
        """Read what `to_json` gave.

        Raises:
            Malformed: if it is something else.
        """


R = TypeVar("R", bound=StoredResult)


@dataclass(frozen=True)
class ResultsStore:
    """`results/NAME.json` of a run: each names the weights that it is about, and is not given back for others.

    Args:
        run: the run folder.
    """

    run: Path

    def save(self, name: str, result: StoredResult, **how: Any) -> None:
        """Keep a result, with how it was made (its seed, precision)."""
        text = json_text({**result.to_json(), **how, **self._weights()}, indent=2)
        write_atomic(place(self.run, f"results/{name}.json"), lambda path: path.write_text(text))

    def load(self, name: str, kind: type[R], **facts: Any) -> R | None:
        """Read a result, if it is about the weights as they are now; a damaged one is as if it were not there.

        Args:
            facts: attributes that it must have, such as `split="test"`.
        """
        path = kept(self.run, f"results/{name}.json")
        if not path.is_file():
            return None
        try:
            record = read_json(path)
            about = record if isinstance(record, dict) else {}
            if any(about.get(key) != now for key, now in self._weights().items()):
                return None
            found = kind.from_json(record)
            for fact, value in facts.items():
                if getattr(found, fact) != value:
                    raise Malformed(f"its {fact} is {str(getattr(found, fact))[:40]!r}")
            return found
        except (OSError, Malformed) as error:
            note(f"{path} is passed over, as it is damaged or was edited ({error})")
            return None

    def evaluation(self, split: str) -> Evaluation | None:
        """Read the evaluation of a split."""
        return self.load(EVALUATION.format(split), Evaluation, split=split)

    def _weights(self) -> dict[str, Any]:
        """What names the weights of a run as they are now: its step, and the prior over its latents."""
        step = read_header(self.run / MODEL).progress.get("step")
        return {"step": step, "prior": prior_in_use(self.run)}
