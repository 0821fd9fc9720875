"""Every change that the plugin makes to fairchem-core 1.10, each with its reason; version 2 is left alone.

`import fairchem_piwsl` only leaves a note in Python's import machinery (`install`); the work is done when
`fairchem.core` is imported for the first time. So a user can import fairchem's names at any later point, and
`piwsl --help` waits for neither torch nor fairchem.
"""

import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from typing import Any

from fairchem_piwsl.errors import UserError


def installed_version() -> str:
    """Version of the installed fairchem-core, empty where there is none."""
    try:
        return importlib.metadata.version("fairchem-core")
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_version_1() -> bool:
    """Whether the installed fairchem-core has the Open Catalyst models and trainers, which 2.0 dropped."""
    return installed_version().startswith("1.")


def require_version_1(what: str) -> None:
    """Raise `UserError` where `what`, a command or file, cannot run with the installed fairchem-core."""
    if not is_version_1():
        found = installed_version() or "none"
        raise UserError(
            f"{what} needs fairchem-core 1.10.0, and {found} is installed here: use an environment made by "
            "`pip install fairchem-piwsl fairchem-core==1.10.0`."
        )


def install() -> None:
    """Put the changes in place when fairchem 1.10 is imported, or now where it is already."""
    if not is_version_1():
        return
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
    from fairchem_piwsl.upstream import repairs, stand_ins

    stand_ins.stand_in_for_torch_scatter()
    stand_ins.stand_in_for_torch_sparse()
    repairs.restore_sph_harm()
    repairs.silence_known_warnings()


def after_import() -> None:
    """What fairchem, once imported, needs to work; a second call changes nothing."""
    from fairchem_piwsl.upstream import names, repairs

    repairs.trust_own_classes()
    names.register_names()
