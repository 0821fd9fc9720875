"""Short names of the plugin's trainer and models in fairchem's registry."""

import importlib
from typing import Any

#: kind of class -> short name -> module whose import registers it
NAMES = {
    "trainer_name_mapping": {"piwsl_forces": "fairchem_piwsl.trainer"},
    "model_name_mapping": {
        "spinconv": "fairchem_piwsl.models.spinconv",
        "mace": "fairchem_piwsl.models.mace",
        "gradient_forces": "fairchem_piwsl.models.gradient_forces",
    },
}


class OnDemand(dict[str, Any]):
    """A mapping of the registry that imports the module behind a name when the name is asked for.

    The registry knows no entry points, and importing trainer and models beforehand would import them into
    processes that want fairchem alone.
    """

    def __init__(self, present: dict[str, Any], modules: dict[str, str]) -> None:
        super().__init__(present)
        self.modules = modules

    def get(self, key: str, default: Any = None) -> Any:
        """The class of a name, imported now where it is the plugin's."""
        if key not in self and key in self.modules:
            importlib.import_module(self.modules[key])
        return super().get(key, default)


def register_names() -> None:
    """Let `registry.get_model_class("spinconv")` and the like find the plugin's classes."""
    from fairchem.core.common.registry import registry

    for kind, modules in NAMES.items():
        registry.mapping[kind] = OnDemand(registry.mapping[kind], modules)
