"""The study of a sweep: its trials as slots to be claimed, handed back and retried.

`start` puts one waiting trial per slot into the study; workers only ever claim waiting trials (Optuna's own `ask`
makes new ones). So the number of trials is exact whatever the number of workers, and no worker has to ask another. A trial whose worker died
or was preempted is closed as failed, with its reason, and a new waiting trial with the same values takes its
slot; it continues the same run from its last checkpoint.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from fairchem_piwsl.config import get_value
from fairchem_piwsl.errors import UserError
from fairchem_piwsl.settings import PIWSLSettings
from fairchem_piwsl.sweeps.heartbeat import Observer
from fairchem_piwsl.sweeps.samplers import grid, make_pruner, make_sampler
from fairchem_piwsl.sweeps.space import active, contains, fingerprint
from fairchem_piwsl.sweeps.sweep_file import Sweep

SLOT, WORKER, REASON, RETRY, DEATHS, STEPS = "slot", "worker", "reason", "retry", "deaths", "steps"
BASE = "base"
ADDING = "adding"


def load_study(sweep: Sweep, storage: BaseStorage) -> optuna.Study:
    """The sweep's study with its sampler and pruner; one object per trial keeps Optuna's caches fresh."""
    try:
        return optuna.load_study(
            study_name=sweep.study,
            storage=storage,
            sampler=make_sampler(sweep),
            pruner=make_pruner(sweep),
        )
    except KeyError:
        raise UserError(
            f"study '{sweep.study}' is not in this storage; begin it with `piwsl sweep start`."
        ) from None


def create_study(sweep: Sweep, storage: BaseStorage) -> optuna.Study:
    """A new study with all its slots; raises where one of that name exists."""
    sampler, pruner = make_sampler(sweep), make_pruner(sweep)
    try:
        study = optuna.create_study(
            study_name=sweep.study,
            storage=storage,
            sampler=sampler,
            pruner=pruner,
            directions=sweep.objective.directions,  # type: ignore[arg-type]
        )
    except optuna.exceptions.DuplicatedStudyError:
        old = optuna.load_study(study_name=sweep.study, storage=storage)
        check_same_space(old, sweep)
        raise UserError(
            f"study '{sweep.study}' exists already: continue it with `piwsl sweep resume`, or change 'study'."
        ) from None
    study.set_user_attr("space", fingerprint(sweep.space))
    study.set_user_attr("objective", sweep.objective.model_dump(mode="json"))
    if sweep.base_first and sweep.sampler["name"] != "grid":
        # so that the best trial is never worse than the settings one came with
        own = base_values(sweep)
        outside = [key for key in active(sweep.space, lambda p: own.get(p.key)) if key not in own]
        if outside:
            logging.warning(
                f"the base config's {', '.join(outside)} is outside of the search space, so that no trial has its settings"
            )
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                user_attrs={SLOT: 0} if outside else {SLOT: 0, BASE: True},
                system_attrs={"fixed_params": own},
            )
        )
    add_slots(study, sweep)
    return study


def base_values(sweep: Sweep) -> dict[str, Any]:
    """The base config's own values of the searched entries, as far as the search space holds them."""
    defaults = {f"optim.piwsl.{name}": value for name, value in asdict(PIWSLSettings()).items()}
    trained = {**sweep.base, "seed": sweep.seed}
    values = {p.key: get_value(trained, p.key, defaults.get(p.key)) for p in sweep.space}
    return {p.key: values[p.key] for p in sweep.space if contains(p.distribution, values[p.key])}


def check_same_space(study: optuna.Study, sweep: Sweep) -> None:
    """Raise where the study was made with another search space or other objectives."""
    old, new = study.user_attrs.get("space", {}), fingerprint(sweep.space)
    for key in [*old, *new]:
        if old.get(key) != new.get(key):
            raise UserError(
                f"study '{sweep.study}' has another search space: '{key}' differs; "
                "change 'study' in the sweep file to begin a new one."
            )
    objective = sweep.objective.model_dump(mode="json")
    same = study.user_attrs.get("objective") == objective
    if not same or [d.name.lower() for d in study.directions] != sweep.objective.directions:
        raise UserError(f"study '{sweep.study}' has other objectives; change 'study' to begin a new one.")


def add_slots(study: optuna.Study, sweep: Sweep) -> int:
    """Add waiting trials until the study has all slots of the sweep; returns the number added."""
    used, points = len(slots(study)), grid(sweep)
    for slot in range(used, sweep.trials):
        fixed = {"fixed_params": points[slot]} if points else {}
        study.add_trial(
            optuna.create_trial(state=TrialState.WAITING, user_attrs={SLOT: slot}, system_attrs=fixed)
        )
    return max(0, sweep.trials - used)


