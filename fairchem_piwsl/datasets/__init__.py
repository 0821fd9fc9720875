"""Data in: any file that ASE reads, or a published data set, to fairchem's LMDB format (`piwsl prepare`)."""
