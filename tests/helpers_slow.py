"""A trainer for tests that interrupt it: it takes its time and notes every step in a file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from fairchem_piwsl.trainer import PIWSLForcesTrainer


class SlowTrainer(PIWSLForcesTrainer):
    """Sleeps PIWSL_TEST_SLEEP seconds in each training step."""

    def _forward(self, batch: Any) -> Any:
        if self.model.training:
            log = Path(self.config["cmd"]["results_dir"]) / "steps.txt"
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{self.step} {os.getpid()}\n")
            time.sleep(float(os.environ.get("PIWSL_TEST_SLEEP", "0")))
        return super()._forward(batch)
