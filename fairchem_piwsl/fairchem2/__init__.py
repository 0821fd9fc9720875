"""The weak losses on fairchem-core 2: callbacks in a user's Hydra config."""

from fairchem_piwsl.fairchem2.callback import PIWSLCallback
from fairchem_piwsl.fairchem2.ema_warmup import EMAWarmup

__all__ = ["EMAWarmup", "PIWSLCallback"]
