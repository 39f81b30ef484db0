"""Background removal without weights against known masks: subjects on plain and difficult grounds.

Subjects are the transparent PNG images of a folder, and drawn ones up to 16. Prints the intersection over union of each
result, what carries a warning, and the confidence's errors.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UnreadableImage
from pipeline.imaging.background_removal import TRUSTED_CONFIDENCE, is_cut_out
from pipeline.imaging.cutout import separate
from pipeline.imaging.cutout.separate import hypotheses, reduced
from tests.fakes.cutout_scenes import GROUNDS, HARD_GROUNDS, SUBJECTS, GroundName, draw_subject, make_scene
from tests.fakes.images import mask_iou

SUBJECT_COUNT = 16
GOOD_IOU = 0.9
SHEET_SIZE = (240, 180)


@dataclass(frozen=True)
class Result:
    """One scene: intersection over union, confidence, and seconds of CPU time."""

    iou: float
    confidence: float
    seconds: float


def main(argv: list[str]) -> int:
    """Measure and print; return 0 when no result below 0.9 lacks its warning."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks cutout", description=__doc__)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of transparent PNG images, searched deeply")
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="write a sheet of all hypotheses for each ground")
    parser.add_argument("--seed", type=int, default=100, help="draws the grounds")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args(argv)
    subjects = load_subjects(arguments.images)
    grounds: tuple[GroundName, ...] = (*GROUNDS, *HARD_GROUNDS)
    places: list[tuple[str, GroundName]] = [(name, ground) for name in subjects for ground in grounds]
    seeds = {name: arguments.seed + number for number, name in enumerate(subjects)}
    # OpenCV's threads, which drawing the subjects has started, do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = dict(
            zip(
                places,
                pool.map(measure, *zip(*((subjects[n], g, seeds[n]) for n, g in places), strict=True)),
                strict=True,
            )
        )
    print_table(results, grounds)
    if arguments.sheets:
        arguments.sheets.mkdir(parents=True, exist_ok=True)
        for ground in grounds:
            rows = [sheet_row(subject, ground, seeds[name]) for name, subject in subjects.items()]
            Image.fromarray(np.vstack(rows)).save(arguments.sheets / f"{ground}.png")
    return print_warnings(results)


def load_subjects(folder: Path | None) -> dict[str, NDArray[np.uint8]]:
    """Real cut-outs by name, and drawn ones marked with a star."""
    subjects: dict[str, NDArray[np.uint8]] = {}
    for path in sorted(folder.rglob("*.png")) if folder else ():
        image = Image.open(path)
        if image.mode == "RGBA" and is_cut_out(np.asarray(image)[..., 3]):
            subjects[path.stem] = np.asarray(image)
    for name in SUBJECTS:
        if len(subjects) < SUBJECT_COUNT:
            subjects[f"*{name}"] = draw_subject(name)
    return subjects


def measure(subject: NDArray[np.uint8], ground: GroundName, seed: int) -> Result:
    """Remove the background of one scene."""
    cv2.setNumThreads(1)
    scene = make_scene(subject, ground, seed=seed)
    started_s = time.process_time()
    try:
        separation = separate(np.ascontiguousarray(scene.image[..., :3]))
    except UnreadableImage:
        return Result(0.0, 0.0, time.process_time() - started_s)
    seconds = time.process_time() - started_s
    return Result(mask_iou(separation.alpha >= 128, scene.mask), separation.confidence or 0.0, seconds)


def sheet_row(subject: NDArray[np.uint8], ground: GroundName, seed: int) -> NDArray[np.uint8]:
    """A scene, each hypothesis on magenta, and the result."""
    scene = make_scene(subject, ground, seed=seed)
    rgb = np.ascontiguousarray(scene.image[..., :3])
    small, magenta = reduced(rgb), np.array([255, 0, 255], np.float32)
    images = [rgb, *(np.where(each.mask[..., None], small, magenta) for each in hypotheses(small))]
    images += [np.zeros_like(small)] * (4 - len(images))
    try:
        share = separate(rgb).alpha[..., None] / 255
        images.append(rgb * share + magenta * (1 - share))
    except UnreadableImage:
        images.append(np.zeros_like(small))
    resized = [cv2.resize(each.astype(np.uint8), SHEET_SIZE, interpolation=cv2.INTER_AREA) for each in images]
    return np.hstack([np.asarray(each, np.uint8) for each in resized])


def print_table(results: dict[tuple[str, GroundName], Result], grounds: tuple[GroundName, ...]) -> None:
    """One row per subject, then medians and counts; a result with a warning has an exclamation mark."""
    print("drawn subjects have a star; ! is a result with a warning")
    print(f"{'':16}" + "".join(f"{ground:>10}" for ground in grounds))
    for name in dict.fromkeys(name for name, _ in results):
        row = [results[name, ground] for ground in grounds]
        cells = (f"{each.iou:9.3f}{'!' if each.confidence < TRUSTED_CONFIDENCE else ' '}" for each in row)
        print(f"{name:16}" + "".join(cells))
    columns = [[each.iou for (_, on), each in results.items() if on == ground] for ground in grounds]
    print(f"{'median':16}" + "".join(f"{statistics.median(column):9.3f} " for column in columns))
    print(f"{'below 0.9':16}" + "".join(f"{sum(iou < GOOD_IOU for iou in column):9d} " for column in columns))
    print(f"CPU seconds: median {statistics.median(each.seconds for each in results.values()):.2f}")


def print_warnings(results: dict[tuple[str, GroundName], Result]) -> int:
    """How far the warnings are right, on the four grounds and on all."""
    missed_in_all = 0
    for label, grounds in (("four grounds", GROUNDS), ("all grounds", (*GROUNDS, *HARD_GROUNDS))):
        chosen = {place: each for place, each in results.items() if place[1] in grounds}
        bad = {place: each for place, each in chosen.items() if each.iou < GOOD_IOU}
        missed = [place for place, each in bad.items() if each.confidence >= TRUSTED_CONFIDENCE]
        good = [each for each in chosen.values() if each.iou >= GOOD_IOU]
        false = sum(each.confidence < TRUSTED_CONFIDENCE for each in good)
        print(
            f"{label}: {len(bad) - len(missed)} of {len(bad)} results below {GOOD_IOU} carry the warning, "
            f"{false} of {len(good)} good ones do ({100 * false / max(1, len(good)):.1f} %)"
        )
        for name, ground in missed:
            print(f"  without warning: {name} on {ground}, {results[name, ground].iou:.3f}")
        missed_in_all = len(missed)
    return 1 if missed_in_all else 0
