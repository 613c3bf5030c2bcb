"""What a training step of the 3D transformer costs, beside the same form in other libraries.

    python tests/bench/bench_vit.py [--quick] [--bf16] [--device cuda] [--csv FILE] [--readme]

A step is forward, loss, backward and AdamW. All models have the same boxes, width, depth, heads and inner width; each
is what its library gives for that form (so MONAI and VideoMAE cut with a convolution, vit_3d normalises each box, MONAI
and vit_3d add a class token). They take turns, each repeat in another order, and the table says how many times as long
each took as ours: the median, over the repeats, of the ratio within a repeat (of processor time where there is one
thread). Peak memory is that of one step in a
process of its own, above what it held with the model built. A peer that is not installed is listed as such.

On CUDA times include waiting for the device, memory is what torch allocated, and the share of the device's peak (MFU)
is told: floating-point operations that torch counts in one step of ours, over seconds, over the peak that `PEAK` has
for the device. That branch has not been run yet.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import bench_io
import io_report
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cspine_utils.models.vit3d import ViT3D

OURS = "this package"
#: Dense bf16 operations a second that makers name for a device (a part of its name).
PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L4": 121e12, "L40S": 362e12, "RTX 4090": 165e12}


@dataclass(frozen=True)
class Form:
    """A study tensor, and a transformer for it; limits as (peer, what, at most): ours over the peer's."""

    name: str
    frames: int
    size: int
    batch: int
    dim: int
    heads: int
    depth: int = 6
    channels: int = 6
    frame_patch: int = 4
    patch: int = 16
    targets: int = 8
    limits: tuple[tuple[str, str, float], ...] = ()

    @property
    def tokens(self) -> int:
        return self.frames // self.frame_patch * (self.size // self.patch) ** 2


FORMS = {
    "small": Form(
        "small", frames=32, size=112, batch=2, dim=192, heads=6,
        limits=(("vit_3d", "time", 0.85), ("MONAI ViT", "time", 1.0), ("VideoMAE", "time", 1.0)),
    ),
    "large": Form(
        "large", frames=108, size=224, batch=1, dim=384, heads=6,
        limits=(("vit_3d", "time", 0.4), ("vit_3d", "memory", 0.25)),
    ),
}  # fmt: skip


def ours(form: Form) -> nn.Module:
    return ViT3D(
        frames=form.frames, channels=form.channels, size=form.size, frame_patch=form.frame_patch, patch=form.patch,
        dim=form.dim, depth=form.depth, heads=form.heads, mlp_ratio=4,
    )  # fmt: skip


class FramesLast(nn.Module):
    """A peer that takes `b c f h w` gets our `b f c h w`, as a view."""

    def __init__(self, net: nn.Module, answer: Callable = lambda out: out):
        super().__init__()
        self.net, self.answer = net, answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.net(x.transpose(1, 2)))


def vit_3d(form: Form) -> nn.Module:
    from vit_pytorch.vit_3d import ViT

    return FramesLast(
        ViT(
            image_size=form.size, image_patch_size=form.patch, frames=form.frames, frame_patch_size=form.frame_patch,
            channels=form.channels, num_classes=form.targets, dim=form.dim, depth=form.depth, heads=form.heads,
            dim_head=form.dim // form.heads, mlp_dim=4 * form.dim,
        )
    )  # fmt: skip


def monai_vit(form: Form) -> nn.Module:
    from monai.networks.nets import ViT

    patch = (form.frame_patch, form.patch, form.patch)
    net = ViT(
        in_channels=form.channels, img_size=(form.frames, form.size, form.size), patch_size=patch, qkv_bias=True,
        hidden_size=form.dim, mlp_dim=4 * form.dim, num_layers=form.depth, num_heads=form.heads, classification=True,
        num_classes=form.targets, post_activation="none",
    )  # fmt: skip
    return FramesLast(net, lambda out: out[0])


class VideoMAE(nn.Module):
    """Hugging Face's, as a classifier; it takes `b f c h w`."""

    def __init__(self, form: Form):
        super().__init__()
        from transformers import VideoMAEConfig
        from transformers.models.videomae.modeling_videomae import VideoMAEForVideoClassification

        self.net = VideoMAEForVideoClassification(
            VideoMAEConfig(
                image_size=form.size, patch_size=form.patch, num_channels=form.channels, num_frames=form.frames,
                tubelet_size=form.frame_patch, hidden_size=form.dim, num_hidden_layers=form.depth,
                num_attention_heads=form.heads, intermediate_size=4 * form.dim, num_labels=form.targets,
            )
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).logits


#: name -> (builder, package that must be there, words)
MODELS = {
    OURS: (ours, "torch", "fused attention, mean of the tokens"),
    "vit_3d": (vit_3d, "vit_pytorch", "vit-pytorch; stores the attention weights"),
    "MONAI ViT": (monai_vit, "monai", "as its `ViT` makes it; stores the attention weights"),
    "VideoMAE": (VideoMAE, "transformers", "Hugging Face; fused attention"),
}


class Step:
    """A model with its optimiser and one batch of noise; calling it makes a training step and gives the logits."""

    def __init__(self, name: str, form: Form, device: str, bf16: bool):
        torch.manual_seed(0)
        self.model = MODELS[name][0](form).to(device).train()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.x = torch.randn(form.batch, form.frames, form.channels, form.size, form.size, device=device)
        self.y = (torch.rand(form.batch, form.targets, device=device) < 0.3).float()
        self.device, self.bf16 = device, bf16

    def __call__(self) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.model(self.x)
        nn.functional.binary_cross_entropy_with_logits(logits.float(), self.y).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return logits.detach()


