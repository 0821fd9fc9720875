"""Files, labels and options that `piwsl prepare` cannot work with."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import h5py
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.io.trajectory import Trajectory
from helpers_datasets import crystals, molecules
from helpers_malformed import Case

FRAME = '2\nProperties=species:S:1:pos:R:3:forces:R:3 energy={energy} pbc="{pbc}"{more}\n{atoms}'
ATOMS = "H 0 0 {z} 0 0 -0.5\nH 0 0 0 0 0 0.5\n"
SIZES = "--out out --train 6 --val 2 --test 2"


def frames(odd: int = 3, **options: object) -> str:
    """Ten frames of H2, of which number `odd` has what `options` say."""
    found = []
    for k in range(10):
        given = {
            "energy": f"{0.005 * k:.3f}",
            "pbc": "F F F",
            "more": "",
            "atoms": ATOMS.format(z=0.74 + 0.01 * k),
        }
        found.append(FRAME.format(**(given | (options if k == odd else {}))))
    return "".join(found)


def vibrations(**relabel: float):
    """A writer of 60 frames of methanol whose energies, forces or positions are multiplied."""

    def make(path: Path) -> None:
        images = molecules(60, names=("CH3OH",))
        for atoms in images:
            energy = atoms.get_potential_energy() * relabel.get("energy", 1)
            forces = atoms.get_forces() * relabel.get("forces", 1)
            atoms.positions *= relabel.get("positions", 1)
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        write(path, images)

    return make


def npz(**changed: object):
    """A writer of an npz file in sGDML's layout; a value of None leaves an array out."""

    def make(path: Path) -> None:
        rng = np.random.default_rng(0)
        arrays = {
            "z": np.array([8, 1, 1]),
            "R": np.array([[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]]) + rng.normal(scale=0.02, size=(40, 3, 3)),
            "E": rng.normal(size=40),
            "F": rng.normal(size=(40, 3, 3)),
        }
        arrays.update(changed)  # type: ignore[arg-type]
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})  # type: ignore[arg-type]

    return make


class Mischief:
    """Runs `touch executed` when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def trajectory(change) -> object:
    """A writer of an ASE trajectory of ten crystals, of which the fourth is changed."""

    def make(path: Path) -> None:
        images = crystals(10)
        change(images[3])
        with Trajectory(str(path), "w") as file:
            for atoms in images:
                file.write(atoms)

    return make


def archive(path: Path, text: str) -> None:
    with tarfile.open(path, "w:gz") as file:
        member = tarfile.TarInfo("set/a1.xsf")
        member.size = len(text)
        file.addfile(member, io.BytesIO(text.encode()))


def hdf5(path: Path, level: str = "wb97x_dz") -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("H2")
        group["atomic_numbers"] = np.array([1, 1], dtype=np.uint8)
        group["coordinates"] = np.zeros((4, 2, 3))
        group[f"{level}.energy"] = np.zeros(4)


def finished_with(extra: str):
    """A writer of a data set that `prepare` made, with something of the user's in it."""

    def make(path: Path) -> None:
        from fairchem_piwsl.datasets.prepare import prepare

        source = path.parent / "a.xyz"
        prepare([source], path.parent / "out", 6, 2, 2, quiet=True)
        (path.parent / "out" / extra).write_text("mine")

    return make


def own(name: str, command: str, names: tuple[str, ...], remedy: str, **files: object) -> Case:
    """A case whose good file is a.xyz."""
    return Case(name, f"piwsl prepare {command}", names, remedy, {"a.xyz": frames(), **files})  # type: ignore[dict-item]


def frame(name: str, names: tuple[str, ...], remedy: str, **options: object) -> Case:
    """A case with one odd frame, number 3."""
    return Case(name, f"piwsl prepare a.xyz {SIZES}", names, remedy, {"a.xyz": frames(**options)})


