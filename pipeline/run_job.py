"""One job from request to result: the only place that runs stages in a row, and the only catch-all.

Knows nothing of HTTP, stores, buckets or Modal: the caller passes in what loads views, generates and delivers. Each
finished stage leaves a checkpoint in the job's work folder, from which a later attempt resumes.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions, OnStep
from pipeline.errors import (
    Cancelled,
    DeliveryFailed,
    EngineFailed,
    ExportFailed,
    GenerationGone,
    ImageTo3DError,
    IntakeFailed,
    MissingExtra,
    StageError,
    StoreUnavailable,
    translate,
)
from pipeline.imaging.background_removal import Cutout
from pipeline.jobs.model import FinalState, JobResult, JobState
from pipeline.jobs.stages import EXPORT_STAGE_ENDS_AT, STAGE_ENDS_AT, percent_of
from pipeline.jobs.transfer import Transferred
from pipeline.jobs.transitions import EXPORT_STAGE
from pipeline.private_files import make_private_file, make_private_folder
from pipeline.stages.deliver import Delivery
from pipeline.stages.export import Exported, export
from pipeline.stages.generate import draw_seed, options_of
from pipeline.stages.intake import LoadedViews
from pipeline.storage.base import OutputFile
from pipeline.telemetry import StageTimer
from schemas.formats import FORMATS
from schemas.request import GenerationRequest

log = logging.getLogger(__name__)

STAGE_ERRORS: dict[str, type[StageError]] = {
    EXPORT_STAGE: ExportFailed,
    "intake": IntakeFailed,
    "generate": EngineFailed,
    "export": ExportFailed,
    "deliver": DeliveryFailed,
}
"""What a foreign exception inside a stage becomes."""
GENERATION = "generate.pickle"
"""The checkpoint of a generation in a work folder."""

LoadViews = Callable[[GenerationRequest], list[ForegroundImage]]
Generate = Callable[[Sequence[ForegroundImage], GenerationOptions, OnStep], Generation]
Deliver = Callable[[Sequence[OutputFile]], Delivery]
OnProgress = Callable[[str, int], None]

Args = ParamSpec("Args")
Result = TypeVar("Result")


def run_job(
    request: GenerationRequest,
    *,
    file_prefix: str,
    work_dir: Path,
    load_views: LoadViews,
    generate: Generate,
    deliver: Deliver,
    on_progress: OnProgress,
    is_cancelled: Callable[[], bool],
    on_checkpoint: Callable[[], None] = lambda: None,
    on_error: Callable[[ImageTo3DError], None] = lambda error: None,
) -> JobResult:
    """Run the four stages; an exception that a stage raises becomes a result.

    Args:
        request: a validated request; a seed of 0 is drawn here.
        file_prefix: what the names of all files begin with; the same on every attempt of one job.
        work_dir: the job's own folder. A run with the folder of an earlier attempt resumes after its last checkpoint.
        load_views: turns the request into checked views.
        generate: turns views and options into a `Generation`; calls its third argument between steps.
        deliver: turns finished files into artifacts whose URLs answer.
        on_progress: receives the stage and the percent of the whole job.
        is_cancelled: asked between stages and between the steps of a stage.
        on_checkpoint: called after each stage, when its checkpoint is in `work_dir`, for callers that must commit it.
        on_error: receives the error that ended the job, with the foreign exception behind it as `__cause__`.

    Raises:
        StoreUnavailable: the database did not answer in the middle of the job, which therefore has no result yet.
        Transferred: raised by `generate`; a later run with the same folder goes on when the generation is there.
    """
    run = _Run(request, file_prefix, work_dir, on_progress, is_cancelled, on_checkpoint)

    def generated() -> Generation:
        views = run.stage("intake", load_views, request)
        options = options_of(request, seed=run.seed)
        if isinstance(views, LoadedViews) and views.init_voxels is not None:
            options = replace(options, init_voxels=views.init_voxels)
        return run.stage("generate", generate, list(views), options, run.on_step)

    return _run_stages(run, generated, deliver=deliver, on_error=on_error)


def run_export(
    request: GenerationRequest,
    *,
    file_prefix: str,
    work_dir: Path,
    load: Callable[[], Generation],
    deliver: Deliver,
    on_progress: OnProgress,
    is_cancelled: Callable[[], bool],
    on_checkpoint: Callable[[], None] = lambda: None,
    on_error: Callable[[ImageTo3DError], None] = lambda error: None,
) -> JobResult:
    """Run the last two stages on the generation of an earlier job, as `run_job` does; no engine runs.

    Args:
        request: as `schemas.export.parse_export` returned it.
        load: returns the kept generation; called once, since its result is a checkpoint like any other.

    Raises:
        StoreUnavailable: as for `run_job`.
    """
    run = _Run(
        request, file_prefix, work_dir, on_progress, is_cancelled, on_checkpoint, stage_ends_at=EXPORT_STAGE_ENDS_AT
    )

    def loaded() -> Generation:
        return run.stage(EXPORT_STAGE, lambda: replace(load(), gpu_seconds=0.0, elsewhere_s=0.0, kernel_fallbacks=()))

    return _run_stages(run, loaded, deliver=deliver, on_error=on_error)


def load_generation(path: Path) -> Generation:
    """The generation that a checkpoint holds.

    Raises:
        GenerationGone: there is none that this version can read.
    """
    try:
        generation = pickle.loads(path.read_bytes())  # safe: as in `_Run._read_checkpoint`
    except Exception as error:  # unpickling may raise any exception
        raise GenerationGone("The kept generation cannot be read; submit the image again.") from error
    if not isinstance(generation, Generation):
        raise GenerationGone("The kept generation cannot be read; submit the image again.")
    return generation


def _run_stages(
    run: _Run,
    generation_of: Callable[[], Generation],
    *,
    deliver: Deliver,
    on_error: Callable[[ImageTo3DError], None],
) -> JobResult:
    """Get a generation, export and deliver it."""
    try:
        run.prepare()
        generation = generation_of()
        files = run.in_work_dir(run.stage("export", run.export, generation))
        delivery = run.stage("deliver", deliver, files)
    except (StoreUnavailable, Transferred):
        raise
    except Cancelled as error:
        on_error(error)
        return run.result(JobState.CANCELLED, error)
    except Exception as error:  # the one catch-all: no job ends without a result
        failure = translate(error, where=run.current_stage, otherwise=STAGE_ERRORS[run.current_stage])
        if failure is not error:
            log.exception("stage %s failed", run.current_stage)
        on_error(failure)
        return run.result(JobState.FAILED, failure)
    return replace(
        run.result(JobState.SUCCESS),
        artifacts=delivery.artifacts,
        warnings=(*run.warnings, *delivery.warnings),
        upload_warning=delivery.upload_warning,
    )


class _Run:
    """What the stages of one job share: the seed, the timer, checkpoints and progress.

    Attributes:
        current_stage: the stage that runs, or ran last.
        seed: the effective seed, once `prepare` has run.
        warnings: those of intake, of the generation and of the export.
    """

    def __init__(
        self,
        request: GenerationRequest,
        file_prefix: str,
        work_dir: Path,
        on_progress: OnProgress,
        is_cancelled: Callable[[], bool],
        on_checkpoint: Callable[[], None],
        *,
        stage_ends_at: Mapping[str, int] = STAGE_ENDS_AT,
    ) -> None:
        self._stage_ends_at = stage_ends_at
        self.current_stage = next(iter(stage_ends_at))
        self.seed = request.seed
        self._request = request
        self._file_prefix = file_prefix
        self._work_dir = work_dir
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        self._on_checkpoint = on_checkpoint
        self._timer = StageTimer()
        self._engine = request.engine or ""
        self.warnings: tuple[str, ...] = ()
        self._intake_warnings: tuple[str, ...] = ()
        self._gpu_seconds = 0.0
        self._kernel_fallbacks: tuple[str, ...] = ()
        self._decided: dict[str, Any] = {}
        self._cutouts: tuple[Cutout, ...] = ()

    def prepare(self) -> None:
        """Make the work folder and draw the seed, which is the same on every attempt.

        Raises:
            MissingExtra: a package that a requested format needs is not installed.
        """
        for name in self._request.formats:
            if not FORMATS[name].is_writable:
                raise MissingExtra(f"the format {name}", extra=FORMATS[name].extra)
        make_private_folder(self._work_dir)
        self._timer.seconds |= self._read_checkpoint("seconds") or {}
        seed = self._read_checkpoint("seed")
        if seed is None:
            seed = self._request.seed or draw_seed()
            self._write_checkpoint("seed", seed)
        self.seed = seed

    def stage(self, name: str, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Run one stage, or return the checkpoint of an earlier run, which has reported its progress too.

        Args:
            work: the stage; called with the further arguments.

        Raises:
            Cancelled: the caller asked for the job to stop.
        """
        self.current_stage = name
        known = self._read_checkpoint(name)
        if known is not None:
            self._note_cost(known)
            self._timer.seconds.setdefault(name, 0.0)
            self._on_checkpoint()
            self._check_cancelled()
            return known
        self.on_step(0.0)
        try:
            with self._timer.measure(name):
                result = work(*args, **kwargs)
                self._note_cost(result)
                self._write_checkpoint(name, result)
        except Transferred:
            self._write_checkpoint("seconds", self._timer.seconds)
            raise
        if isinstance(result, Generation):
            self._timer.seconds[name] += result.elsewhere_s
        self._write_checkpoint("seconds", self._timer.seconds)
        self._on_checkpoint()
        self.on_step(1.0)
        return result

    def export(self, generation: Generation) -> Exported:
        """The stage `export`, into the work folder."""
        return export(
            generation,
            request=self._request,
            file_prefix=self._file_prefix,
            folder=self._work_dir / "files",
            on_step=self.on_step,
            cutouts=self._cutouts,
        )

    def in_work_dir(self, exported: Exported | Sequence[OutputFile]) -> list[OutputFile]:
        """The exported files where they are: another machine's checkpoint names them in its own work folder.

        Args:
            exported: only the files, where version 0.1.0 wrote the checkpoint.
        """
        files = exported.files if isinstance(exported, Exported) else exported
        return [replace(file, path=self._work_dir / "files" / file.path.name) for file in files]

    def on_step(self, share: float) -> None:
        """Report how much of the current stage is done, 0 to 1.

        Raises:
            Cancelled: the caller asked for the job to stop.
        """
        self._check_cancelled()
        percent = percent_of(self.current_stage, share, stage_ends_at=self._stage_ends_at)
        self._on_progress(self.current_stage, percent)

    def _check_cancelled(self) -> None:
        if self._is_cancelled():
            raise Cancelled("The job was cancelled.")

    def result(self, state: FinalState, error: ImageTo3DError | None = None) -> JobResult:
        """The job's result with everything that is known by now.

        Args:
            error: what ended the job; None where it succeeded.
        """
        return JobResult(
            state=state,
            message="" if error is None else str(error),
            error_code="" if error is None else error.code,
            retryable=error is not None and error.retryable,
            warnings=self.warnings,
            stage_seconds=self._timer.seconds,
            gpu_seconds=self._gpu_seconds + (0.0 if error is None else error.gpu_seconds),
            kernel_fallbacks=self._kernel_fallbacks,
            engine=self._engine,
            meta={
                **self._request.effective_parameters(),
                **self._decided,
                "seed": self.seed,
                "engine": self._engine,
                "file_prefix": self._file_prefix,
            },
        )

    def _note_cost(self, result: object) -> None:
        """Record what a stage says beside its result: the next `on_step` may cancel the job."""
        if isinstance(result, LoadedViews):
            self._cutouts = result.cutouts
            self._intake_warnings = self.warnings = result.warnings
            self._decided = {"cutout_confidence": result.confidences}
        if isinstance(result, Generation):
            self._engine, self._gpu_seconds = result.engine, result.gpu_seconds
            self.seed = result.seed  # an earlier attempt may have drawn it, and its checkpoint be lost
            self._kernel_fallbacks = result.kernel_fallbacks
            self.warnings = tuple(each for each in (result.draft, *self._intake_warnings, *result.warnings) if each)
            self._decided |= {"draft": bool(result.draft), "draft_notice": result.draft}
            if result.depth is not None:
                self._decided["depth"] = result.depth
            if result.view_angles is not None:
                self._decided["view_angles"] = list(result.view_angles)
            if result.view_angles_confidence is not None:
                self._decided["view_angles_confidence"] = round(result.view_angles_confidence, 2)
        if isinstance(result, Exported):
            self.warnings = (*self.warnings, *result.warnings)
            self._decided |= result.meta

    def _read_checkpoint(self, name: str) -> Any:
        """The checkpoint of an earlier attempt, None where there is none that this version can read.

        Pickle is safe here: the folder is the service's own and holds only what `_write_checkpoint` wrote. Another
        version may have written it, with classes that this one does not have: then the stage runs again.
        """
        path = self._work_dir / f"{name}.pickle"
        try:
            return pickle.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except Exception:  # unpickling may raise any exception
            log.warning("checkpoint %s cannot be read; the stage runs again", path.name, exc_info=True)
            return None

    def _write_checkpoint(self, name: str, result: object) -> None:
        """Write a checkpoint for the next attempt, atomically: after a crash there is a complete one or none."""
        path = self._work_dir / f"{name}.pickle"
        unfinished = path.with_suffix(".unfinished")
        make_private_file(unfinished)
        unfinished.write_bytes(pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL))
        unfinished.replace(path)
