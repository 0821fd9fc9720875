"""A trainer for tests that interrupt it: it notes every step and waits at some for the interruption."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from fairchem_piwsl.trainer import PIWSLForcesTrainer
from fairchem_piwsl.training.checkpoints import STOP


def claim(held: Path) -> bool:
    """Whether `held` is this process's, the number of which it contains from the first moment on."""
    own = held.with_name(f"{held.name}-{os.getpid()}")
    own.write_text(str(os.getpid()), encoding="utf-8")
    try:
        os.link(own, held)  # a test for existence first would let two ranks hold at once
    except FileExistsError:
        return False
    return True


class SlowTrainer(PIWSLForcesTrainer):
    """Waits once in each of the steps PIWSL_TEST_HOLD, such as "5,11", until a signal asks it to stop."""

    def _forward(self, batch: Any) -> Any:
        if self.model.training:
            folder = Path(self.config["cmd"]["results_dir"])
            with (folder / "steps.txt").open("a", encoding="utf-8") as file:
                file.write(f"{self.step} {os.getpid()}\n")
            held = folder / f"held-{self.step}"
            if str(self.step) in os.environ.get("PIWSL_TEST_HOLD", "").split(",") and claim(held):
                while self._requested != STOP:
                    time.sleep(0.05)
        return super()._forward(batch)
