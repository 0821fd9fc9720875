"""Work-arounds for fairchem-core: orders of import, missing and broken packages, files, sweeps."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fairchem_piwsl
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.upstream import stand_ins

# A None in sys.modules makes an import fail as if the package were not installed.
HIDE = "import sys; sys.modules['torch_scatter'] = sys.modules['torch_sparse'] = None\n"
MODELS = ["painn", "schnet", "escn", "equiformer_v2", "esen_backbone", "gemnet_oc", "dimenetplusplus"]


def python(code: str, *arguments: str, folder: Path | None = None) -> str:
    """Run code in a fresh interpreter, where the package and, first of all, `folder` can be imported."""
    root = str(Path(fairchem_piwsl.__file__).parents[1])
    code = f"import sys; sys.path[:0] = {[str(folder), root] if folder else [root]}\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_import_is_light() -> None:
    loaded = python("import fairchem_piwsl; print(*sys.modules)").split()
    assert not {"torch", "fairchem", "numpy", "torch_geometric"} & set(loaded)


@pytest.mark.parametrize("before", ["", "import torch_geometric"])
def test_all_models_are_registered_without_compiled_packages(before: str) -> None:
    python(f"""{HIDE}
{before}
import fairchem_piwsl
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
from fairchem.core.common.utils import setup_imports
setup_imports()  # in one go
from fairchem.core.common.registry import registry
for name in {MODELS}:
    assert registry.get_model_class(name)

import torch, torch_scatter, torch_geometric.typing, importlib.util
from torch_geometric.utils import scatter
assert not torch_geometric.typing.WITH_TORCH_SCATTER and not torch_geometric.typing.WITH_TORCH_SPARSE
assert scatter(torch.ones(3), torch.tensor([0, 0, 1]), reduce="max").tolist() == [1, 1]
assert importlib.util.find_spec("torch_scatter").origin == "fairchem_piwsl"
""")


def test_installed_package_is_used() -> None:
    if importlib.util.find_spec("torch_scatter").origin == "fairchem_piwsl":
        pytest.skip("torch-scatter is not installed")
    python("""
import fairchem_piwsl
import fairchem.core
import torch_scatter, torch_geometric.typing
assert torch_scatter.scatter_softmax and torch_geometric.typing.WITH_TORCH_SCATTER
assert fairchem.core.common.utils.scatter is torch_scatter.scatter
""")


def test_plugin_after_fairchem() -> None:
    if importlib.util.find_spec("torch_scatter").origin == "fairchem_piwsl":
        pytest.skip("torch-scatter is not installed")
    python("""
import fairchem.core
import fairchem_piwsl
from fairchem.core.common.registry import registry
assert registry.get_model_class("spinconv").__module__ == "fairchem_piwsl.models.spinconv"
""")


def test_short_names_of_models_and_the_trainer_are_known() -> None:
    """Each in a child process, which has not asked for another name before."""
    python("""
import os
import fairchem_piwsl
from fairchem.core.common.registry import registry
for name in ("spinconv", "mace", "gradient_forces", "piwsl_forces"):
    child = os.fork()
    if not child:
        if name == "piwsl_forces":
            assert registry.get_trainer_class(name).__name__ == "PIWSLForcesTrainer"
        else:
            assert registry.get_model_class(name).__module__ == f"fairchem_piwsl.models.{name}"
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
""")


def test_fairchem_2_is_left_alone(tmp_path: Path) -> None:
    """Version 2 lacks the names that are changed in 1.10; a process that uses it must not notice the plugin."""
    for name, text in {
        "fairchem/core/__init__.py": "",
        "fairchem_core-2.24.0.dist-info/METADATA": "Name: fairchem-core\nVersion: 2.24.0\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    message = python(
        """
finders = list(sys.meta_path)
import fairchem_piwsl
assert sys.meta_path == finders
import fairchem.core
assert not {"torch", "torch_scatter", "torch_sparse"} & set(sys.modules)
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.upstream import require_version_1
try:
    require_version_1("piwsl bench")
except UserError as error:
    print(error)
""",
        folder=tmp_path,
    )
    assert "piwsl bench needs fairchem-core 1.10.0, and 2.24.0 is installed here" in message


def test_packages_that_cannot_be_loaded_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "torch_scatter.py").write_text("raise OSError('undefined symbol')\n")
    (tmp_path / "torch_sparse.py").write_text("raise ImportError('built for another torch')\n")
    message = python(
        """
