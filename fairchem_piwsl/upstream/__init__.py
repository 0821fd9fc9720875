"""Every work-around for fairchem-core 1.10.0 in one place, each with its reason.

`import fairchem_piwsl` only leaves a note in Python's import machinery (`install`); the work is done when
`fairchem.core` is imported for the first time. So a user can import fairchem's names at any later point, and
`piwsl --help` waits for neither torch nor fairchem.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from typing import Any, NoReturn

from fairchem_piwsl.errors import UserError

_NEEDS_TORCH_SPARSE = (
    "GemNet and DimeNet++ need torch_sparse, which is not installed: run "
    "`pip install --no-build-isolation torch-sparse` (it compiles for some minutes) or choose another model."
)


def install() -> None:
    """Put the work-arounds in place when fairchem is imported, or now where it is already."""
    if "fairchem.core" in sys.modules:
        before_import()
        after_import()
    elif not any(isinstance(finder, _FairchemFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FairchemFinder())


class _FairchemFinder:
    """Finds `fairchem.core` as Python would; `before_import` and `after_import` enclose its execution."""

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "fairchem.core":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        before_import()
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            execute(module)
            after_import()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def before_import() -> None:
    """What fairchem needs to be importable; a second call changes nothing."""
    _stand_in_for_torch_scatter()
    _stand_in_for_torch_sparse()
    _restore_sph_harm()
    _silence_known_warnings()


def after_import() -> None:
    """What fairchem, once imported, needs to work; a second call changes nothing."""
    _restore_mutable_mapping()
    _trust_own_classes()


def _stand_in_for_torch_scatter() -> None:
    """fairchem imports torch_scatter everywhere, but PyPI has only its source, minutes to compile."""
    if _loads("torch_scatter"):
        return
    from fairchem_piwsl.upstream import torch_scatter as own

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
    if not _loads("torch_sparse"):
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


def _restore_sph_harm() -> None:
    """`setup_imports` reaches a file that imports `sph_harm`, which scipy 1.17 replaced by `sph_harm_y`."""
    import scipy.special

    if not hasattr(scipy.special, "sph_harm"):
        # Order and degree, azimuth and polar angle trade places.
        scipy.special.sph_harm = lambda m, n, azimuth, polar: scipy.special.sph_harm_y(n, m, polar, azimuth)


def _restore_mutable_mapping() -> None:
    """`create_grid`, behind `--sweep-yml`, uses a name that Python 3.10 took out of `collections`."""
    import fairchem.core.common.utils as utils

    if not hasattr(utils.collections, "MutableMapping"):
        names = {**vars(collections), "MutableMapping": collections.abc.MutableMapping}
        utils.collections = types.SimpleNamespace(**names)


def _trust_own_classes() -> None:
    """torch 2.6 loads nothing but tensors by default, and fairchem's normalizer files hold its classes."""
    from fairchem.core.modules.normalization.element_references import LinearReferences
    from fairchem.core.modules.normalization.normalizer import Normalizer
    from torch.serialization import add_safe_globals

    add_safe_globals([LinearReferences, Normalizer])


def _silence_known_warnings() -> None:
    """Long warnings, on every start, about fairchem's own calls, which its users cannot change."""
    warnings.filterwarnings("ignore", "You are using `torch.load`", FutureWarning, "fairchem")
    warnings.filterwarnings("ignore", ".*jittable' is deprecated", UserWarning, "fairchem")


def _loads(name: str) -> bool:
    """Whether the compiled package `name` is there and works with this torch."""
    # torch_geometric asks once whether it is there, and would then call functions that a stand-in lacks:
    # it has to get its true answer first.
    import torch_geometric.typing  # noqa: F401

    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    except Exception as error:  # built for another torch: OSError, RuntimeError, ImportError
        warnings.warn(
            f"{name} cannot be loaded and is replaced; reinstall or remove it: {error}", stacklevel=2
        )
        return False
    return True


def _new_module(name: str, is_package: bool = False) -> types.ModuleType:
    """Register an empty module; it has a spec, without which `importlib.util.find_spec` fails on it."""
    spec = importlib.machinery.ModuleSpec(name, loader=None, origin="fairchem_piwsl", is_package=is_package)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    return module
