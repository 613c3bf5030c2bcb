"""Break the code on purpose and see the tests notice: `make canaries` (about a quarter of an hour).

Each line of `CANARIES` is a mistake that somebody has made or could make. It is put into a copy of the
repository; the tests named beside it must then fail. A canary that stays green means that a test tests
nothing. test_canaries.py checks at every run that each mistake can still be made at its place.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("cspine_utils", "tests", "notebooks", "figures", ".ci", "pyproject.toml", "environment.yml", "README.md")


class Canary(NamedTuple):
    """A mistake: in `file`, `old` becomes `new`; then the `tests` must fail."""

    mistake: str
    file: str
    old: str
    new: str
    tests: str


CANARIES = [
    Canary(
        "label map placed without reversing its axes",
        "cspine_utils/nifti.py",
        "np.flip(placed, reversed_axes).transpose(np.argsort(order))",
        "placed.transpose(np.argsort(order))",
        "test_nifti.py",
    ),
    Canary(
        "a label map half a voxel off is taken",
        "cspine_utils/placement.py",
        "CORNER_TOLERANCE_VOXELS = 0.1",
        "CORNER_TOLERANCE_VOXELS = 0.6",
        "test_placement.py",
    ),
    Canary(
        "a label map that fits bone better when flipped is taken",
        "cspine_utils/placement.py",
        "FLIP_MARGIN_HU = 10.0",
        "FLIP_MARGIN_HU = 1000.0",
        "test_placement.py",
    ),
    Canary(
        "a label map on another grid is resampled unasked",
        "cspine_utils/nifti.py",
        "if not resample or apart",
        "if apart",
        "test_nifti.py",
    ),
    Canary(
        "a compressed label map is not read to its end",
        "cspine_utils/nifti_file.py",
        "stream.read(2**20)",
        "stream.read(0)",
        "test_nifti.py",
    ),
    Canary(
        "slices in the order of their file names",
        "cspine_utils/dicom/geometry.py",
        'order = np.argsort(along, kind="stable")',
        "order = np.arange(len(along))",
        "test_dicom.py",
    ),
    Canary(
        "step taken from SliceThickness",
        "cspine_utils/dicom/geometry.py",
        "affine_lps[:3, 0] = step",
        "affine_lps[:3, 0] = step / np.linalg.norm(step) * headers[0].thickness_mm",
        "test_dicom.py",
    ),
    Canary(
        "the gantry's tilt is forgotten",
        "cspine_utils/dicom/geometry.py",
        "affine_lps[:3, 0] = step",
        "affine_lps[:3, 0] = normal * (step @ normal)",
        "test_dicom_geometry.py",
    ),
    Canary(
        "headers that differ are taken for alike",
        "cspine_utils/dicom/alike.py",
        'if keyword is None or keyword == "ImagePositionPatient":',
        "if True:",
        "test_dicom_headers.py",
    ),
    Canary(
        "bits that hold no value are read as value",
        "cspine_utils/dicom/pixels.py",
        "if pixels.stored == bits:",
        "if True:",
        "test_dicom_pixels.py",
    ),
    Canary(
        "a damaged slice is left out like a stranger",
        "cspine_utils/dicom/folder.py",
        "if other.series in series:",
        "if False:",
        "test_dicom.py",
    ),
    Canary(
        "a missing slice goes unnoticed",
        "cspine_utils/dicom/geometry.py",
        "STEP_TOLERANCE = 0.1",
        "STEP_TOLERANCE = 1.5",
        "test_dicom.py",
    ),
    Canary(
        "a study id may lead out of the folder",
        "cspine_utils/rsna.py",
        "[0-9A-Za-z._-]{0,127}",
        "[0-9A-Za-z._/-]{0,127}",
        "test_rsna.py",
    ),
    Canary(
        "the index wraps at the border of the neck",
        "cspine_utils/stacks/slices.py",
        "np.clip(centres + offset, 0, count - 1)",
        "(centres + offset) % count",
        "test_stacks.py",
    ),
    Canary(
        "a box's file number is taken for its place",
        "cspine_utils/stacks/boxes.py",
        "stored.get(str(int(number)))",
        "int(number) - 1",
        "test_stacks_boxes.py",
    ),
    Canary(
        "nobody said where, and it counts as nowhere",
        "cspine_utils/stacks/store.py",
        "np.nan, dtype=np.float32",
        "0, dtype=np.float32",
        "test_stacks_boxes.py",
    ),
    Canary(
        "two runs write one study at once",
        "cspine_utils/stacks/store.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX)",
        "pass",
        "test_stacks_consistency.py",
    ),
    Canary(
        "shifted frames wrap around the neck",
        "cspine_utils/augment.py",
        ".clamp(0, last)]",
        ".remainder(last + 1)]",
        "test_augment.py",
    ),
    Canary(
        "thoracic labels count as neck",
        "cspine_utils/anatomy.py",
        "CERVICAL_IDS = range(1, 8)",
        "CERVICAL_IDS = range(1, 20)",
        "test_stacks.py",
    ),
    Canary(
        "one study on both sides of a split",
        "cspine_utils/screening/splits.py",
        "if len(set(studies)) != len(studies):",
        "if False:",
        "test_splits.py",
    ),
    Canary(
        "the leakage gate takes a slice for a study",
        "cspine_utils/screening/splits.py",
        "        return item[0]",
        "        return item",
        "test_splits.py",
    ),
    Canary(
        "a killed worker takes its study with it",
        "cspine_utils/parallel.py",
        "suspects += held",
        "pass",
        "test_parallel.py",
    ),
    Canary(
        "a survey goes on with rows of files that changed",
        "cspine_utils/journal.py",
        "return value if found == mark else None",
        "return value",
        "test_screening.py",
    ),
    Canary(
        "numbers of a patch in another order",
        "cspine_utils/models/vit3d.py",
        "-> b (f h w) (pf ph pw c)",
        "-> b (f h w) (c pf ph pw)",
        "test_vit3d.py",
    ),
    Canary(
        "filling of a batch passes for evidence",
        "cspine_utils/models/heads.py",
        "seen = torch.where(read.keep, seen, silence[:, : seen.shape[1]])",
        "pass",
        "test_heads.py",
    ),
    Canary(
        "a level listens to the tokens of all levels",
        "cspine_utils/models/heads.py",
        "masked_fill(~own, -torch.inf)\n        pooled",
        "masked_fill(own & ~own, -torch.inf)\n        pooled",
        "test_heads.py",
    ),
    Canary(
        "the true mask is shown where a predicted one is announced",
        "cspine_utils/ladder/controls.py",
        "return held.drawn[by].show(x, index)",
        "return x",
        "test_ladder_controls.py",
    ),
    Canary(
        "what is called drawn is judged with true masks",
        "cspine_utils/ladder/rungs.py",
        "for one in (choose, judge_, self.twins))",
        "for one in (choose, judge_, self.twins))\n        self.held_out = judge_",
        "test_ladder.py",
    ),
    Canary(
        "masks of one network are taken for those of another",
        "cspine_utils/ladder/masks.py",
        'f"masks-{self.name}"',
        '"masks"',
        "test_ladder_masks.py",
    ),
    Canary(
        "masks that were drawn generously are taken for others of the same network",
        "cspine_utils/ladder/masks.py",
        "[:16]}-{odds:g}",
        "[:16]}",
        "test_ladder_masks.py",
    ),
    Canary(
        "a mask is drawn as ever, whatever the odds",
        "cspine_utils/segment.py",
        "math.log(background_odds)",
        "math.log(1.0)",
        "test_segment.py",
    ),
    Canary(
        "a dask cluster that lost its workers is waited for in silence",
        "cspine_utils/parallel.py",
        "looks = 0 if client.nthreads() else looks + 1",
        "looks = 0 if client.nthreads() is not None else looks + 1",
        "test_parallel.py",
    ),
    Canary(
        "a segmenter learns from the necks that it is to draw on",
        "cspine_utils/ladder/masks.py",
        "((teach, profile.mask_necks), (choose, 8))",
        "((choose, profile.mask_necks), (choose, 8))",
        "test_ladder_masks.py",
    ),
    Canary(
        "a broken crop is compared with another patient's twin",
        "cspine_utils/ladder/judge.py",
        "told[0::2] > told[1::2]",
        "told[0::2] > np.roll(told[1::2], 1)",
        "test_ladder.py",
    ),
    Canary(
        "a neck's twin in the place of the neck",
        "cspine_utils/ladder/judge.py",
        "(broken - intact)[:, :-1][told]",
        "(intact - broken)[:, :-1][told]",
        "test_ladder.py",
    ),
    Canary(
        "a rung is judged by what the levels alone tell",
        "cspine_utils/ladder/judge.py",
        "bootstrap(ranking.within_level_auroc, y, p, generator=rng)",
        "bootstrap(ranking.pooled_auroc, y, p, generator=rng)",
        "test_ladder.py",
    ),
    Canary(
        "twins count as two patients",
        "cspine_utils/ladder/judge.py",
        "generator=rng, groups=patients)",
        "generator=rng)",
        "test_ladder.py",
    ),
    Canary(
        "a calibration forgets its slope",
        "cspine_utils/calibration.py",
        "head.gain.mul_(scale.slope)",
        "pass",
        "test_calibration.py",
    ),
    Canary(
        "necks that chose the epoch judge it",
        "cspine_utils/ladder/plan.py",
        "(rung.first, rung.first + CHOOSE, rung.first + JUDGE)",
        "(rung.first, rung.first + CHOOSE, rung.first + CHOOSE)",
        "test_ladder.py",
    ),
    Canary(
        "only broken vertebrae are filled, so that the filling tells",
        "cspine_utils/ladder/controls.py",
        "hole[tuple(places[inside].T)] = True",
        "pass",
        "test_ladder_controls.py",
    ),
    Canary(
        "a moved mask comes in again at the other end",
        "cspine_utils/ladder/controls.py",
        "came_in.fill_(NO_LABEL)",
        "pass",
        "test_ladder_controls.py",
    ),
    Canary(
        "shuffled labels stay with what is marked as broken",
        "cspine_utils/ladder/levers.py",
        "torch.cat([other[:, : stacks.CHANNELS], x[:, stacks.CHANNELS :]], dim=1)",
        "other",
        "test_ladder.py",
    ),
    Canary(
        "controls judge the weights before their calibration",
        "cspine_utils/ladder/rungs.py",
        "checkpoints.save(model, weights_file(out, seed, name))",
        "checkpoints.save(checkpoints.load(model, out / str(seed) / name / 'best.pt'), weights_file(out, seed, name))",
        "test_ladder.py",
    ),
    Canary(
        "bfloat16 on processors that imitate it",
        "cspine_utils/training/settings.py",
        "any(able.get(name, False) for name in _BFLOAT16)",
        "any(name.startswith('avx') for name in able)",
        "test_training_options.py",
    ),
    Canary(
        "a process takes up a checkpoint that another one has not finished",
        "cspine_utils/training/fitting.py",
        "fabric.barrier()  # nobody still writes",
        "pass  # nobody still writes",
        "test_training_processes.py",
    ),
    Canary(
        "processes that go on after different epochs wait for each other",
        "cspine_utils/training/processes.py",
        "if len(set(found)) > 1:",
        "if len(set(found)) > len(found):",
        "test_training_processes.py",
    ),
    Canary(
        "a crop and its twin are torn apart from each other",
        "cspine_utils/crops.py",
        "self.jitter(mask, view.torn)",
        "self.jitter(mask, view.torn + side)",
        "test_crops.py",
    ),
    Canary(
        "what is broken loses its name where the mask is torn",
        "cspine_utils/crops.py",
        "marked = torch.from_numpy((labels[side, ::2] * ",
        "marked = torch.from_numpy((shown[side] * ",
        "test_crops.py",
    ),
    Canary(
        "the brightness of a study tells where its mask went",
        "cspine_utils/augment.py",
        "tear_mask(out, self.mask, torn)",
        "tear_mask(out, self.mask, seed)",
        "test_mask_jitter.py",
    ),
    Canary(
        "being read counts as waiting",
        "cspine_utils/worklist/queues.py",
        "waited = now - self.arrival[k] - (self.total[k] - self.left[k])",
        "waited = now - self.arrival[k]",
        "test_worklist_queues.py",
    ),
    Canary(
        "who has waited too long interrupts others",
        "cspine_utils/worklist/queues.py",
        "        self.ahead[k] = 1\n        heappush(self.urgent, k)\n",
        "        self.ahead[k] = 1\n        self._squeeze_in(k, now)\n",
        "test_worklist_queues.py",
    ),
    Canary(
        "torn masks move to one side alone",
        "cspine_utils/mask_jitter.py",
        "(2 * draws[6 + axis] - 1) * self.shift",
        "draws[6 + axis] * self.shift",
        "test_mask_jitter.py",
    ),
    Canary(
        "a rung keeps what is worse",
        "cspine_utils/ladder/rungs.py",
        "kept = min(losses, key=losses.get)",
        "kept = max(losses, key=losses.get)",
        "test_ladder.py",
    ),
    Canary(
        "the second start may have learned from those that judge",
        "cspine_utils/ladder/plan.py",
        "steps.extend(RUNGS[step].start)",
        "steps.extend(RUNGS[step].start[:1])",
        "test_ladder.py",
    ),
    Canary(
        "of two starts the second one alone counts",
        "cspine_utils/ladder/rungs.py",
        "torch.stack([one[name] for one in found]).mean(dim=0)",
        "found[-1][name]",
        "test_ladder.py",
    ),
    Canary(
        "a model is judged with masks that are not torn",
        "cspine_utils/ladder/rungs.py",
        "ask(model, Torn(self.stored[-1], ALL_TORN))",
        "ask(model, self.held_out)",
        "test_ladder.py",
    ),
    Canary(
        "patients are compared with their own twins, too",
        "cspine_utils/ranking.py",
        "[np.not_equal.outer(patients[positive], patients[~positive])]",
        ".ravel()",
        "test_ranking.py",
    ),
    Canary(
        "a rim of air around rendered necks",
        "cspine_utils/phantom/rendering.py",
        "(42.0, 80.0), (58.0, 58.0))",
        "(22.0, 68.0), (48.0, 48.0))",
        "test_necks.py",
    ),
    Canary(
        "the others are read for as long as somebody else of them",
        "cspine_utils/worklist/queues.py",
        "idle_end = clock + _lindley(np.diff(clock), r) + r",
        "idle_end = clock + _lindley(np.diff(clock), r[::-1]) + r",
        "test_worklist_queues.py",
    ),
    Canary(
        "the AI's answer is there before the exam",
        "cspine_utils/worklist/simulation.py",
        "patients.arrival + scenario.latency_min, np.inf)",
        "patients.arrival - scenario.latency_min, np.inf)",
        "test_worklist.py",
    ),
    Canary(
        "a saving without those who are missed",
        "cspine_utils/worklist/simulation.py",
        '"diseased_min": mean(after, "TP", "FN")',
        '"diseased_min": mean(after, "TP")',
        "test_worklist.py",
    ),
    Canary(
        "one formula for all reading laws",
        "cspine_utils/worklist/theory.py",
        '"lognormal": scenario.reading_cv**2, "fixed": 0.0',
        '"lognormal": 1.0, "fixed": 1.0',
        "test_worklist.py",
    ),
    Canary(
        "who has waited too long takes the place that a flagged exam made",
        "cspine_utils/worklist/queues.py",
        "        self.free += 1\n        self._take(k, now)\n",
        "        self.free += 1\n        heappush(self.urgent, k)\n        self._next(now)\n",
        "test_worklist_queues.py",
    ),
    Canary(
        "missed fractures gain",
        "cspine_utils/worklist/simulation.py",
        '"missed_delay_min": mean(after, "FN") - mean(before, "FN")',
        '"missed_delay_min": mean(before, "FN") - mean(after, "FN")',
        "test_worklist.py",
    ),
    Canary(
        "a horizon on a day like any other",
        "cspine_utils/worklist/simulation.py",
        "scenario.arrivals_per_min * _even_minutes(scenario)",
        "scenario.arrivals_per_min * scenario.horizon_min",
        "test_worklist.py",
    ),
    Canary(
        "false alarms are free",
        "cspine_utils/worklist/usefulness.py",
        "(1 - specificity) * price",
        "(1 - specificity) * price * 0",
        "test_worklist_usefulness.py",
    ),
    Canary(
        "a mirror image keeps the marks of the image",
        "cspine_utils/crops.py",
        "x.flip(-1) if view.mirrored else x, y",
        "torch.cat([x[:, :6].flip(-1), x[:, 6:]], dim=1) if view.mirrored else x, y",
        "test_crops.py",
    ),
    Canary(
        "a piece's own ends are repeated inside of a crop",
        "cspine_utils/crops.py",
        "0, len(hu) - 1)",
        "2 * frames.start, 2 * frames.stop - 1)",
        "test_crops.py",
    ),
    Canary(
        "the marks of a neighbour break a token",
        "cspine_utils/evidence.py",
        "(marks == own[..., None])",
        "(marks > 0)",
        "test_evidence.py",
    ),
    Canary(
        "a target that nobody told counts as intact",
        "cspine_utils/evidence.py",
        "told = ~y.isnan()",
        "told = torch.ones_like(y)",
        "test_evidence.py",
    ),
    Canary(
        "a study whose boxes are forgotten counts as intact",
        "cspine_utils/necks.py",
        "(marked == LABEL_IDS[level])] = torch.nan",
        "(marked == LABEL_IDS[level])] = 0",
        "test_necks.py",
    ),
    Canary(
        "intact vertebrae of a study without boxes are forgotten, too",
        "cspine_utils/necks.py",
        "                if broken:  # what",
        "                if True:  # what",
        "test_necks.py",
    ),
    Canary(
        "attention that speaks against a fracture counts for it",
        "cspine_utils/explain.py",
        "(weights * gradient).clamp_min(0)",
        "(weights * gradient).abs()",
        "test_explain.py",
    ),
    Canary(
        "the last epoch passes for the best",
        "cspine_utils/checkpoints.py",
        "return min(trained, key=lambda row: math.inf if math.isnan(row[judged]) else row[judged])",
        "return trained[-1]",
        "test_training.py",
    ),
    Canary(
        "positives are not doubled in the competition's loss",
        "cspine_utils/metrics.py",
        "np.where(y == 1, 2.0, 1.0)",
        "np.where(y == 1, 1.0, 1.0)",
        "test_metrics.py",
    ),
    Canary(
        "a label map with the fracture gap in it gives the answer away",
        "cspine_utils/phantom/scene.py",
        "own[(bone.whole < 0)",
        "own[(bone.occupied < 0)",
        "test_phantom.py",
    ),
    Canary(
        "look-alikes only in intact vertebrae",
        "cspine_utils/phantom/study.py",
        "level, patient, preset.mimics)",
        "level, patient, preset.mimics * (level not in levels))",
        "test_phantom_render.py",
    ),
    Canary(
        "white noise in place of a kernel's",
        "cspine_utils/phantom/scanner.py",
        "torch.sqrt(power / power.mean())",
        "torch.ones_like(power)",
        "test_phantom_render.py",
    ),
    Canary(
        "a crop shows another place than its box of the study",
        "cspine_utils/phantom/grid.py",
        "s * (a + np.arange(n))",
        "s * np.arange(n)",
        "test_phantom_render.py",
    ),
    Canary(
        "one sigma narrower bones than published",
        "cspine_utils/phantom/patient.py",
        "getattr(s, field) * patient.scale",
        "getattr(s, field) * 0.85 * patient.scale",
        "test_phantom_acceptance.py",
    ),
    Canary(
        "synthetic files without a step that differs from the thickness",
        "cspine_utils/phantom/study.py",
        "(0.8, 1.0, 1.25, 1.5)",
        "(1.0, 1.0, 1.0, 1.0)",
        "test_phantom.py",
    ),
    Canary(
        "left and right swapped in the surface picture",
        "cspine_utils/surfaces.py",
        "np.cross(up, toward), up",
        "np.cross(toward, up), up",
        "test_surfaces.py",
    ),
    Canary(
        "an arrow points at a moved edge instead of the gap",
        "cspine_utils/galleries.py",
        " * (depth_mm / 2.0).clip(0, 1) ** 2",
        "",
        "test_galleries.py",
    ),
    Canary(
        "names of parts on the wrong side of the body",
        "cspine_utils/surfaces.py",
        "np.array(p) * [-1, 1, 1]]",
        "np.array(p)]",
        "test_surfaces.py",
    ),
    Canary(
        "a misspelt notebook parameter is let through",
        "cspine_utils/runs.py",
        "if name not in declared:",
        "if False:",
        "test_runs.py",
    ),
    Canary(
        "a changed package does not rerun the notebooks",
        "cspine_utils/course.py",
        '*sorted((ROOT / "cspine_utils").rglob("*.py"))',
        "",
        "test_course.py",
    ),
    Canary("environment.yml drifts from the pins", "environment.yml", "numpy==2.4.6", "numpy==2.4.5", "test_pins.py"),
    Canary(
        "a notebook without execution counts",
        "notebooks/02_dataset_screening.ipynb",
        '"execution_count": 2,',
        '"execution_count": null,',
        "test_notebooks.py",
    ),
    Canary(
        "a 2D network that never sees the mask",
        "cspine_utils/models/slice_models.py",
        "features = self.net(frames)",
        "features = self.net(frames * (torch.arange(6) < 5).view(1, 6, 1, 1))",
        "test_models.py",
    ),
    Canary(
        "the patient is the mean of its levels",
        "cspine_utils/models/base.py",
        "softplus(logits).sum(dim=-1)",
        "softplus(logits).mean(dim=-1)",
        "test_models.py",
    ),
    Canary(
        "weights of another network are taken in silence",
        "cspine_utils/models/slice_models.py",
        '({len(left)} such layers)" if left else None',
        '({len(left)} such layers)" if False else None',
        "test_models.py",
    ),
    Canary(
        "an LSTM whose two directions have changed places",
        "cspine_utils/models/slice_models.py",
        "return self.mixer(x)[0]",
        "return self.mixer(x.flip(1))[0].flip(1)",
        "test_models.py",
    ),
    Canary(
        "neighbours of a patch in the wrong order",
        "cspine_utils/segment.py",
        "hu.movedim(_AXIS[self.plane], 0)",
        "hu.movedim(_AXIS[self.plane], 0).flip(0)",
        "test_segment.py",
    ),
    Canary(
        "a predicted mask comes back one slice too low",
        "cspine_utils/segment.py",
        "mask[index] = fine",
        "mask[min(index + 1, depth - 1)] = fine",
        "test_segment.py",
    ),
    Canary(
        "Dice divides by one mask only",
        "cspine_utils/metrics.py",
        "total = np.count_nonzero(a) + np.count_nonzero(b)",
        "total = 2 * np.count_nonzero(a)",
        "test_segment.py",
    ),
    Canary(
        "one failed run stops a grid",
        "cspine_utils/runs.py",
        "    except CSpineError as error:\n        return str(error)",
        "    except CSpineError:\n        raise",
        "test_runs.py",
    ),
    Canary(
        "a grid starts before its last row is checked",
        "cspine_utils/runs.py",
        "rows.append(check_parameters(notebook, row))",
        "rows.append(row)",
        "test_runs.py",
    ),
    Canary(
        "a drawing with shapes of another run",
        "cspine_utils/diagrams.py",
        "tuple(tuple(t.shape[1:])",
        "tuple(tuple(t.shape[:-1])",
        "test_diagrams.py",
    ),
    Canary("the map forgets a room", "README.md", "| `demo` |", "| demo |", "test_rooms.py"),
]


def run_tests(root: Path, names) -> int:
    """pytest's exit code for some test files of the copy at `root`: 0 all passed, 1 some failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{n}" for n in names)]
    # PYTHONPATH comes before the installed package, so that the copy is what the tests import.
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True).returncode


def is_noticed(canary: Canary, root: Path) -> bool:
    """Put the mistake into the copy at `root`, run the tests named beside it, take the mistake out again."""
    path = root / canary.file
    good = path.read_text()
    path.write_text(good.replace(canary.old, canary.new, 1))
    code = run_tests(root, [canary.tests])
    path.write_text(good)
    return code == 1


def main() -> int:
    silent = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "copy"
        root.mkdir()
        for name in COPIED:
            source = ROOT / name
            ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            shutil.copytree(source, root / name, ignore=ignore) if source.is_dir() else shutil.copy(source, root)
        if run_tests(root, sorted({canary.tests for canary in CANARIES})) != 0:
            print("the tests fail without any mistake: mend them first")
            return 1
        for canary in CANARIES:
            noticed = is_noticed(canary, root)
            silent += [] if noticed else [canary.mistake]
            print(f"{'noticed' if noticed else 'SILENT '}  {canary.tests:<20} {canary.mistake}", flush=True)
    print(f"{len(CANARIES) - len(silent)} of {len(CANARIES)} mistakes were noticed")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
