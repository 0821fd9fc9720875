"""What fairchem-core 1.10.0 needs on Pythons, numpys, scipys and torches that came after it."""

import warnings


def restore_sph_harm() -> None:
    """`setup_imports` reaches a file that imports `sph_harm`, which scipy 1.17 replaced by `sph_harm_y`."""
    import scipy.special

    if not hasattr(scipy.special, "sph_harm"):
        # Order and degree, azimuth and polar angle trade places.
        scipy.special.sph_harm = lambda m, n, azimuth, polar: scipy.special.sph_harm_y(n, m, polar, azimuth)


def trust_own_classes() -> None:
    """torch 2.6 loads nothing but tensors by default, and fairchem's normalizer files hold its classes."""
    from fairchem.core.modules.normalization.element_references import LinearReferences
    from fairchem.core.modules.normalization.normalizer import Normalizer
    from torch.serialization import add_safe_globals

    add_safe_globals([LinearReferences, Normalizer])


def silence_known_warnings() -> None:
    """Long warnings, on every start, about fairchem's own calls, which its users cannot change."""
    warnings.filterwarnings("ignore", "You are using `torch.load`", FutureWarning, "fairchem")
    warnings.filterwarnings("ignore", ".*jittable' is deprecated", UserWarning, "fairchem")