def installed() -> list[str]:
    return [name for name, (_, package, _) in MODELS.items() if importlib.util.find_spec(package)]


def contest(form: Form, names: list[str], device: str, bf16: bool, repeats: int) -> bench_io.Contest:
    def check(name: str, logits: Tensor) -> str:
        fine = logits.shape == (form.batch, form.targets) and bool(torch.isfinite(logits).all())
        return "" if fine else f"no logits: {tuple(logits.shape)}"

    jobs = {name: Step(name, form, device, bf16) for name in names}
    # One thread is measured by its processor time, which others on the machine disturb less.
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    return bench_io.compete(form.name, jobs, check, files=form.batch, repeats=repeats, clock=clock)


def peak_bytes(name: str, form: Form, device: str, bf16: bool, threads: int) -> int:
    """Peak memory of one step in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, form.name, "--device", device, "--threads", str(threads)]
    command += ["--bf16"] if bf16 else []
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(name: str, form: Form, device: str, bf16: bool) -> None:
    """The child of `peak_bytes`."""
    step = Step(name, form, device, bf16)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        step()
        print(torch.cuda.max_memory_allocated() - before)
    else:
        before = bench_io.peak(start=True)
        step()
        print(bench_io.peak() - before)


def share_of_peak(form: Form, seconds: float) -> float | None:
    """MFU of ours on this device, or None where its peak is not in the table."""
    peak = next((value for part, value in PEAK.items() if part in torch.cuda.get_device_name()), None)
    with FlopCounterMode(display=False) as counter:
        Step(OURS, form, "cuda", True)()
    return counter.get_total_flops() / seconds / peak if peak else None


def limits(form: Form, found: bench_io.Contest, peaks: dict[str, int]) -> list[list[str]]:
    """Rows of (what, value, target, met) for the limits that could be judged here."""
    rows = []
    for peer, what, most in form.limits:
        if peer in found.seconds:
            value = 1 / found.ratio(peer) if what == "time" else peaks[OURS] / peaks[peer]
            met = "met" if value <= most else "**missed**"
            rows.append([f"{form.tokens:,} tokens: {what} of ours over that of {peer}", f"{value:.2f}",
                         f"at most {most}", met])  # fmt: skip
    return rows


def form_rows(form: Form, found: bench_io.Contest, peaks: dict[str, int]) -> list[list[str]]:
    rows = []
    for name, (_, _, words) in MODELS.items():
        if name not in found.seconds:
            rows.append([name, "-", "-", "-", found.faults.get(name, "not installed")])
            continue
        rows.append([name, f"{found.ratio(name):.2f}", f"{found.median(name):.3f}", f"{peaks[name] / 2**20:,.0f}",
                     words])  # fmt: skip
    return rows


def report(results, judged, arguments) -> str:
    """What a run found, in Markdown."""
    packages = ("torch", "vit-pytorch", "monai", "transformers")
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else io_report.machine()
    named = [f"{package} {_version(package)}" for package in packages]
    parts = [
        f"Measured on {datetime.date.today().isoformat()}: {where}, {arguments.threads} thread, "
        f"{'bf16 autocast' if arguments.bf16 else 'float32'}. {', '.join(named)}."
    ]
    for form, found, peaks, repeats in results:
        shape = f"{form.channels} x {form.frames} x {form.size} x {form.size}"
        parts.append(
            f"{form.tokens:,} tokens: studies of {shape}, boxes of {form.frame_patch} x {form.patch} x {form.patch}, "
            f"width {form.dim}, {form.depth} blocks, {form.heads} heads, batch {form.batch}; {repeats} repeats."
        )
        head = ["model", "times as long as ours", "seconds a step", "peak memory, MiB", "how"]
        parts.append(io_report.table(head, form_rows(form, found, peaks)))
    return "\n\n".join([*parts, "Targets:", io_report.table(["what", "value", "target", ""], judged)])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def write_csv(path: str, results, arguments) -> None:
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["device", "precision", "tokens", "model", "seconds", "times_as_long", "peak_mib", "mfu"])
        for form, found, peaks, _ in results:
            for name in found.seconds:
                on_device = name == OURS and arguments.device == "cuda"
                share = share_of_peak(form, found.median(name)) if on_device else None
                row = [device, "bf16" if arguments.bf16 else "float32", form.tokens, name, f"{found.median(name):.4f}"]
                writer.writerow([*row, f"{found.ratio(name):.3f}", peaks[name] // 2**20, share or ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small form alone, three repeats")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", metavar="FILE", help="also write the numbers as a table")
    parser.add_argument("--readme", action="store_true", help="put the tables into tests/bench/README.md")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "FORM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    how = {"device": arguments.device, "bf16": arguments.bf16}
    if arguments.peak:
        print_peak(arguments.peak[0], FORMS[arguments.peak[1]], **how)
        return 0
    results, judged, names = [], [], installed()
    for form, repeats in ((FORMS["small"], 3 if arguments.quick else 9), (FORMS["large"], 2)):
        if arguments.quick and form.name != "small":
            continue
        found = contest(form, names, repeats=repeats, **how)
        peaks = {name: peak_bytes(name, form, threads=arguments.threads, **how) for name in found.seconds}
        print(io_report.lines(found), {name: f"{value / 2**20:.0f} MiB" for name, value in peaks.items()}, flush=True)
        results.append((form, found, peaks, repeats))
        judged += limits(form, found, peaks)
    print("\n".join("  ".join(row) for row in judged))
    if arguments.csv:
        write_csv(arguments.csv, results, arguments)
    if arguments.readme:
        io_report.into_readme(report(results, judged, arguments), "bench_vit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
