"""Models that fairchem-core 1.10.0 lacks; importing this package registers their short names."""

from fairchem_piwsl.models import gradient_forces, mace, spinconv  # noqa: F401
