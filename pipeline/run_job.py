"""One call from request to result: the only place where the five stages stand in a row, and the only catch-all.

Knows nothing of HTTP, stores, buckets or Modal: what generates, delivers and notifies is handed in. Each finished
stage leaves its result in the call's folder, so that a call taken up again goes on after the last finished stage.
"""

from __future__ import annotations

import errno
import logging
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions, OnStep
from pipeline.errors import Cancelled, DiskFull, ImageTo3DError, StageError
from pipeline.jobs.model import FinalState, JobResult, JobState
from pipeline.stages.deliver import Delivery
from pipeline.stages.export import export
from pipeline.stages.generate import draw_seed, options_of
from pipeline.storage.base import OutputFile
from pipeline.telemetry import StageTimer
from schemas.request import ImageTo3DRequest

log = logging.getLogger(__name__)

STAGES = ("intake", "generate", "export", "deliver")
# Progress at the end of each stage, in percent of the whole job; the shares are those of a warm job on an H100.
STAGE_ENDS_AT = {"intake": 5, "generate": 50, "export": 90, "deliver": 100}

LoadViews = Callable[[ImageTo3DRequest], list[ForegroundImage]]
Generate = Callable[[Sequence[ForegroundImage], GenerationOptions, OnStep], Generation]
Deliver = Callable[[Sequence[OutputFile]], Delivery]
OnProgress = Callable[[str, int], None]

Result = TypeVar("Result")


def run_job(
    request: ImageTo3DRequest,
    *,
    file_prefix: str,
    work_dir: Path,
    load_views: LoadViews,
    generate: Generate,
    deliver: Deliver,
    on_progress: OnProgress,
    is_cancelled: Callable[[], bool],
    on_kept: Callable[[], None] = lambda: None,
    on_error: Callable[[ImageTo3DError], None] = lambda error: None,
) -> JobResult:
    """Run the five stages and say how the call ended. Never raises, whatever a stage does.

    Args:
        request: a validated request; a seed of 0 is drawn here.
        file_prefix: what the names of all files begin with; the same on every attempt of one job.
        work_dir: the call's own folder. Run again with the same folder, the call resumes after its last finished stage.
        load_views: request to checked views.
        generate: views and options to a `Generation`; calls its third argument between steps.
        deliver: finished files to artifacts whose URLs answer.
        on_progress: told the stage and the percent of the whole call.
        is_cancelled: asked between stages and between the steps of a stage.
        on_kept: told after each stage whose result now lies in `work_dir`, where that has to be made to last.
        on_error: told the error that ended the job early, with the exception that caused it as `__cause__`.
    """
    run = _Run(request, file_prefix, work_dir, on_progress, is_cancelled, on_kept)
    try:
        outcome = run.through_delivery(load_views, generate, deliver)
    except Cancelled as error:
        on_error(error)
        run.gpu_seconds += error.gpu_seconds
        outcome = run.ended(JobState.CANCELLED, message="The call was cancelled.", error_code=Cancelled.code)
    except ImageTo3DError as error:
        on_error(error)
        run.gpu_seconds += error.gpu_seconds
        outcome = run.ended(
            JobState.FAILED,
            message=str(error),
            error_code=error.code,
            retryable=error.retryable,
        )
    except Exception as error:  # the one catch-all: no call ends without a state
        log.exception("stage %s failed", run.stage)
        failure = _as_stage_error(error, run.stage)
        failure.__cause__ = error
        on_error(failure)
        outcome = run.ended(JobState.FAILED, message=str(failure), error_code=failure.code, retryable=failure.retryable)
    return outcome


class _Run:
    """What the stages of one call share: its timer, its checkpoints, its progress."""

    def __init__(
        self,
        request: ImageTo3DRequest,
        file_prefix: str,
        work_dir: Path,
        on_progress: OnProgress,
        is_cancelled: Callable[[], bool],
        on_kept: Callable[[], None],
    ) -> None:
        self.request = request
        self.file_prefix = file_prefix
        self.work_dir = work_dir
        self.timer = StageTimer()
        self.stage = STAGES[0]
        self.seed = request.seed
        self.engine = request.engine or ""
        self.warnings: tuple[str, ...] = ()
        self.gpu_seconds = 0.0
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        self._on_kept = on_kept

    def through_delivery(self, load_views: LoadViews, generate: Generate, deliver: Deliver) -> JobResult:
        """Stages 1 to 4. Raises whatever ends them early."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self.seed = self._once("seed", lambda: self.request.seed or draw_seed())

        views = self._run_stage("intake", lambda _: load_views(self.request))
        options = options_of(self.request, seed=self.seed)
        generation = self._run_stage("generate", lambda on_step: self._noted(generate(views, options, on_step)))
        self._noted(generation)

        files = self._run_stage(
            "export",
            lambda on_step: export(
                generation,
                request=self.request,
                file_prefix=self.file_prefix,
                folder=self.work_dir / "files",
                on_step=on_step,
            ),
        )
        delivery = self._run_stage("deliver", lambda _: deliver(files))
        self.warnings += delivery.warnings
        return self.ended(JobState.SUCCESS, artifacts=delivery.artifacts, upload_warning=delivery.upload_warning)

    def _noted(self, generation: Generation) -> Generation:
        """Note what a generation was and cost as soon as it is there: a cancel may end the call right after it."""
        self.engine, self.warnings, self.gpu_seconds = generation.engine, generation.warnings, generation.gpu_seconds
        return generation

    def ended(self, state: FinalState, **details: Any) -> JobResult:
        """The outcome with what is known by now."""
        meta = {
            **self.request.effective_parameters(),
            "seed": self.seed,
            "engine": self.engine,
            "file_prefix": self.file_prefix,
        }
        return JobResult(
            state=state,
            engine=self.engine,
            warnings=self.warnings,
            stage_seconds=self.timer.seconds,
            gpu_seconds=self.gpu_seconds,
            meta=meta,
            **details,
        )

    def _run_stage(self, stage: str, work: Callable[[OnStep], Result]) -> Result:
        """Run one stage, or take its result from an earlier attempt."""
        self.stage = stage
        starts_at = STAGE_ENDS_AT[STAGES[STAGES.index(stage) - 1]] if stage != STAGES[0] else 0
        ends_at = STAGE_ENDS_AT[stage]

        def on_step(share: float) -> None:
            if self._is_cancelled():
                raise Cancelled("The call was cancelled.")
            self._on_progress(stage, round(starts_at + (ends_at - starts_at) * min(max(share, 0.0), 1.0)))

        on_step(0.0)
        with self.timer.measure(stage):
            result = self._once(stage, lambda: work(on_step))
            self._on_kept()
        on_step(1.0)
        return result

    def _once(self, name: str, work: Callable[[], Result]) -> Result:
        """The result of `work`, kept in the call's folder so that the next attempt does not do it again.

        Pickle is safe here: the folder is the service's own and holds only what this method wrote.
        """
        kept = self.work_dir / f"{name}.pickle"
        if kept.exists():
            return pickle.loads(kept.read_bytes())
        result = work()
        unfinished = kept.with_suffix(".unfinished")
        unfinished.write_bytes(pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL))
        unfinished.replace(kept)
        return result


def _as_stage_error(error: Exception, stage: str) -> StageError:
    """A foreign exception as ours: says which stage, and nothing of the inside."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{stage} failed: no space left on the device")
    if isinstance(error, OSError) and error.strerror:
        return StageError(f"{stage} failed: {error.strerror}")
    if isinstance(error, MemoryError):
        return StageError(f"{stage} failed: out of memory")
    return StageError(f"{stage} failed for an internal reason ({type(error).__name__})")