def units(name: str, names: tuple[str, ...], command: str = "", **relabel: float) -> Case:
    text = f"piwsl prepare a.extxyz --out out --train 40 --val 10 --test 10 {command}"
    return Case(name, text, names, "--trust-units", {"a.extxyz": vibrations(**relabel)})


def molecule(name: str, names: tuple[str, ...], remedy: str, command: str = "", **changed: object) -> Case:
    """A case with an npz file."""
    text = f"piwsl prepare md22 a.npz --out out --train 10 --val 5 --test 5 {command}"
    return Case(name, text, names, remedy, {"a.npz": npz(**changed)})


CASES = [
    # options
    own("no-out", "a.xyz", ("--out",), "--help"),
    own("no-files", f"{SIZES}", ("No files",), "--train-file"),
    own("absent", f"b.xyz {SIZES}", ("b.xyz",), "give"),
    own("empty-glob", f"'b*.xyz' {SIZES}", ("b*.xyz",), "give"),
    own("folder", f"sub {SIZES}", ("sub",), "name the files", **{"sub/b.xyz": ""}),
    own("twice", f"a.xyz a.xyz {SIZES}", ("a.xyz",), "once"),
    own("unknown-unit", f"a.xyz {SIZES} --units stone", ("--units stone",), "give one of"),
    own("unknown-length", f"a.xyz {SIZES} --length-units foot", ("--length-units foot",), "give one of"),
    own("unknown-force", f"a.xyz {SIZES} --force-units eV/foot", ("--force-units foot",), "give one of"),
    own("force-without-length", f"a.xyz {SIZES} --force-units eV", ("--force-units eV",), "Hartree/Bohr"),
    own("unknown-format", f"a.xyz {SIZES} --format npz", ("--format npz",), "aselmdb"),
    own("half-a-charge", f"b.xyz {SIZES} --format aselmdb", ("b.xyz:3", "charge 0.5"), "correct",
        **{"b.xyz": frames(more=" charge=0.5")}),
    own("unknown-split", f"a.xyz {SIZES} --split odd", ("--split odd",), "shuffle"),
    own("negative-val", "a.xyz --out out --val -1", ("--val",), "give"),
    own("no-training", "a.xyz --out out --train 0", ("--train",), "at least 1"),
    own("negative-training", "a.xyz --out out --train -4 --val 1 --test 1", ("--train",), "give"),
    own("too-many", "a.xyz --out out --train 60 --val 2 --test 2", ("10 structures", "64"), "lower"),
    own("too-many-given", "--train-file a.xyz --out out --train 60", ("10 structures", "60"), "lower"),
    own("negative-seed", f"a.xyz {SIZES} --seed -1", ("--seed -1",), "give"),
    own("negative-given", "--train-file a.xyz --out out --train -1", ("--train -1",), "give"),
    own("negative-given-val", "--train-file a.xyz --val-file a.xyz --val -1 --out out", ("--val -1",), "give"),
    own("nothing-given", "--train-file a.xyz@50: --out out", ("--train-file", "0 structures"), "give others"),
    own("no-number", "a.xyz --out out --train many", ("--train", "integer"), "--help"),
    own("step-zero", f"a.xyz@::0 {SIZES}", ("a.xyz@::0",), "start:stop:step"),
    own("too-many-colons", f"a.xyz@1:2:3:4 {SIZES}", ("a.xyz@1:2:3:4",), "start:stop:step"),
    own("no-frames-left", f"a.xyz@50: {SIZES}", ("0 structures",), "lower"),
    own("published-option", f"a.xyz {SIZES} --molecule benzene", ("--molecule",), "leave it out"),
    # output
    own("out-is-a-file", "a.xyz --out a.xyz --train 6 --val 2 --test 2", ("--out a.xyz",), "another"),
    own("out-under-a-file", "a.xyz --out a.xyz/b --train 6 --val 2 --test 2", ("--out a.xyz/b",), "another"),
    own("out-has-data", f"a.xyz {SIZES}", ("--out out",), "--overwrite", **{"out/mine.txt": "mine"}),
    own("overwrite-foreign", f"a.xyz {SIZES} --overwrite", ("mine.txt",), "another", **{"out/mine.txt": "mine"}),
    own(
        "overwrite-foreign-in-split",
        f"a.xyz {SIZES} --overwrite",
        ("train/notes.txt",),
        "another",
        made=finished_with("train/notes.txt"),
    ),
    own("overwrite-half", f"a.xyz {SIZES} --overwrite", ("--out out",), "another", **{"out/dataset.yml": ""}),
    # structures
    frame("nan-energy", ("a.xyz:3", "energy"), "leave it out", energy="nan"),
    frame("infinite-energy", ("a.xyz:3", "infinite"), "leave", energy="inf"),
    frame("text-energy", ("a.xyz:3", "energy", "low"), "correct", energy="low"),
    frame("two-energies", ("a.xyz:3", "energy"), "one number", energy='"1 2"'),
    frame("atoms-on-top", ("a.xyz:3", "0.010 Angstrom"), "--length-units", atoms=ATOMS.format(z=0.01)),
    frame("no-neighbours", ("a.xyz:3", "5 Angstrom"), "leave it out", atoms=ATOMS.format(z=9.0)),
    frame("far-away", ("a.xyz:3", "1e+06"), "move it", atoms=ATOMS.replace("0 0 ", "1e6 0 ", 2).format(z=0.7)),
    frame("nan-position", ("a.xyz:3", "finite"), "leave it out", atoms=ATOMS.format(z="nan")),
    frame("infinite-position", ("a.xyz:3", "finite"), "leave it out", atoms=ATOMS.format(z="inf")),
    frame("nan-force", ("a.xyz:3", "NaN forces on 1"), "leave", atoms=ATOMS.replace("-0.5", "nan").format(z=0.7)),
    frame("infinite-force", ("a.xyz:3", "infinite"), "leave", atoms=ATOMS.replace("-0.5", "inf").format(z=0.7)),
    frame("unknown-element", ("a.xyz", "frame 3"), "repair", atoms="Hx 0 0 0.7 0 0 0\nH 0 0 0 0 0 0\n"),
    frame("dummy-atom", ("a.xyz:3", "element"), "symbol", atoms="X 0 0 0.7 0 0 0\nH 0 0 0 0 0 0\n"),
    frame("words-for-numbers", ("a.xyz", "frame 3"), "repair", atoms="H up 0 0.7 0 0 0\nH 0 0 0 0 0 0\n"),
    frame("missing-column", ("a.xyz", "frame 3"), "repair", atoms="H 0 0 0.7\nH 0 0 0\n"),
    frame("periodic-no-cell", ("a.xyz:3", "cell"), "pbc", pbc="T T T"),
    frame("wire-no-cell", ("a.xyz:3", "cell"), "pbc", pbc="F F T"),
    frame("flat-cell", ("a.xyz:3", "no volume"), "cell", pbc="T T T", more=' Lattice="9 0 0 9 0 0 0 0 9"'),
    frame("nan-cell", ("a.xyz:3", "finite"), "leave it out", more=' Lattice="nan 0 0 0 9 0 0 0 9"'),
    Case(
        "one-atom",
        f"piwsl prepare a.xyz {SIZES}",
        ("a.xyz:", "no two atoms"),
        "--reference-file",
        {"a.xyz": "1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1\nH 0 0 0 0 0 0\n" * 10},
    ),
    own("no-such-key", f"a.xyz {SIZES} --energy-key U", ("a.xyz:", "no energy"), "--allow-missing"),
    own("no-such-forces", f"a.xyz {SIZES} --forces-key G", ("a.xyz:", "no forces"), "--no-forces"),
    own("scalar-forces", f"a.xyz {SIZES} --forces-key energy", ("a.xyz:", "shape"), "--forces-key"),
    own(
        "one-structure-in-two-splits",
        "--train-file a.xyz --val-file b.xyz --out out",
        ("a.xyz:0 in train is b.xyz:0 in val",),
        "--allow-duplicates",
        **{"b.xyz": frames()},
    ),
    own(
        "references-of-molecules",
        f"a.xyz {SIZES} --reference-file b.xyz",
        ("--reference-file", "b.xyz:0", "2 atoms"),
        "free atoms",
        **{"b.xyz": frames()},
    ),
    own(
        "references-lack-an-element",
        f"a.xyz {SIZES} --reference-file b.xyz",
        ("--reference-file", "H"),
        "add it",
        **{"b.xyz": "1\nenergy=-1\nO 0 0 0\n"},
    ),
    own(
        "references-disagree",
        f"a.xyz {SIZES} --reference-file b.xyz",
        ("--reference-file", "b.xyz:1"),
        "keep one",
        **{"b.xyz": "1\nenergy=-1\nH 0 0 0\n1\nenergy=-2\nH 0 0 0\n"},
    ),
    # files
    Case("empty-file", f"piwsl prepare a.xyz {SIZES}", ("a.xyz is empty",), "leave it out", {"a.xyz": ""}),
    Case("cut-off", f"piwsl prepare a.xyz {SIZES}", ("a.xyz", "frame 9"), "repair", {"a.xyz": frames()[:-30]}),
    Case("no-count", f"piwsl prepare a.xyz {SIZES}", ("a.xyz", "frame 0"), "repair", {"a.xyz": "two" + frames()}),
    Case("binary", f"piwsl prepare a.bin {SIZES}", ("a.bin",), "extxyz", {"a.bin": bytes(range(256))}),
    Case("latin", f"piwsl prepare a.xyz {SIZES}", ("a.xyz",), "repair", {"a.xyz": b"2\nname=\xe5\xe4\xff\nH 0 0 0\n"}),
    Case(
        "cut-gzip",
        f"piwsl prepare a.xyz.gz {SIZES}",
        ("a.xyz.gz",),
        "repair",
        {"a.xyz.gz": gzip.compress(frames().encode())[:-40]},
    ),
    Case("fake-gzip", f"piwsl prepare a.xyz.gz {SIZES}", ("a.xyz.gz",), "repair", {"a.xyz.gz": b"no gzip at all"}),
    Case("fake-db", f"piwsl prepare a.db {SIZES}", ("a.db",), "repair", {"a.db": b"SQLite format 3\0" + bytes(99)}),
    Case("broken-json", f"piwsl prepare a.json {SIZES}", ("a.json",), "repair", {"a.json": '{"1": {'}),
    Case(
        "cut-traj",
        f"piwsl prepare a.traj {SIZES}",
        ("a.traj",),
        "repair",
        {"a.traj": lambda p: (trajectory(lambda atoms: None)(p), p.write_bytes(p.read_bytes()[:2000]))},
    ),
    Case(
        "traj-without-labels",
        f"piwsl prepare a.traj {SIZES}",
        ("a.traj:3", "no energy"),
        "--allow-missing",
        {"a.traj": trajectory(lambda atoms: setattr(atoms, "calc", None))},
    ),
    Case("lmdb", f"piwsl prepare a.lmdb {SIZES}", ("a.lmdb",), "extxyz", {"a.lmdb": bytes(9999)}),
    Case("npz", f"piwsl prepare a.npz {SIZES}", ("a.npz",), "piwsl prepare rmd17", {"a.npz": npz()}),
    # units
    units("kcal", ("C-H", "kcal/mol/Angstrom"), energy=23.06, forces=23.06),
    units("energies-in-kcal", ("23.1 times", "energies in kcal/mol"), energy=23.06),
    units("energies-in-hartree", ("0.0368 times", "energies in Hartree"), energy=1 / 27.2114),
    units("wrong-sign", ("uphill", "C-H"), forces=-1.0),
    units("forces-per-bohr", ("C-H", "eV/Bohr"), forces=0.529177),
    units("hartree-per-bohr", ("C-H", "Hartree/Bohr"), "--units Hartree", energy=1 / 27.2114, forces=0.529177 / 27.2114),
    units("positions-in-bohr", ("bonds are", "Bohr"), positions=1 / 0.529177),
    units("positions-twice-converted", ("bonds are", "not in Angstrom"), positions=0.529177),
    units("declared-bohr", ("bonds are", "not in Bohr"), "--length-units Bohr"),
    # the paper's data sets
    Case("published-none", "piwsl prepare rmd17 --out out", ("No files",), "name"),
    Case("published-absent", "piwsl prepare rmd17 a.npz --out out", ("a.npz",), "give"),
    molecule("published-seed", ("--seed -1",), "give", "--seed -1"),
    molecule("published-test", ("--test -1",), "give", "--test -1"),
    molecule("published-no-training", ("--train 0",), "at least 1", "--train 0"),
    molecule("published-key", ("--units",), "leave it out", "--units Hartree"),
    molecule("published-level", ("--level", "md22"), "leave it out", "--level mp2"),
    molecule("npz-mischief", ("a.npz", "array E", "pickled"), "save it", E=np.array([Mischief()] * 40, dtype=object)),
    molecule("npz-unknown-unit", ("a.npz: e_unit stone",), "give one of", e_unit="stone"),
    molecule("npz-unknown-length", ("a.npz: r_unit foot",), "give one of", r_unit="foot"),
    molecule("npz-no-forces", ("a.npz", "E, R"), "as published", F=None),
    molecule("npz-shapes", ("a.npz", "do not belong together"), "as published", E=np.zeros(39)),
    molecule("npz-numbers", ("a.npz", "atomic numbers"), "as published", z=np.array([8, 1])),
    molecule("npz-half-an-element", ("a.npz", "whole numbers"), "as published", z=np.array([8, 1.5, 1])),
    molecule("npz-element-0", ("a.npz:", "element"), "symbol", z=np.array([8, 1, 0])),
    molecule("npz-element-200", ("a.npz:", "element"), "symbol", z=np.array([8, 1, 200])),
    molecule("npz-text", ("a.npz", "array E"), "as published", E=np.array(["low"] * 40)),
    molecule("npz-nan", ("a.npz:", "energy"), "leave it out", E=np.full(40, np.nan)),
    molecule("npz-too-small", ("40 structures",), "lower", "--train 70"),
    Case("npz-fake", "piwsl prepare rmd17 a.npz --out out", ("a.npz",), "repair", {"a.npz": b"PK no zip"}),
    Case(
        "npz-is-a-pickle",
        "piwsl prepare rmd17 a.npz --out out",
        ("a.npz",),
        "repair",
        {"a.npz": pickle.dumps(Mischief())},
    ),
    Case("xsf-none", "piwsl prepare tio2 sub --out out", ("sub",), "archive", {"sub/a.txt": ""}),
    Case("tar-fake", "piwsl prepare tio2 a.tar.gz --out out", ("a.tar.gz",), "repair", {"a.tar.gz": b"no tar"}),
    Case(
        "xsf-broken",
        "piwsl prepare tio2 a.tar.gz --out out --train 1 --val 0 --test 0",
        ("a1.xsf",),
        "repair",
        {"a.tar.gz": lambda path: archive(path, "# total energy = -1 eV\nCRYSTAL\nPRIMVEC\n1 0\n")},
    ),
    Case("hdf5-fake", "piwsl prepare ani1x a.h5 --out out", ("a.h5",), "repair", {"a.h5": b"no hdf5"}),
    Case("hdf5-level", "piwsl prepare ani1x a.h5 --out out", ("a.h5", "wb97x_dz"), "--level", {"a.h5": lambda p: hdf5(p, "mp2")}),
    Case("hdf5-on-top", "piwsl prepare ani1x a.h5 --out out --train 1 --val 1 --test 1", ("0.000 Angstrom",), "leave", {"a.h5": hdf5}),
]  # fmt: skip
