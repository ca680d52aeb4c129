"""A search for hyperparameters, as the manager of the experiments runs it."""

import sys
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from typing_extensions import override

from sb3_diffusion.printable import printable

from .options.commands import own_command
from .options.errors import fail
from .settings_manager import SettingsManager
from .tuning.report import print_summary, train_command, write_report
from .tuning.search import Search, learning_offline
from .tuning.study import open_study, storage_lock
from .warmup import announce_warm_up


class SearchManager(SettingsManager):
    """A manager whose searches several workers share exactly. Arguments: see there."""

    def _create_sampler(self, sampler_method: str) -> BaseSampler:
        try:
            return super()._create_sampler(sampler_method)
        except (ImportError, OSError) as error:
            needs = "needs the package optunahub and a connection to the network"
            fail("train.py", f"--sampler {sampler_method} {needs} ({error}); install it, or take --sampler tpe")

    @override
    def objective(self, trial: optuna.Trial) -> float:
        try:
            return super().objective(trial)
        except optuna.TrialPruned as pruned:
            if pruned.__cause__ is not None:  # rl-zoo3 takes an error of the training for a reason to prune
                raise pruned.__cause__ from None
            raise

    @override
    def hyperparameters_optimization(self) -> None:
        if self.tensorboard_log is not None:
            print("The trials of a search write no TensorBoard files.")
        if self.algo not in HYPERPARAMS_SAMPLER:
            fail("train.py", f"-optimize: there is no search space for {self.algo}; write one under search: in its settings")
        if self.dataset_name:
            ALGOS[self.algo] = learning_offline(ALGOS[self.algo])
        sampler, pruner = self._create_sampler(self.sampler), self._create_pruner(self.pruner)
        values = {key: str(value) for key, value in self._hyperparams.items()}
        attributes = {"algo": self.algo, "env": self.env_name.gym_id, "command": own_command(), **values}
        try:
            lock = storage_lock(self.storage)
            study = open_study(self.storage, self.study_name, lock, sampler, pruner, attributes)
        except ValueError as error:
            fail("train.py", str(error))
        if not self.dataset_name:
            announce_warm_up(self._hyperparams.get("learning_starts", 0), int(self.n_timesteps))
        print(f"Study {printable(study.study_name, 200)}, sampler {self.sampler}, pruner {self.pruner}")
        Search(study, self.objective, lock, self.n_trials, self.max_total_trials).run(self.n_jobs)
        train = train_command(sys.argv, study.study_name) if self.storage is not None else []
        print_summary(study, train)
        # the same name for every worker: the last one has seen all trials
        report = f"report_{self.env_name}_{study.study_name.replace('/', '-')}"
        write_report(study, Path(self.log_folder, self.algo, report), picture=not self.no_optim_plots)