def claim(sweep: Sweep, study: optuna.Study, storage: BaseStorage, worker: str) -> optuna.Trial | None:
    """Take the first waiting trial for this worker, or None where there is none left.

    The sampler's seed follows from the slot: no two workers draw the same, and a sweep can be repeated.
    """
    for frozen in own_trials(study, TrialState.WAITING):
        sampler = make_sampler(sweep, draw=frozen.user_attrs[SLOT])
        try:
            mine = storage.set_trial_state_values(frozen._trial_id, state=TrialState.RUNNING)
        except UpdateFinishedTrialError:
            continue
        if mine:
            storage.set_trial_user_attr(frozen._trial_id, WORKER, worker)
            study.sampler = sampler
            return optuna.Trial(study, frozen._trial_id)
    return None


def fail(study: optuna.Study, storage: BaseStorage, number: int, reason: str, retry: bool = False) -> None:
    """Close a trial as failed with its reason; one that has been closed already stays as it is."""
    frozen = study.get_trials(deepcopy=False)[number]
    with suppress(UpdateFinishedTrialError):
        if retry:
            storage.set_trial_user_attr(frozen._trial_id, RETRY, True)
        storage.set_trial_user_attr(frozen._trial_id, REASON, reason)
        storage.set_trial_state_values(frozen._trial_id, state=TrialState.FAIL)


@contextmanager
def adding_lock(folder: Path) -> Iterator[None]:
    """Only one process at a time adds trials."""
    lock = JournalFileOpenLock(str(folder / ADDING), grace_period=30)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def hand_back(study: optuna.Study, storage: BaseStorage, folder: Path, number: int, reason: str) -> None:
    """Close a trial that did not get to its end and let another worker continue it."""
    with adding_lock(folder):
        fail(study, storage, number, reason, retry=True)
        add_missing_retries(study)


def retry_dead(
    study: optuna.Study, storage: BaseStorage, folder: Path, observer: Observer, retries: int
) -> list[int]:
    """Close running trials of dead workers and let others continue them; returns their numbers.

    A trial that has taken `retries` + 1 workers with it is not tried again.
    """
    dead = [
        trial
        for trial in own_trials(study, TrialState.RUNNING)
        # between its claim and its worker's name a trial is known by its number
        if observer.is_dead(trial.user_attrs.get(WORKER, f"of trial {trial.number}"))
    ]
    if not dead and not missing_retries(study):
        return []
    with adding_lock(folder):
        for trial in dead:
            deaths = trial.user_attrs.get(DEATHS, 0) + 1
            times = "" if deaths == 1 else f", {deaths} times on these values"
            reason = f"worker died (killed, node lost or out of memory{times})"
            with suppress(UpdateFinishedTrialError):
                storage.set_trial_user_attr(trial._trial_id, DEATHS, deaths)
            fail(study, storage, trial.number, reason, retry=deaths <= retries)
        add_missing_retries(study)
    return [trial.number for trial in dead]


def missing_retries(study: optuna.Study) -> list[FrozenTrial]:
    """Trials to be retried whose retry is not in the study yet."""
    trials = own_trials(study)
    retried = {trial.user_attrs["retry_of"] for trial in trials if "retry_of" in trial.user_attrs}
    return [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL and trial.user_attrs.get(RETRY) and trial.number not in retried
    ]


def add_missing_retries(study: optuna.Study) -> None:
    """Add the waiting successors, also those that a process killed in between had no time to add."""
    for trial in missing_retries(study):
        attributes = {SLOT: trial.user_attrs[SLOT], "retry_of": trial.number}
        attributes |= {name: trial.user_attrs[name] for name in (DEATHS, BASE) if name in trial.user_attrs}
        fixed = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=attributes,
                system_attrs={"fixed_params": fixed} if fixed else {},
            )
        )


def own_trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """The sweep's trials, in some states or in any; others were added with Optuna."""
    trials = study.get_trials(deepcopy=False, states=states or None)
    return [trial for trial in trials if SLOT in trial.user_attrs]


def slots(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The latest trial of every slot: what became of each of the sweep's trials."""
    latest = {trial.user_attrs[SLOT]: trial for trial in own_trials(study)}
    return dict(sorted(latest.items()))


def counts(study: optuna.Study) -> dict[str, int]:
    """Number of slots by state of their latest trial, in lower case."""
    found = Counter(trial.state for trial in slots(study).values())
    return {state.name.lower(): found[state] for state in TrialState}


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that came to their end with a value."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The best completed trial, or the Pareto front; empty before the first completed trial."""
    if not completed(study):
        return []
    return [study.best_trial] if len(study.directions) == 1 else study.best_trials
