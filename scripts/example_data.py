"""The example data as LMDBs: aspirin, GFN2-xTB."""

from pathlib import Path

from fairchem_piwsl.datasets.prepare import prepare

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "aspirin"


def example_data() -> Path:
    """Folder of the data set below the working directory, written once."""
    out = Path("data/aspirin")
    files = {f"{split}_files": [str(EXAMPLE / f"{split}.extxyz.gz")] for split in ("train", "val", "test")}
    prepare(files=[], out=str(out), reuse=True, quiet=True, **files)
    return out
