"""The weak losses on fairchem-core 2: one callback in a user's Hydra config."""

from fairchem_piwsl.fairchem2.callback import PIWSLCallback

__all__ = ["PIWSLCallback"]
