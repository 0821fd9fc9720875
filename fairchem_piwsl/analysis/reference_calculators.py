"""Reference calculators to hold models against: GFN2-xTB (extra `xtb`) and ASE's EMT, for trying things out."""

from ase.calculators.calculator import Calculator

from fairchem_piwsl.errors import UserError

# tblite's own 1.0 leaves errors of 1e-4 eV/Angstrom along the motion, by which dynamics loses energy; a third more
# time buys forces that are a hundred times as exact.
XTB_ACCURACY = 0.01
NAMES = {"xtb": "GFN2-xTB", "emt": "EMT"}


def reference_calculator(name: str) -> Calculator:
    """A fresh ASE calculator: "xtb" is GFN2-xTB by tblite, "emt" is ASE's effective medium theory."""
    if name == "emt":
        from ase.calculators.emt import EMT

        return EMT()
    if name == "xtb":
        try:
            from tblite.ase import TBLite
        except ImportError as error:
            if "GOMP" in str(error.__cause__):
                # torch 2.4 brings a libgomp that is older than tblite needs; the first one loaded serves both.
                raise UserError(
                    "xtb: torch was loaded before tblite; put `import tblite.ase` first."
                ) from error
            raise UserError(
                f"xtb: tblite is not installed ({error}); run `pip install 'fairchem_piwsl[xtb]'`."
            ) from error
        return TBLite(method="GFN2-xTB", accuracy=XTB_ACCURACY, verbosity=0)
    raise UserError(f"{name}: no such reference calculator; choose one of {', '.join(NAMES)}.")
