"""A run: one config trained once, in a folder of its own, from data to finished weights.

    runs/<name>/config.json     the resolved config, written when training begins; another under this name is refused
                run.json        the prepared data's path and hash, the stage (select, refit, finished), what was found
                metrics.jsonl   one line per logged step and evaluation
                checkpoints/    of each stage
                reports/        what `evaluate` found, by split
                calibrator.json what `calibrate` fitted, if it did
                .lock           held by the process that trains it

Training has one or two stages. `select` trains on the train split and watches a metric on the validation split; with
`training.refit` a second pass, `refit`, trains a new model on train + validation for as many epochs as were best.
The test split is read by `evaluate` alone.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from features import storage
from features.encoder import Encoder
from features.prepared import Prepared, View
from recsys import distributed
from recsys.compression import make_collection, make_table_optimizer
from recsys.config import ConfigError, RunConfig
from recsys.embedding.table import EmbeddingTable, Search
from recsys.evaluation.evaluate import Report, RowSettings, check_metric
from recsys.held_folder import held
from recsys.model_bytes import served_bytes, table_sizes
from recsys.models import make_model, model_class, table_encoder
from recsys.models.interface import ClosedForm, PhaseSettings, Ranker, Recommender, Retriever
from recsys.phases import Phase, Until
from recsys.run_reports import calibrator_of, report_on, report_on_newer, seen_before
from recsys.run_start import Parent
from recsys.run_state import FINISHED, REFIT, SELECT, RunState, differing_keys, read_config, read_state
from recsys.training.checkpoint import Checkpoints
from recsys.training.checks import check_data, check_settings
from recsys.training.optimizers import make_optimizer
from recsys.training.schedule import make_schedule
from recsys.training.state import load_model, restart
from recsys.training.trainer import Evaluate, Observer, Progress, Settings, Trainer, evaluated, higher_is_better

Model = Ranker | Recommender


def build_model(config: RunConfig, encoder: Encoder, backend: str | None = None) -> Model:
    """The config's model with fresh weights, a function of (config, encoder) alone.

    backend: another one than the config's; "plain" here is a model to evaluate, on the CPU, which does not train.
    "fused" and "sharded" are one setting for one process and for several ranks: what one began, the other resumes.
    Raises ConfigError for a setting that the model or its tables do not have.
    """
    if issubclass(model_class(config.model.name), ClosedForm):
        return make_model(config.model)
    chosen = backend or config.tables.backend
    if chosen != "plain":
        chosen = "sharded" if distributed.world_size() > 1 else "fused"
    with torch.random.fork_rng(devices=[]):
        sharding = config.tables.sharding if chosen == "sharded" else None
        tables = config.tables.model_copy(update={"backend": chosen, "sharding": sharding})
        optimizer = None if chosen == "plain" and backend else make_table_optimizer(config.optimizer.tables)
        read = table_encoder(config.model, encoder)
        max_norm, l2 = config.training.max_row_norm, config.training.mba_l2
        collection = make_collection(tables, read, optimizer, seed=config.seed, max_row_norm=max_norm, mba_l2=l2)
        torch.manual_seed(config.seed)  # here: some backends draw numbers, on each rank others
        model = make_model(config.model, encoder, collection)
    assert isinstance(model, nn.Module)
    return model if backend else model.to(config.training.device)


class Run:
    """A run on disk. Make one with `create`, reach one with `open`."""

    def __init__(self, folder: Path, config: RunConfig, prepared: Prepared, parent: Parent | None = None) -> None:
        self.folder = folder
        self.config = config
        self.prepared = prepared
        self._parent = parent

    # --- on disk ---

    @staticmethod
    def create(
        config: RunConfig, folder: Path, prepared: Prepared, resume: bool = False, init_from: Path | str | None = None
    ) -> "Run":
        """A new run, or with `resume` (or when it is finished) the one that is there, if its config is the same.

        init_from: the folder of a finished run whose weights and optimizer state it starts from (see run_start.py);
        on resuming it need not be said again. Nothing is written before `train` has found that the config can be
        trained. Raises ConfigError when it cannot, when the folder belongs to another config, other data or another
        parent, or holds an unfinished run and `resume` is not given.
        """
        run = Run(folder, config, prepared, None if init_from is None else Parent.open(init_from))
        check_settings(config)
        if run._parent is not None:
            run._parent.check_config(config)
        check_data(config, prepared)
        if run._begun:
            run._check_same()
            if not run.finished and not resume:
                raise ConfigError(f"{folder} is an unfinished run; continue it with --resume or choose another --name")
        distributed.barrier()  # no rank writes before all have looked
        return run

    @staticmethod
    def open(folder: str | Path) -> "Run":
        """The run of that folder; ConfigError when there is none, or when its prepared data is gone or changed."""
        folder = Path(folder)
        if not (folder / "config.json").exists():
            raise ConfigError(
                f"{folder} is not a run (it has no config.json); `recsys train CONFIG` makes one in runs/"
            )
        config, state = read_config(folder / "config.json"), read_state(folder / "run.json")
        prepared = Prepared.open(state.prepared)
        if prepared.content_hash != state.data_hash:
            raise ConfigError(f"{state.prepared} changed since {folder} was trained; prepare it again")
        return Run(folder, config, prepared)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def state(self) -> RunState:
        """What run.json says now; the beginning when nothing is written yet."""
        if self._begun:
            return read_state(self.folder / "run.json")
        fresh = RunState(prepared=str(self.prepared.path.resolve()), data_hash=self.prepared.content_hash)
        return fresh if self._parent is None else self._parent.recorded_in(fresh)

    @property
    def _begun(self) -> bool:
        return (self.folder / "config.json").exists()

    @property
    def finished(self) -> bool:
        """Whether training has ended."""
        return self.state.stage == FINISHED

    def _begin(self) -> None:
        """Claim the folder. config.json is written last: without it there is no run."""
        if distributed.rank() == 0 and not self._begun:
            storage.write_json(self.folder / "run.json", vars(self.state))
            storage.write_text(self.folder / "config.json", self.config.to_json())
        distributed.barrier()

    def _write_state(self, state: RunState) -> None:
        distributed.barrier()  # no rank finds the new state before all have read the old
        if distributed.rank() == 0:
            storage.write_json(self.folder / "run.json", vars(state))
        distributed.barrier()

    def _check_same(self) -> None:
        there = read_config(self.folder / "config.json")
        if there.content_hash != self.config.content_hash:
            first, *more = differing_keys(self.config, there)
            keys = f"{first} and {len(more)} other settings" if more else first
            raise ConfigError(
                f"{self.folder} belongs to a config with other {keys}; remove it or choose another --name"
            )
        if self.state.data_hash != self.prepared.content_hash:
            raise ConfigError(f"{self.folder} was started on other prepared data; remove it or choose another --name")
        if self._parent is not None:
            self._parent.check_recorded(self.folder, self.state)

    def copy(self, folder: Path, config: RunConfig) -> None:
        """Write this finished run again under a config that trains the same and serves at another precision."""
        with storage.folder_aside(folder) as aside:
            shutil.copytree(self.folder / "checkpoints", aside / "checkpoints")
            storage.write_json(aside / "run.json", vars(self.state))
            storage.write_text(aside / "config.json", config.to_json())

    # --- training ---

    def train(self, observers: Sequence[Observer] = ()) -> None:
        """Train to the end from where the run stands; Interrupted after a signal. Then `model()` is what was found."""
        if self.config.training.threads:
            torch.set_num_threads(self.config.training.threads)
        with held(self.folder, "training", "--name") if distributed.rank() == 0 else nullcontext():
            if self._is_closed_form and not self.finished:
                self._fit_closed_form()
            if self.state.stage == SELECT:
                self._select(observers)
            if self.state.stage == REFIT:
                self._refit(observers)

    def _select(self, observers: Sequence[Observer]) -> None:
        view = self.prepared.view("train")
        training = self.config.training
        until = Until(max_epochs=training.max_epochs, patience=training.patience or None)
        model = build_model(self.config, self.prepared.encoder)
        evaluate = None
        if "validation" in self.prepared.splits:
            check_metric(self.metric, model, self.config.evaluation.k, self.prepared.negative_rate)
            evaluate = partial(self._validate, model)
        trainer = self._trainer(SELECT, model, view, until, evaluate, observers)
        self._begin()
        progress = trainer.fit()
        epochs = progress.best_epoch or training.max_epochs
        self._finish_stage(REFIT if training.refit else FINISHED, progress, epochs, model)

    def _refit(self, observers: Sequence[Observer]) -> None:
        view = self.prepared.view("train", "validation")
        until = Until(max_epochs=self.state.best_epoch)
        model = build_model(self.config, self.prepared.encoder)
        progress = self._trainer(REFIT, model, view, until, None, observers).fit()
        self._finish_stage(FINISHED, progress, self.state.best_epoch, model)

    def _finish_stage(self, stage: str, progress: Progress, epochs: int, model: Model | None = None) -> None:
        found = [line for line in progress.history if line["epoch"] == epochs and line["phase"] == progress.phase]
        metrics = (
            {name: value for name, value in found[-1].items() if name not in ("phase", "epoch")} if found else None
        )
        before = self.state
        self._write_state(
            replace(
                before,
                stage=stage,
                best_epoch=epochs,
                validation=metrics or before.validation,
                seconds=before.seconds + progress.seconds,
                sizes=table_sizes(model),
            )
        )

    def _trainer(
        self,
        stage: str,
        model: Model,
        view: View,
        until: Until,
        evaluate: Evaluate | None,
        observers: Sequence[Observer],
    ) -> Trainer:
        assert isinstance(model, Ranker | Retriever)
        config = self.config
        phase_settings = PhaseSettings(
            batch_size=config.training.batch_size,
            seed=config.seed,
            until=until,
            make_optimizer=lambda parameters: make_optimizer(config.optimizer.dense, parameters),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            gather=distributed.gather_rows,
        )
        settings = Settings(
            seed=config.seed,
            metric=self.metric,
            evaluate_every=config.training.evaluate_every,
            clip_norm=config.training.clip_norm,
            checkpoint_every_s=config.training.checkpoint_every_s,
            keep_best=stage == SELECT and not config.training.refit,
            fingerprint=f"{config.content_hash}-{self.prepared.content_hash}-{stage}{self.state.lineage}",
            device=config.training.device,
            precision=config.training.precision,
            dense_schedule=make_schedule(config.optimizer.dense.schedule, config.training.max_epochs),
            table_schedule=make_schedule(config.optimizer.tables.schedule, config.training.max_epochs),
        )
        phases = self._scheduled(model, model.phases(view, phase_settings), evaluate)
        if self.state.init_from and not self._checkpoints(stage).exists("last"):
            (self._parent or Parent.of(self.state)).load(model, phases, self.prepared.encoder)
        return Trainer(model, phases, self._checkpoints(stage), settings, evaluate, observers)

    def _scheduled(self, model: Ranker | Retriever, phases: Sequence[Phase], evaluate: Evaluate | None) -> list[Phase]:
        """The model's phases, with those of tables that search."""
        collection = model.collection

        def start_again() -> None:
            fresh = build_model(self.config, self.prepared.encoder)
            assert isinstance(fresh, nn.Module)
            restart(model, fresh, scheduled)

        def search(tables: Mapping[str, EmbeddingTable]) -> Search:
            return Search(
                tables=tables,
                weights=collection.live_weights,
                evaluate=None if evaluate is None else lambda: evaluated(model, evaluate),
                metric=self.metric,
                higher_is_better=higher_is_better(self.metric),
                restart=start_again,
                seed=self.config.seed,
            )

        scheduled = collection.schedule(phases, search)
        return scheduled

    def _checkpoints(self, stage: str) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints" / stage)

    def _fit_closed_form(self) -> None:
        """Closed-form models: computed on train for the validation metrics, then on train + validation, and kept."""
        model = build_model(self.config, self.prepared.encoder)
        assert isinstance(model, ClosedForm)
        history: tuple[Mapping[str, float], ...] = ()
        if "validation" in self.prepared.splits:
            known = self.seen_before("validation")
            model.fit(known.interactions())
            history = ({"phase": 0.0, "epoch": 0.0, **self._validate(model)},)
        model.fit(self.seen_before("test").interactions())
        self._begin()
        self._checkpoints(SELECT).save(model.tensors(), {}, tag="last")
        self._finish_stage(FINISHED, Progress(history=history), 0)

    @property
    def _is_closed_form(self) -> bool:
        return issubclass(model_class(self.config.model.name), ClosedForm)

    # --- evaluation ---

    @property
    def metric(self) -> str:
        """The metric that early stopping watches."""
        default = "auc" if self.is_ranking else f"recall@{self.config.evaluation.k[0]}"
        return self.config.training.metric or default

    @property
    def is_ranking(self) -> bool:
        """Whether the run scores rows (a click model) rather than retrieves from a catalogue."""
        return issubclass(model_class(self.config.model.name), Ranker)

    def seen_before(self, split: str) -> View:
        """What is known before a split: train for validation, train and validation for test."""
        return seen_before(self.prepared, split)

    def model(self, served: bool = True) -> Model:
        """The finished model, in one process, on the plain backend, in eval mode.

        served: with its tables in their serving form, at its precision, as it is evaluated and exported; False: with
        the float32 tables that were trained.
        """
        if not self.finished:
            raise ConfigError(f"{self.folder} is not finished; continue it with `recsys train CONFIG --resume`")
        model = build_model(self.config, self.prepared.encoder, backend="plain")
        if isinstance(model, ClosedForm):
            model.load_tensors(self._checkpoints(SELECT).load("last"))
            return model
        stage = REFIT if self.config.training.refit else SELECT
        assert isinstance(model, Ranker | Retriever)
        load_model(model, self._checkpoints(stage), "last")
        if served:
            model.collection = model.collection.freeze()
        model.eval()
        return model

    def evaluate(self, split: str = "test", model: Model | None = None, kept: Sequence[str] = ()) -> Report:
        """Score the finished model on a split; the report is also written into the run's folder.

        kept: features whose values the report of a ranker keeps. Raises ConfigError for a split that is not there, or
        that says nothing because the model was trained on it.
        """
        self._check_held_out(split)
        scored = model or self.model()
        calibrator = calibrator_of(self.folder, self.prepared)
        settings = RowSettings(kept=kept, calibrator=calibrator, scratch=self.folder)
        report = report_on(self.config, scored, self.prepared, split, settings)
        report = replace(report, counts={**report.counts, **served_bytes(scored)})
        report.save(self.folder / "reports" / split)
        return report

    def evaluate_on(self, prepared: Prepared, split: str, model: Model | None = None) -> Report:
        """Score the finished model on a split of newer data, for instance on tomorrow's before it is trained on.

        The data's encoder is this run's or grown from it; ids that are new in it are shown to the model as unseen. The
        report is returned, not written; reports of several runs on one split have the same rows, so they can be
        compared. Raises ConfigError naming the vocabulary and row where the encoder does not extend the run's, and, for
        a retriever, when no split stands before this one.
        """
        encoder = self.prepared.encoder
        try:
            prepared.encoder.check_extends(encoder)
        except ValueError as error:
            raise ConfigError(f"{self.folder} cannot be scored on {prepared.path}: {error}") from None
        return report_on_newer(self.config, model or self.model(), prepared, split, encoder)

    def _check_held_out(self, split: str) -> None:
        self.prepared.view(split)
        if split == "train" and not self.is_ranking:
            raise ConfigError("a retriever is not evaluated on 'train': what it was trained on is masked")
        if split == "validation" and (self._is_closed_form or self.config.training.refit):
            raise ConfigError(
                f"the model of {self.folder} was finished on train + validation, so 'validation' is not held out; "
                "what it was chosen by stands in run.json"
            )

    def _validate(self, model: Model) -> Mapping[str, float]:
        settings = RowSettings(scratch=self.folder)
        return report_on(self.config, model, self.prepared, "validation", settings).metrics
