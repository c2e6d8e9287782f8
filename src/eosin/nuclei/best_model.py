"""The weights that validation found best."""

from __future__ import annotations

from pathlib import Path

from eosin.core.console import warn
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file
from eosin.encoders.loading import load_state
from eosin.encoders.state import read_safetensors
from eosin.nuclei.hovernet import HoverNet
from eosin.nuclei.model import ModelCard, save_model

__all__ = ["BestModel"]


class BestModel:
    """Keeps `best.safetensors`, whose card says the step and the panoptic quality that it had.

    What is kept is a function of the steps taken: a run that is killed and resumed comes by the same best weights
    again, so a file that is ahead of the resumed step does no harm.

    Args:
        run: The run directory.

    Attributes:
        step: Steps taken when the best weights were found; 0 before.
        score: Their panoptic quality; -1 before.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "best.safetensors"
        self.step = 0
        self.score = -1.0

    def consider(self, network: HoverNet, card: ModelCard, step: int, score: float, *, write: bool) -> bool:
        """Keep the weights if they score higher than all before; tell whether they do.

        Args:
            network: After `step`.
            card: Of the network.
            step: Steps taken.
            score: Panoptic quality.
            write: Whether this process writes the file.
        """
        if score <= self.score:
            return False
        self.step, self.score = step, score
        if write:
            save_model(network, card.model_copy(update={"step": step, "pq": score}), self.path)
        return True

    def load_into(self, network: HoverNet) -> None:
        """Give a network the best weights; where the file was removed, it keeps its own, with a warning.

        Raises:
            EosinError: If the file is damaged.
        """
        if not self.path.is_file():
            warn(f"{self.path}: is gone; going on with the newest weights")
            return
        load_state(network, read_safetensors(self.path)[1], str(self.path))

    def finish(self, target: Path) -> None:
        """Copy the best weights to the result of the run.

        Raises:
            EosinError: If they are gone.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise EosinError(
                f"{self.path}: cannot be read ({error.strerror}); remove the run directory and train again"
            ) from None
        with atomic_file(target) as file:
            file.write(content)
