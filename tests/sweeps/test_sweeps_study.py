"""Studies: slots, claims, retries, and a journal that survives a killed writer."""

from __future__ import annotations

import multiprocessing
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers_sweep import BASE, sweep_content
from optuna.trial import TrialState

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.sweeps import heartbeat
from fairchem_piwsl.sweeps.heartbeat import Heartbeat, Observer
from fairchem_piwsl.sweeps.launcher import _removed_on_error
from fairchem_piwsl.sweeps.storage import JOURNAL, cut_torn_line, from_anywhere, open_storage
from fairchem_piwsl.sweeps.study import (
    add_slots,
    adding_lock,
    claim,
    counts,
    create_study,
    hand_back,
    load_study,
    retry_dead,
    slots,
)
from fairchem_piwsl.sweeps.sweep_file import Sweep, parse_sweep
from fairchem_piwsl.sweeps.worker import budget_spent

optuna.logging.set_verbosity(optuna.logging.WARNING)


def make_sweep(**changes: object) -> Sweep:
    return parse_sweep(sweep_content(**changes), BASE)


def claim_all(folder: Path, name: str) -> None:
    sweep = make_sweep(trials=20)
    storage = open_storage("journal", folder)
    study = load_study(sweep, storage)
    while (trial := claim(sweep, study, storage, name)) is not None:
        study.tell(trial, 0.0)


def test_every_slot_is_claimed_once_by_many_processes(tmp_path: Path) -> None:
    create_study(make_sweep(trials=20), open_storage("journal", tmp_path))
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=claim_all, args=(tmp_path, f"w{i}")) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    study = load_study(make_sweep(), open_storage("journal", tmp_path))
    assert [trial.number for trial in study.trials] == list(range(20))
    assert counts(study)["complete"] == 20


def write_on_and_on(folder: Path, written: Any) -> None:
    storage = open_storage("journal", folder)
    study = storage.get_study_id_from_name("toy")
    while True:
        storage.set_study_user_attr(study, "x", "y" * 20_000)
        written.set()


def test_journal_stays_readable_when_its_writer_is_killed(tmp_path: Path) -> None:
    create_study(make_sweep(trials=1), open_storage("journal", tmp_path))
    context = multiprocessing.get_context("fork")
    for delay in (0.0, 0.003):
        written = context.Event()
        writer = context.Process(target=write_on_and_on, args=(tmp_path, written))
        writer.start()
        assert written.wait(600)
        time.sleep(delay)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        Path(f"{tmp_path / JOURNAL}.lock").unlink(missing_ok=True)  # else 15 s until it is broken
        assert len(load_study(make_sweep(), open_storage("journal", tmp_path)).trials) == 1


@pytest.mark.parametrize("torn", [b'{"op_code":2,"worker', b"x" * 10_000])
def test_torn_line_is_cut_before_the_next_write(tmp_path: Path, torn: bytes) -> None:
    """With Optuna's own backend the next line is glued to the torn one, and no one can read the study again."""
    study = create_study(make_sweep(trials=2), open_storage("journal", tmp_path))
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(torn)
    storage = open_storage("journal", tmp_path)
    assert len(load_study(make_sweep(), storage).trials) == 2
    storage.set_study_user_attr(0, "after", 1)
    study.set_user_attr("older reader", 2)  # had read the file before
    again = load_study(make_sweep(), open_storage("journal", tmp_path))
    assert again.user_attrs["after"] == 1
    assert again.user_attrs["older reader"] == 2


def test_complete_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for content in (b"", b"one\ntwo\n"):
        path.write_bytes(content)
        assert cut_torn_line(path) == 0
        assert path.read_bytes() == content


def test_dead_worker_leaves_a_trial_that_is_retried_with_its_values(tmp_path: Path) -> None:
    sweep, storage = make_sweep(trials=2), open_storage("journal", tmp_path)
    study = create_study(sweep, storage)
    dead, alive = claim(sweep, study, storage, "dead"), claim(sweep, study, storage, "alive")
    assert dead is not None
    assert alive is not None
    x = dead.suggest_float("optim.lr_initial", 0.0, 1.0)
    observer = Observer(tmp_path, grace=0.3)
    with Heartbeat(tmp_path, "alive", 0.05):
        assert retry_dead(study, storage, tmp_path, observer, retries=1) == []
        time.sleep(0.4)
        assert retry_dead(study, storage, tmp_path, observer, retries=1) == [dead.number]
        assert retry_dead(study, storage, tmp_path, observer, retries=1) == []
    with pytest.raises(
        Exception, match="Cannot tell a FAIL trial"
    ):  # the worker was only silent: it comes too late
        study.tell(dead, 1.0)
    again = claim(sweep, study, storage, "third")
    assert again is not None
    assert again.suggest_float("optim.lr_initial", 0.0, 1.0) == x
    assert again.user_attrs["slot"] == dead.user_attrs["slot"]
    # dies again: one retry was allowed
    time.sleep(0.01)
    observer.silent_for("third")
    time.sleep(0.4)
    assert again.number in retry_dead(study, storage, tmp_path, observer, retries=1)
    latest = slots(study)[dead.user_attrs["slot"]]
    assert latest.state == TrialState.FAIL
    assert "2 times" in latest.user_attrs["reason"]


