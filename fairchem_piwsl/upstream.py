"""Every work-around for fairchem-core 1.10.0 in one place, each with its reason.

`import fairchem_piwsl` only leaves a note in Python's import machinery (`install`); `prepare` runs when
`fairchem.core` is imported for the first time. So the order of a user's imports does not matter, as long as
`fairchem_piwsl` comes before `fairchem`, and `piwsl --help` waits for neither torch nor fairchem.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any, NoReturn

from fairchem_piwsl.errors import UserError

_NEEDS_TORCH_SPARSE = (
    "GemNet and DimeNet++ need torch_sparse, which is not installed: run "
    "`pip install --no-build-isolation torch-sparse` (it compiles for some minutes) or choose another model."
)


def install() -> None:
    """Have `prepare` called just before fairchem is imported, or now where that has happened already."""
    if "fairchem.core" in sys.modules:
        prepare()
    elif not any(isinstance(finder, _BeforeFairchem) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeFairchem())


class _BeforeFairchem:
    """A finder that finds nothing, but is asked about every import."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "fairchem.core":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            prepare()


def prepare() -> None:
    """Make fairchem-core 1.10.0 importable and usable with what is installed; a second call changes nothing."""
    _stand_in_for_torch_scatter()
    _stand_in_for_torch_sparse()
    _restore_mutable_mapping()
    _restore_sph_harm()


def _stand_in_for_torch_scatter() -> None:
    """fairchem imports torch_scatter everywhere, but PyPI has only its source, which takes minutes to compile."""
    if _is_importable("torch_scatter"):
        return
    # torch_geometric asks once whether torch_scatter is there, and would then call functions that the
    # stand-in lacks. It has to get its true answer first.
    import torch_geometric.typing  # noqa: F401

    from fairchem_piwsl import _torch_scatter as own

    package = _new_module("torch_scatter", is_package=True)
    utils = _new_module("torch_scatter.utils")
    utils.broadcast = own.broadcast  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    for function in (own.scatter, own.segment_coo, own.segment_csr):
        setattr(package, function.__name__, function)


def _stand_in_for_torch_sparse() -> None:
    """`setup_imports` imports all model files, and without torch_sparse its first call ends at GemNet's.

    None of SchNet, PaiNN, eSCN, Equiformer v2 and eSEN uses it, so it has to exist, not to work.
    """
    if _is_importable("torch_sparse"):
        return
    import torch_geometric.typing  # noqa: F401  as above

    _new_module("torch_sparse").SparseTensor = SparseTensor  # type: ignore[attr-defined]


class _Unavailable(type):
    """Classes of this kind can be imported and named in annotations; any use of them raises."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise UserError(_NEEDS_TORCH_SPARSE)

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UserError(_NEEDS_TORCH_SPARSE)


class SparseTensor(metaclass=_Unavailable):
    """Stands in for `torch_sparse.SparseTensor`."""


def _restore_mutable_mapping() -> None:
    """`create_grid`, behind `--sweep-yml`, uses a name that Python 3.10 took out of `collections`."""
    if not hasattr(collections, "MutableMapping"):
        collections.MutableMapping = collections.abc.MutableMapping  # type: ignore[attr-defined]


def _restore_sph_harm() -> None:
    """`setup_imports` reaches a file that imports `sph_harm`, which scipy 1.17 replaced by `sph_harm_y`."""
    import scipy.special

    if not hasattr(scipy.special, "sph_harm"):
        # Order and degree, azimuth and polar angle trade places.
        scipy.special.sph_harm = lambda m, n, azimuth, polar: scipy.special.sph_harm_y(n, m, polar, azimuth)


def _is_importable(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _new_module(name: str, is_package: bool = False) -> types.ModuleType:
    """Create and register an empty module with a spec, without which `importlib.util.find_spec` fails on it."""
    spec = importlib.machinery.ModuleSpec(name, loader=None, origin="fairchem_piwsl", is_package=is_package)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    return module
