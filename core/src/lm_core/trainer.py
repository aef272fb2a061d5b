"""`Trainer`: one model through its life; the verbs of the same names use it."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core import job
from lm_core.auto import AutoModel, AutoTokenizer, empty_model
from lm_core.checkpoint import hub, saved
from lm_core.checkpoint.io import TOKENIZER_FILES
from lm_core.config.schema import RunConfig
from lm_core.config.task import check_named, set_task
from lm_core.errors import CheckpointError, ConfigError, all_of
from lm_core.log import get_logger
from lm_core.peft import files as adapters
from lm_core.pipeline import pipeline
from lm_core.train import vocabulary

if TYPE_CHECKING:
    from lm_core.nn.network import Network
    from lm_core.parallel.context import ParallelContext
    from lm_core.tokenizer.base import Tokenizer
    from lm_core.train.callbacks import Callback
    from lm_core.train.loop import TrainLoop

log = get_logger(__name__)


class Trainer:
    """Trains and uses a model: `train`, `finetune`, `evaluate`, `predict`, `export`.

    A later step goes on with the weights that an earlier one left in memory, unless it is given
    others.

    Args:
        args: the run: a RunConfig, a YAML file, the name of a packaged run, or a mapping with the
            same keys. None: the run that `model` names, or defaults.
        task: "text_generation" or "text_classification"; None: what the run or the model says.
        model: the name of a preset or run, a directory with weights, or a model; None where `args`
            says it.
        train_dataset: record file, or folder of such, instead of the run's.
        eval_dataset: the same for evaluation.
        tokenizer: a tokenizer or its directory; saved with every checkpoint. None: the one beside
            the weights, where there are any.
        pet_method: "" trains what the run says; "lora" an adapter: with the settings of the run
            `<model>_lora` where there is one, else with defaults.
        callbacks: called beside those of the run.

    Attributes:
        run: the resolved run.
        network: the model, once there is one.

    Raises:
        ConfigError: every problem of the run.
    """

    def __init__(
        self,
        args: RunConfig | str | Path | Mapping[str, Any] | None = None,
        *,
        task: str | None = None,
        model: str | Path | Network | None = None,
        train_dataset: str | Path | None = None,
        eval_dataset: str | Path | None = None,
        tokenizer: Tokenizer | str | Path | None = None,
        pet_method: str = "",
        callbacks: Sequence[Callback] = (),
    ) -> None:
        check_named(task, pet_method)
        named = model is None or isinstance(model, str | Path)
        self.network: Network | None = None if named else model
        self.run = job.run_of(args, model, pet_method)
        set_task(self.run, task, fixed=args is not None or self.network is not None)
        for section, path in (
            (self.run.train_dataset, train_dataset),
            (self.run.eval_dataset, eval_dataset),
        ):
            if path is not None:
                section.data_loader.dataset_dir = str(path)
        self.tokenizer = tokenizer
        self.callbacks = list(callbacks)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def train(
        self,
        train_checkpoint: str | Path | bool = False,
        *,
        resume_training: bool | str | None = None,
        do_eval: bool | None = None,
    ) -> Path | None:
        """Pre-trains: from random weights, or from those of `train_checkpoint`.

        Args:
            train_checkpoint: weights to start from; True: those of the run's `load_checkpoint`.
            resume_training: instead of the run's: True, a step or a checkpoint.
            do_eval: instead of the run's.

        Returns:
            the last checkpoint.

        Raises:
            LmError: something is missing or does not fit; all that is known of it.
            KeyboardInterrupt: after Ctrl-C, when the state is saved (SystemExit after SIGTERM).
        """
        start = self.run.load_checkpoint if train_checkpoint is True else train_checkpoint
        return self._train(str(start) if start else "", resume_training, do_eval)

    def finetune(
        self,
        finetune_checkpoint: str | Path | bool = False,
        *,
        resume_training: bool | str | None = None,
        do_eval: bool | None = None,
    ) -> Path | None:
        """Trains weights that exist: given here, named by the run, or in memory; else as `train`.

        Raises:
            CheckpointError: there are none. Random weights are never used unasked.
        """
        given = finetune_checkpoint if isinstance(finetune_checkpoint, str | Path) else ""
        start = str(given or ("" if self.network is not None else self._named_checkpoint()))
        return self._train(start, resume_training, do_eval, from_random=False)

    def evaluate(
        self, eval_checkpoint: str | Path | bool = False, eval_dataset: str | Path | None = None
    ) -> dict[str, dict[str, float]]:
        """Scores the model on all records of the evaluation data set.

        Args:
            eval_checkpoint: weights; else those in memory, else those that the run names.
            eval_dataset: record file or folder, instead of the run's.

        Returns:
            `{"PerplexityMetric": {"loss": nats per token, "PPL": exp(loss)}}`, or of a classifier
            `{"Accuracy": {"loss": nats per record, "accuracy": share}}`; every token (record)
            counts once, so the batch size does not matter; of answers `ADGENMetric`, `EmF1Metric`,
            of prompts `PromptAccMetric`.

        Raises:
            LmError: no weights, no records, or ones that do not fit the model.
        """
        from lm_core.tasks import evaluate

        if eval_dataset is not None:
            self.run.eval_dataset.data_loader.dataset_dir = str(eval_dataset)
        given = "" if isinstance(eval_checkpoint, bool) else str(eval_checkpoint)
        weights = partial(self._weights, given)
        encoder = partial(self._encoder, "eval_dataset", given)
        return evaluate.measure(self.run, weights, self._with_weights, encoder)

    def predict(
        self,
        input_data: str | list[str],
        predict_checkpoint: str | Path | bool | None = None,
        *,
        batch_size: int | None = None,
        **generation: Any,
    ) -> list[Any]:
        """Continues texts, `[{"text_generation_text": [text]}]`, or says their classes.

        Args:
            input_data: a text or several.
            predict_checkpoint: weights; else those in memory, else those that the run names.
            batch_size: prompts computed at once.
            generation: settings of GenerationConfig (`do_sample=False, max_length=20`), or of
                TextClassificationPipeline.

        Raises:
            LmError: no weights, no tokenizer, or settings that cannot be.
        """
        model = self._with_weights(self._weights(predict_checkpoint))
        answer = pipeline(self.run.model.config.task, model, self._tokenizer())
        return answer(input_data, batch_size=batch_size, **generation)

    def export(
        self,
        predict_checkpoint: str | Path | bool | None = None,
        *,
        output_dir: str | Path | None = None,
        batch_size: int | None = None,
        seq_length: int | None = None,
        dynamic: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """Writes the model as graphs (MindIR), which `predict --mindir` runs.

        Args:
            predict_checkpoint: weights; else those in memory, else those that the run names.
            output_dir: the folder to make, instead of `mindir` in the run's output.
            batch_size: rows of a call, instead of the model's.
            seq_length: longest prompt + answer in tokens, instead of the run's.
            dynamic: one graph of open sizes.
            overwrite: replace an export that is there.

        Returns:
            the folder; of several processes this one's `rank_R` in it.

        Raises:
            LmError: no weights, sizes that cannot be, or an export that is there.
        """
        from lm_core.tasks import export

        target = Path(output_dir or Path(self.run.output_dir) / export.FOLDER)
        sizes = {"batch_size": batch_size, "seq_length": seq_length, "dynamic": dynamic}
        weights = partial(self._weights, predict_checkpoint)
        vocabulary = self._tokenizer_place()
        return export.write(
            self.run, target, weights, self.network, vocabulary, sizes, overwrite=overwrite
        )

    @property
    def says(self) -> bool:
        """Whether this process is the one of several that prints results."""
        return self.network is None or self.network.context.rank == 0

    def _train(
        self,
        start: str,
        resume_training: bool | str | None,
        do_eval: bool | None,
        from_random: bool = True,
    ) -> Path | None:
        run = self.run.model_copy(deep=True)
        if resume_training is not None:
            run.resume_training = resume_training
        if do_eval is not None:
            run.do_eval = do_eval
        if run.only_save_strategy:
            job.write_strategy(run, job.join(run, stages=True))
            return None
        loop = self._loop(run, start, from_random)
        assert self.network is not None
        loop.run()
        self.network.set_train(False)  # what is computed next has no dropout
        if loop.stopped_by:
            log.warning(
                "stopped at step %d of %d; the same with resume_training True goes on from there",
                loop.steps, loop.total_steps,
            )  # fmt: skip
            if loop.stopped_by == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + loop.stopped_by)
        return loop.last_checkpoint

    def _loop(self, run: RunConfig, start: str, from_random: bool) -> TrainLoop:
        """Everything that can be wrong is found before anything is computed."""
        from lm_core.train import resume as resuming
        from lm_core.train import session

        context = job.join(run, stages=not run.do_eval)
        job.write_strategy(run, context)
        train, evaluation, resume, _ = all_of(
            lambda: self._records(run, "train_dataset", start),
            lambda: self._records(run, "eval_dataset", start) if run.do_eval else None,
            lambda: resuming.find(run, context),
            lambda: self._check_start(run, start, from_random),
        )
        files = self._tokenizer_files(run, start or (str(resume) if resume else ""))
        named = bool(self.tokenizer is not None or vocabulary.named(run))
        session.check_vocabulary(run.model.config, files, named)
        self.network = self._start(run, start, resume, context)
        if run.model.config.pet_config is not None:
            from lm_core.peft.lora import log_trained

            log_trained(self.network)
        loop = session.build(run, self.network, train, evaluation, resume=resume, files=files)
        loop.callbacks += self.callbacks
        if resume is None:
            session.set_aside(run, files, context.rank)
        session.write_run(run, context.rank)
        return loop

    def _check_start(self, run: RunConfig, start: str, from_random: bool) -> None:
        from lm_core.train import session

        going_on: Any = run.resume_training
        if going_on is True:
            going_on = saved.checkpoints(session.checkpoint_folder(run), saved.STATE)
        if going_on:
            return
        if start:
            hub.weights(start, hub.resolve(start, config=run.model.config))
        elif not from_random and self.network is None:
            raise CheckpointError(
                "load_checkpoint: is missing; fine-tuning must start from weights; add "
                "--load_checkpoint DIR, or use pretrain (Trainer.train) to start from random "
                "weights on purpose"
            )

    def _start(
        self, run: RunConfig, start: str, resume: Path | None, context: ParallelContext
    ) -> Network:
        """The model with the weights that training starts from."""
        config, adapter = run.model.config, run.load_adapter or None
        if resume is not None and self.network is None:
            if not adapters.has_adapter(resume):
                return empty_model(config, context=context)
            base = run.load_checkpoint or adapters.base_of(resume)
            if not base:
                raise CheckpointError(
                    f"load_checkpoint: is missing; {resume} holds an adapter alone; give the "
                    f"weights that it was trained on"
                )
            return job.load(run, base, context, adapter=resume)
        if start and resume is None:
            return job.load(run, start, context, adapter=adapter, new_head=True, seed=run.seed)
        if self.network is None:
            fresh = config.copy(checkpoint_name_or_path="")
            return AutoModel.from_config(fresh, context=context, seed=run.seed)
        if config.pet_config is not None and self.network.config.pet_config is None:
            from lm_core.peft.lora import get_pet_model

            get_pet_model(self.network, config.pet_config, seed=run.seed)
        return self.network

    def _weights(self, checkpoint: str | Path | bool | None) -> str | Path:
        """Where weights come from: what is given, "" for those in memory, what the run names."""
        given = checkpoint if isinstance(checkpoint, str | Path) else ""
        found = given or ("" if self.network is not None else self._named_checkpoint())
        if not found and self.network is None:
            raise CheckpointError(
                "load_checkpoint: is missing; must be the weights to use; add --load_checkpoint DIR"
            )
        return found

    def _with_weights(self, found: str | Path) -> Network:
        """The model with the weights of `_weights`."""
        context = job.join(self.run)
        if found or self.network is None:
            self.network = job.load(self.run, found, context, adapter=self.run.load_adapter or None)
        return self.network

    def _named_checkpoint(self) -> str:
        return self.run.load_checkpoint or self.run.model.config.checkpoint_name_or_path or ""

    def _records(self, run: RunConfig, which: str, weights: str = "") -> Any:
        """The records of a section; `weights`: where a vocabulary may lie, too."""
        from lm_core.train import session

        return session.open_records(run, which, lambda: self._encoder(which, weights))

    def _encoder(self, which: str, weights: str) -> Tokenizer:
        """What encodes the texts of a section."""
        if self.tokenizer is not None and not isinstance(self.tokenizer, str | Path):
            return self.tokenizer
        weights = weights or self._named_checkpoint()
        return vocabulary.encoder(self.run, which, str(self.tokenizer or ""), weights)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            named = vocabulary.named(self.run) or self._named_checkpoint()
            if not named:
                raise ConfigError(
                    "tokenizer: is missing; must be a tokenizer or its directory; "
                    "give Trainer(tokenizer=DIR)"
                )
            self.tokenizer = named
        if isinstance(self.tokenizer, str | Path):
            config = self.run.model.config
            self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer, family=config)
        return self.tokenizer

    def _tokenizer_place(self) -> str | Path | None:
        """Where the tokenizer that was given lies; one in memory is written first."""
        if self.tokenizer is None or isinstance(self.tokenizer, str | Path):
            return self.tokenizer
        self._scratch = tempfile.TemporaryDirectory(prefix="lm-tokenizer-")
        self.tokenizer.save_pretrained(self._scratch.name)
        return self._scratch.name

    def _tokenizer_files(self, run: RunConfig, start: str) -> dict[str, Path]:
        """The files to keep in every checkpoint, by name; none where no tokenizer is known."""
        named = self._tokenizer_place() or vocabulary.named(run) or start
        if not named:
            return {}
        folder = hub.tokenizer_directory(named)[1]
        found = {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
        if self.tokenizer is not None and not found:
            raise ConfigError(f"tokenizer: {folder} has no tokenizer files; give another folder")
        return found