def test_retry_lost_by_a_kill_is_made_up_for(tmp_path: Path) -> None:
    sweep, storage = make_sweep(trials=1), open_storage("journal", tmp_path)
    study = create_study(sweep, storage)
    trial = claim(sweep, study, storage, "w")
    assert trial is not None
    trial.set_user_attr("retry", True)
    study.tell(trial, state=TrialState.FAIL)  # and the worker is killed before it adds the retry
    retry_dead(study, storage, tmp_path, Observer(tmp_path, 1.0), retries=2)
    retry_dead(study, storage, tmp_path, Observer(tmp_path, 1.0), retries=2)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_handed_back_trial_waits_again(tmp_path: Path) -> None:
    sweep, storage = make_sweep(trials=1), open_storage("journal", tmp_path)
    study = create_study(sweep, storage)
    for _ in range(4):  # however often: preemption is no fault of the trial's
        trial = claim(sweep, study, storage, "w")
        assert trial is not None
        hand_back(study, storage, tmp_path, trial.number, "preempted")
    assert counts(study) == {"running": 0, "complete": 0, "pruned": 0, "fail": 0, "waiting": 1}
    assert len(study.trials) == 5


def test_steps_of_a_continued_trial_count_once(tmp_path: Path) -> None:
    storage = open_storage("journal", tmp_path)
    study = create_study(make_sweep(trials=1), storage)
    for steps in (500, 900, 1000):  # the trainer's own number of steps, which goes on where it was
        trial = claim(make_sweep(), study, storage, "w")
        assert trial is not None
        trial.set_user_attr("steps", steps)
        hand_back(study, storage, tmp_path, trial.number, "preempted")
    assert not budget_spent(make_sweep(budget={"steps": 1001}), study)
    assert budget_spent(make_sweep(budget={"steps": 1000}), study)


def test_a_trial_that_was_closed_meanwhile_is_not_handed_back(tmp_path: Path) -> None:
    """A worker that was taken for dead, and is preempted when it wakes up, goes on to its own end."""
    sweep, storage = make_sweep(trials=1), open_storage("journal", tmp_path)
    study = create_study(sweep, storage)
    trial = claim(sweep, study, storage, "silent")
    assert trial is not None
    assert retry_dead(study, storage, tmp_path, Observer(tmp_path, grace=-1.0), retries=1) == [0]
    hand_back(study, storage, tmp_path, trial.number, "preempted")
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert study.trials[0].user_attrs["reason"].startswith("worker died")


def test_clocks_need_not_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat.time, "time", lambda: 0.0)  # a worker whose clock stands in 1970
    observer = Observer(tmp_path, grace=0.5)
    with Heartbeat(tmp_path, "w", 0.05):
        observer.silent_for("w")
        time.sleep(0.2)
        assert observer.is_alive("w", within=0.5)
    assert observer.is_dead("w")  # it has ended


def test_existing_study_and_other_space(tmp_path: Path) -> None:
    storage = open_storage("journal", tmp_path)
    create_study(make_sweep(), storage)
    with pytest.raises(UserError, match="exists already"):
        create_study(make_sweep(), storage)
    other = make_sweep(space={"optim.lr_initial": {"type": "float", "low": 0.0, "high": 2.0}})
    with pytest.raises(UserError, match=r"another search space: 'optim.lr_initial' differs"):
        create_study(other, storage)
    with pytest.raises(UserError, match="other objectives"):
        create_study(make_sweep(objective={"metric": "error", "direction": "maximize"}), storage)
    with pytest.raises(UserError, match="other objectives"):
        create_study(make_sweep(objective="other"), storage)


