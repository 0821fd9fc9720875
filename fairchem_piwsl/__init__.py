"""Physics-informed weakly supervised learning (PIWSL) for Open Catalyst models.

Importing the package makes fairchem-core importable where its compiled helpers are missing and registers
`PIWSLForcesTrainer` as `piwsl_forces`. The names below are imported on first use, so that light tools
(`piwsl --help`) do not wait for torch.
"""

from fairchem_piwsl import upstream

__version__ = "0.1.0"

upstream.install()
