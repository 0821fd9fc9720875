"""Stand-ins for the compiled packages that fairchem-core 1.10.0 imports whether or not a model needs them."""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from typing import Any, NoReturn

from fairchem_piwsl.errors import UserError

#: compiled packages that could not be imported, and why
_failures: dict[str, str] = {}


def _needs_torch_sparse() -> UserError:
    return UserError(
        f"GemNet and DimeNet++ need torch_sparse, which cannot be imported here ({_failures['torch_sparse']}): run "
        "`pip install setuptools wheel` and then `pip install --no-build-isolation torch-scatter torch-sparse` with "
        "the torch that is installed (both compile for many minutes), or choose another model."
    )


def stand_in_for_torch_scatter() -> None:
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


def stand_in_for_torch_sparse() -> None:
    """`setup_imports` imports all model files, and without torch_sparse its first call ends at GemNet's.

    None of SchNet, PaiNN, eSCN, Equiformer v2 and eSEN uses it, so it has to exist, not to work.
    """
    if not _loads("torch_sparse"):
        _new_module("torch_sparse").SparseTensor = SparseTensor  # type: ignore[attr-defined]


class _Unavailable(type):
    """Classes of this kind can be imported and named in annotations; any use of them raises."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise _needs_torch_sparse()

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _needs_torch_sparse()


class SparseTensor(metaclass=_Unavailable):
    """Stands in for `torch_sparse.SparseTensor`."""


def _loads(name: str) -> bool:
    """Whether the compiled package `name` is there and works with this torch."""
    # torch_geometric asks once whether it is there, and would then call functions that a stand-in lacks:
    # it has to get its true answer first.
    import torch_geometric.typing  # noqa: F401

    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        _failures[name] = str(error)
        return False
    except Exception as error:  # built for another torch: OSError, RuntimeError, ImportError
        _failures[name] = " ".join(str(error).split())
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
