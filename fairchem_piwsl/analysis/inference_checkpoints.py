"""The checkpoints of fairchem 2 for inference: told from others by their bytes, and looked through before use.

They name the classes of their model and tasks, and loading one calls these by name. So the file is first read with
torch's restricted unpickler, and every name in it has to be one of fairchem's own classes, unless the file is trusted
(`--trust-checkpoint`).
"""

import collections
import typing
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairchem_piwsl.config import entries
from fairchem_piwsl.errors import UserError

FILE = "inference_ckpt.pt"
#: the class of what is in the file
_CLASS = "MLIPInferenceCheckpoint"
#: keys of a config whose values are called by name
_CALLED = ("_target_", "model", "module")
#: torch's own constructors, of which templates make element references
_TENSORS = ("torch.DoubleTensor", "torch.FloatTensor", "torch.tensor", "torch.Tensor")


def is_inference_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of fairchem 2 for inference."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return any(_CLASS.encode() in archive.read(name)[:1000] for name in pickles)


def read_inference_checkpoint(path: Path) -> Any:
    """The content of such a file, where fairchem 2 is installed.

    Raises:
        UserError: the file is missing, damaged, of another kind, or needs trust.
    """
    import torch
    from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
    from omegaconf import DictConfig, ListConfig, base, nodes

    from fairchem_piwsl.training.checkpoint_files import need_trust, read_torch_file

    plain = [typing.Any, collections.defaultdict, int, dict, list]
    config = [DictConfig, ListConfig, base.ContainerMetadata, base.Metadata, nodes.AnyNode]
    torch.serialization.add_safe_globals([MLIPInferenceCheckpoint, *plain, *config])
    content = read_torch_file(path, key="checkpoint")
    if isinstance(content, Mapping) and {"config", "state_dict"} <= content.keys():
        raise UserError(
            f"{path} is a checkpoint of fairchem-core 1.10, and fairchem-core 2 is installed here; use an environment "
            "made by `pip install fairchem-piwsl fairchem-core==1.10.0`."
        )
    if not isinstance(content, MLIPInferenceCheckpoint):
        raise UserError(
            f"{path} is no checkpoint of fairchem-core 2 for inference (it holds a {type(content).__name__}); give the "
            f"{FILE} of a training."
        )
    for name in called_names([content.model_config, content.tasks_config]):
        if not _is_harmless(name):
            need_trust(path, f"asks for {name}, which is no class of fairchem")
    return content


def called_names(config: Any) -> Iterator[str]:
    """Dotted names in a config that are imported and called when it is made to objects."""
    for key, value in entries(config):
        if key.rpartition(".")[2] in _CALLED and isinstance(value, str) and "." in value:
            yield value


def _is_harmless(name: str) -> bool:
    """Whether a dotted name stands for a class that fairchem defines, or for a tensor."""
    if name in _TENSORS:
        return True
    if not name.startswith("fairchem.core."):
        return False
    from hydra.utils import get_object

    try:
        found = get_object(name)
    except Exception as error:  # whatever importing it may raise
        raise UserError(f"{name}: named in a checkpoint, but not in the installed fairchem-core.") from error
    return isinstance(found, type) and found.__module__.startswith("fairchem.core.")
