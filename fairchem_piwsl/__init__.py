"""Physics-informed weakly supervised learning (PIWSL) for interatomic potentials with few labels.

Where fairchem-core 1.10 is installed, importing the package makes it importable without its compiled helpers and
lets its registry find `piwsl_forces` (`fairchem_piwsl.trainer.PIWSLForcesTrainer`) and the models `spinconv`,
`mace` and `gradient_forces`; each is imported when it is asked for, so that light tools (`piwsl --help`) do not
wait for torch. Where fairchem-core 2 is installed, importing the package changes nothing.
"""

from fairchem_piwsl import upstream

__version__ = "0.1.0"

upstream.install()