def test_a_trial_that_is_added_with_optuna_is_left_alone(tmp_path: Path) -> None:
    sweep, storage = make_sweep(trials=1), open_storage("journal", tmp_path)
    study = create_study(sweep, storage)
    study.enqueue_trial({"optim.lr_initial": 0.31})
    [trial, nothing] = [claim(sweep, study, storage, "w") for _ in range(2)]
    assert trial is not None
    assert nothing is None
    storage.set_trial_state_values(study.trials[1]._trial_id, state=TrialState.RUNNING)
    observer = Observer(tmp_path, grace=-1.0)
    assert retry_dead(study, storage, tmp_path, observer, retries=1) == [trial.number]


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_a_sampler_with_a_seed_draws_other_values_for_each_trial(name: str, tmp_path: Path) -> None:
    sweep = make_sweep(trials=4, sampler={"name": name, "seed": 1}, base_first=False)
    storage = open_storage("journal", tmp_path)
    study = create_study(sweep, storage)
    trials = [claim(sweep, study, storage, "w") for _ in range(4)]
    values = {trial.suggest_float("optim.lr_initial", 0.0, 1.0) for trial in trials if trial is not None}
    assert len(values) == 4


def test_two_starts_at_the_same_moment_do_not_take_the_folder_from_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "sweep"
    with _removed_on_error(folder):
        with pytest.raises(UserError, match="another --folder"), _removed_on_error(folder):
            raise AssertionError("never begun")
        (folder / "journal.log").touch()
    with pytest.raises(UserError, match="another --folder"), _removed_on_error(folder):
        raise AssertionError("never begun")
    assert [path.name for path in folder.iterdir()] == ["journal.log"]


def test_base_that_lies_outside_where_a_condition_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space = {
        "optim.batch_size": {"type": "categorical", "choices": [4, 8]},
        "optim.lr_initial": {"type": "float", "low": 0.2, "high": 0.5, "when": {"optim.batch_size": 4}},
    }
    study = create_study(make_sweep(space=space), open_storage("journal", tmp_path))
    assert "base" not in study.trials[0].user_attrs
    assert "the base config's optim.lr_initial is outside" in caplog.text


def test_the_largest_seed(tmp_path: Path) -> None:
    sweep, storage = make_sweep(trials=3, seed=2**32 - 1), open_storage("journal", tmp_path)
    study = create_study(sweep, storage)
    assert all(claim(sweep, study, storage, "w") is not None for _ in range(3))


def add_under_lock(folder: Path) -> None:
    study = load_study(make_sweep(), open_storage("journal", folder))
    with adding_lock(folder):
        add_slots(study, make_sweep(trials=40))


def test_slots_are_added_once_by_two_resumes_at_the_same_moment(tmp_path: Path) -> None:
    study = create_study(make_sweep(trials=1), open_storage("journal", tmp_path))
    context = multiprocessing.get_context("fork")
    resumes = [context.Process(target=add_under_lock, args=(tmp_path,)) for _ in range(2)]
    for process in resumes:
        process.start()
    for process in resumes:
        process.join()
    assert sorted(trial.user_attrs["slot"] for trial in study.trials) == list(range(40))


def test_more_slots(tmp_path: Path) -> None:
    study = create_study(make_sweep(trials=2), open_storage("journal", tmp_path))
    assert add_slots(study, make_sweep(trials=5)) == 3
    assert add_slots(study, make_sweep(trials=5)) == 0
    assert sorted(slots(study)) == list(range(5))


def test_a_storage_in_a_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for relative in ("a.log", "sqlite:///a.db"):
        name = relative.removeprefix("sqlite:///")
        assert from_anywhere(relative) == relative.replace(name, str(tmp_path / name))
    for url in ("journal", "sqlite:////b/a.db", "sqlite:///:memory:", "sqlite://", "postgresql:///x"):
        assert from_anywhere(url) == url


def test_storages_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_storage(str(tmp_path / "gone" / "x.log"), tmp_path)
    with pytest.raises(UserError, match="must be 'journal'"):
        open_storage("study.db", tmp_path)
    with pytest.raises(UserError, match=r"sqlite:////nowhere/x.db cannot be reached"):
        open_storage("sqlite:////nowhere/x.db", tmp_path)
    with pytest.raises(UserError) as caught:
        open_storage("postgresql+nodriver://me:secret@host/db", tmp_path)
    assert "secret" not in str(caught.value)


def test_database_in_place_of_the_journal(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}", tmp_path)
    sweep = make_sweep(trials=2)
    study = create_study(sweep, storage)
    first = claim(sweep, study, storage, "w")
    assert first is not None
    hand_back(study, storage, tmp_path, first.number, "preempted")
    assert counts(study)["waiting"] == 2