import warnings
import fairchem_piwsl
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fairchem.core
print(*(str(w.message) for w in caught), sep="\\n")
import torch_scatter
assert torch_scatter.__spec__.origin == "fairchem_piwsl"
from fairchem_piwsl.errors import UserError
from torch_sparse import SparseTensor
try:
    SparseTensor(row=None)
except UserError as error:
    print(error)
""",
        folder=tmp_path,
    )
    assert (
        "torch_scatter cannot be loaded and is replaced; reinstall or remove it: undefined symbol" in message
    )
    assert "cannot be imported here (built for another torch)" in message


def test_sparse_tensor_stand_in_says_what_to_do() -> None:
    assert not isinstance(torch.ones(1), stand_ins.SparseTensor)
    for use in (
        lambda: stand_ins.SparseTensor(row=torch.zeros(1), col=torch.zeros(1)),
        lambda: stand_ins.SparseTensor.from_dense(torch.ones(1)),
    ):
        with pytest.raises(
            UserError, match=r"GemNet and DimeNet\+\+ need torch_sparse.*No module named.*pip install"
        ):
            use()


def test_dimenet_without_torch_sparse_says_what_to_do() -> None:
    if importlib.util.find_spec("torch_sparse").origin != "fairchem_piwsl":
        pytest.skip("torch-sparse is installed")
    from fairchem.core.models.dimenet_plus_plus import DimeNetPlusPlus

    edges = torch.tensor([[0, 1], [1, 0]])
    with pytest.raises(UserError, match="need torch_sparse"):
        DimeNetPlusPlus.triplets(None, edges, cell_offsets=torch.zeros(2, 3), num_nodes=2)


def test_stand_in_gives_the_energies_of_the_compiled_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """PaiNN uses all of it: `scatter`, `segment_coo` and `segment_csr`."""
    import torch_scatter

    if not hasattr(torch_scatter, "__version__"):
        pytest.skip("torch-scatter is not installed")
    from ase.build import molecule
    from fairchem.core.datasets import data_list_collater
    from fairchem.core.models.painn import painn
    from fairchem.core.preprocessing import AtomsToGraphs

    from fairchem_piwsl.upstream import torch_scatter as own

    structures = [molecule(name, cell=[20.0] * 3, pbc=True) for name in ("CH3CH2OH", "H2O")]
    convert = AtomsToGraphs(r_energy=False, r_forces=False, r_edges=False, r_pbc=True)
    batch = data_list_collater([convert.convert(atoms) for atoms in structures], otf_graph=True)
    torch.manual_seed(0)
    model = painn.PaiNN(hidden_channels=16, num_layers=2, num_rbf=8, cutoff=5.0, direct_forces=False)
    expected = model(batch.clone())
    for function in (own.scatter, own.segment_coo):
        monkeypatch.setattr(painn, function.__name__, function)
    monkeypatch.setattr(sys.modules["fairchem.core.models.painn.utils"], "segment_csr", own.segment_csr)
    result = model(batch.clone())
    assert expected["forces"].abs().max() > 0
    for key in ("energy", "forces"):
        torch.testing.assert_close(result[key], expected[key], rtol=1e-6, atol=1e-6)


def test_sph_harm_has_the_old_argument_order() -> None:
    from scipy.special import sph_harm

    azimuth, polar = 0.3, 1.1
    value = sph_harm(1, 2, azimuth, polar)
    angular = -math.sqrt(15 / (8 * math.pi)) * math.sin(polar) * math.cos(polar)
    assert value == pytest.approx(angular * complex(math.cos(azimuth), math.sin(azimuth)))


def test_files_of_normalizers_and_references_can_be_read_back(tmp_path: Path) -> None:
    from fairchem.core.common.utils import save_checkpoint
    from fairchem.core.modules.normalization._load_utils import _load_check_duplicates
    from fairchem.core.modules.normalization.element_references import LinearReferences
    from fairchem.core.modules.normalization.normalizer import Normalizer

    modules = {
        "energy": LinearReferences(torch.arange(5.0)),
        "forces": Normalizer(mean=torch.tensor(0.0), rmsd=torch.tensor(2.5)),
    }
    path = save_checkpoint(modules, str(tmp_path), "modules.pt")
    loaded = _load_check_duplicates({"file": path}, "normalizers")
    assert loaded["forces"].rmsd == 2.5
    assert torch.equal(loaded["energy"].element_references, torch.arange(5.0))
