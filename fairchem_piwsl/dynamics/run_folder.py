"""A dynamics run on disk: trajectory, log and exact state, such that it continues where it stopped."""

import csv
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.trajectory import Trajectory

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.files import as_json, read_json, whole_file, write_json, write_text

COLUMNS = ("step", "time_ps", "potential", "kinetic", "total", "temperature", "departure")


@dataclass
class Progress:
    """How far a run is: `frames` counts the frames and log lines that belong to it."""

    step: int = 0
    frames: int = 0
    failure_step: int | None = None
    reason: str = ""
    seconds: float = 0.0


class RunFolder:
    """Files of one run: `trajectory.traj`, `log.csv`, `state.npz`.

    A record appends a frame and a log line, and then replaces the state in one rename. What a killed process
    appended after its last state, or before its first, is cut off when the run continues.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trajectory = path / "trajectory.traj"
        self.log = path / "log.csv"
        self.state = path / "state.npz"

    def append(self, atoms: Atoms, progress: Progress, row: dict[str, float]) -> None:
        """Append a frame and a log line, which belong to the run once `save` has saved its state."""
        self.path.mkdir(parents=True, exist_ok=True)
        with Trajectory(str(self.trajectory), mode="a") as trajectory:
            trajectory.write(atoms)
        is_new = not self.log.exists()
        with self.log.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(COLUMNS)
            writer.writerow([repr(row[column]) for column in COLUMNS])
        progress.frames += 1

    def save(self, atoms: Atoms, random: np.random.Generator, progress: Progress) -> None:
        """Replace the exact state."""
        with whole_file(self.state) as file:
            np.savez(
                file,
                positions=atoms.get_positions(),
                momenta=atoms.get_momenta(),
                random=json.dumps(random.bit_generator.state),
                progress=json.dumps(asdict(progress)),
            )

    def restore(self, atoms: Atoms, random: np.random.Generator) -> Progress:
        """Put `atoms` and `random` back to the last state, and cut files to it; an empty folder starts at 0."""
        if not self.state.exists():
            self._clear()
            return Progress()
        try:
            with np.load(self.state) as state:
                atoms.set_positions(state["positions"], apply_constraint=False)
                atoms.set_momenta(state["momenta"], apply_constraint=False)
                random.bit_generator.state = json.loads(str(state["random"]))
                progress = Progress(**json.loads(str(state["progress"])))
        except (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{self.state}: not readable ({error}); move the folder away to start this run again."
            ) from None
        self._cut(progress.frames)
        return progress

    def frames(self) -> list[Atoms]:
        """The recorded frames."""
        try:
            with Trajectory(str(self.trajectory)) as trajectory:
                return list(trajectory)
        except Exception as error:  # ASE's reader raises many kinds on a damaged file
            raise UserError(
                f"{self.trajectory}: truncated or damaged ({error!r}); move the folder away to start again."
            ) from None

    def table(self) -> dict[str, np.ndarray]:
        """The log, one array per column of `COLUMNS`."""
        try:
            with self.log.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            return {column: np.array([float(row[column]) for row in rows]) for column in COLUMNS}
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.log}: truncated or damaged ({error!r}); move the folder away to start again."
            ) from None

    def _clear(self) -> None:
        """Remove a first record, which a start left that ended before its state; refuse to remove more."""
        frames = len(self.frames()) if self.trajectory.exists() else 0
        if max(frames, len(self._lines()) - 1) > 1:
            raise UserError(
                f"{self.path}: holds a run without {self.state.name}; move the folder away to start again."
            )
        self.trajectory.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)

    def _lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines(keepends=True) if self.log.exists() else []

    def _cut(self, frames: int) -> None:
        stored, lines = self.frames(), self._lines()
        if len(stored) < frames or len(lines) < frames + 1:
            raise UserError(
                f"{self.path}: its trajectory or log is truncated ({len(stored)} of {frames} frames); "
                "move the folder away to start this run again."
            )
        if len(stored) > frames:
            unfinished = self.path / ".trajectory.part"
            with Trajectory(str(unfinished), mode="w") as trajectory:
                for atoms in stored[:frames]:
                    trajectory.write(atoms)
            unfinished.replace(self.trajectory)
        if len(lines) > frames + 1:
            write_text(self.log, "".join(lines[: frames + 1]))


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Store `settings` in a folder without runs; refuse to continue a run under other ones."""
    path = folder / "settings.json"
    now = json.loads(as_json(settings))
    if path.exists() and any(folder.glob("seed_*/state.npz")):
        stored = read_json(path)
        if not isinstance(stored, dict):
            raise UserError(f"{path}: not the settings of a run; move the folder away to start again.")
        different = [key for key in now if stored.get(key) != now[key]]
        if different:
            key = different[0]
            raise UserError(
                f"{folder}: holds a run with another {key} ({stored.get(key)} instead of {now[key]}); "
                "choose another --out."
            )
        return
    write_json(path, now)
