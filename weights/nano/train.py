"""Train nano.en, a very small Whisper that understands synthetic English only, from nothing.

    python weights/nano/train.py             # 2 CPU cores: under 3 hours; a GPU is used where there is one
    python weights/nano/train.py --smoke     # the same steps in miniature, about a minute
    python weights/nano/train.py --install   # then puts the result into weights/ and evaluates it

It synthesises its speech first (kept in the working folder), then trains. Started again, it goes on.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sentences
import torch
import torch.distributed as dist
from network import VOCABULARY, Batch, Nano, checkpoint, dimensions, used_tokens, write_checkpoint
from speech import Bank
from torch import Tensor
from windows import Composer, Window

# Length of the windows in seconds -> windows in a batch: about equal work
BATCH = {6.0: 24, 15.0: 10, 30.0: 6}
# Until this fraction of the training: how often each length is drawn
STAGES = (
    (0.10, {6.0: 1.0}),
    (0.18, {6.0: 0.5, 15.0: 0.5}),
    (0.27, {6.0: 0.2, 15.0: 0.3, 30.0: 0.5}),
    (1.01, {30.0: 1.0}),
)
COLUMNS = ("step", "seconds", "length", "text", "phoneme", "guide", "accuracy")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, with the sizes of `--smoke` filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument(
        "--work",
        type=Path,
        default=cache / "asrgate" / "nano-train",
        help="folder of the speech, the checkpoints and the curve (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=26_000, help="length of the training (default: %(default)s)"
    )
    parser.add_argument("--stop-after", type=int, help="stop at this step, to be resumed later")
    parser.add_argument(
        "--utterances", type=int, default=24_000, help="synthesised sentences (default: %(default)s)"
    )
    parser.add_argument("--state", type=int, default=128, help="width (default: %(default)s)")
    parser.add_argument("--encoder-layers", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--decoder-layers", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument(
        "--peak", type=float, default=2e-3, help="highest learning rate (default: %(default)s)"
    )
    parser.add_argument("--mantissa", type=int, default=10, help="bits kept of each weight's fraction, 1-10")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="CPU processes: sharing the batch on a CPU, making it for a GPU (default: %(default)s)",
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny network, little speech, few steps")
    parser.add_argument(
        "--install", action="store_true", help="put the finished file into weights/, evaluate it"
    )
    args = parser.parse_args(argv)
    args.batch = BATCH
    if args.smoke:
        args.steps, args.utterances, args.state = 40, 60, 64
        args.encoder_layers = args.decoder_layers = 1
        args.batch = {6.0: 6, 15.0: 2, 30.0: 2}
    return args


class Steps(torch.utils.data.Dataset):
    """The windows of each step that this process works on: a function of the seed and the step alone."""

    def __init__(self, args: argparse.Namespace, bank: Bank, rank: int, world: int) -> None:
        self.args, self.rank, self.world = args, rank, world
        self.composer = Composer(bank, args.seed)

    def __len__(self) -> int:
        return self.args.steps

    def __getitem__(self, step: int) -> tuple[float, list[Window]]:
        mix = next(mix for until, mix in STAGES if step / self.args.steps < until)
        rng = np.random.default_rng([self.args.seed, step])
        limit = float(rng.choice(list(mix), p=list(mix.values())))
        slots = range(self.rank, self.args.batch[limit], self.world)
        return limit, [
            self.composer.draw(np.random.default_rng([self.args.seed, step, slot]), limit) for slot in slots
        ]


def rate_at(step: int, args: argparse.Namespace) -> float:
    """Learning rate: a short climb, then half a cosine down to 1 % of the peak."""
    warm = min(300, args.steps // 10)
    if step < warm:
        return args.peak * (step + 1) / warm
    share = (step - warm) / max(1, args.steps - warm)
    return args.peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def teacher_weights(share: float) -> tuple[float, float]:
    """Weights of the phoneme and the attention loss: they carry the start and leave the end to the text."""
    return 1.0 - 0.9 * min(1.0, share / 0.5), 0.3 * min(1.0, max(0.0, (0.85 - share) / 0.3))


def average_gradients(model: Nano, world: int) -> None:
    """The mean of all processes' gradients, in one message."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def train(rank: int, world: int, args: argparse.Namespace, meeting: str) -> None:  # noqa: PLR0915 - one story
    """One training process of `world`; process 0 keeps the average, the curve and the checkpoints."""
    device = torch.device(args.device)
    torch.set_num_threads(max(1, args.processes // world))
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    torch.manual_seed(args.seed)
    bank = Bank(args.work, args.utterances, args.seed, args.processes)
    used = used_tokens(sentences.sentences(args.seed, "train", 400 if args.smoke else 40_000))
    index = np.full(VOCABULARY, len(used))
    index[used] = np.arange(len(used))
    dims = dimensions(args.state, args.encoder_layers, args.decoder_layers)
    model = Nano(dims, used, len(bank.phonemes)).to(device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0}],
        lr=args.peak,
        betas=(0.9, 0.98),
        fused=True,
    )
    average = {k: v.clone() for k, v in model.whisper.state_dict().items()}
    last, first, clock = args.work / "last.pt", 0, 0.0
    if last.exists():
        saved = torch.load(last, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, first, clock = saved["average"], saved["step"], saved["seconds"]
    end = min(args.steps, args.stop_after or args.steps)
    gpu = device.type != "cpu"
    loader = torch.utils.data.DataLoader(
        Steps(args, bank, rank, world),
        batch_size=None,
        shuffle=False,
        sampler=range(first, end),
        num_workers=args.processes if gpu else 0,
        collate_fn=None,
    )
    started, sums, curve = time.perf_counter() - clock, [], args.work / "curve.csv"
    if rank == 0:
        lines = curve.read_text().splitlines()[1:] if first else []
        lines = [line for line in lines if int(line.split(",")[0]) <= first]  # those after it are made again
        curve.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")

    def save(step: int) -> None:
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step,
                "seconds": time.perf_counter() - started,
            },
            last.with_suffix(".part"),
        )
        last.with_suffix(".part").replace(last)

    for step, (limit, windows) in zip(range(first, end), loader, strict=True):
        share = step / args.steps
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, args)
        batch = Batch(windows, limit, index, device)
        with torch.autocast(device.type, torch.bfloat16):
            losses = model.losses(batch)
        phoneme, guide = teacher_weights(share)
        (losses["text"] + phoneme * losses["phoneme"] + guide * losses["guide"]).backward()
        if world > 1:
            average_gradients(model, world)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if rank:
            continue
        keep = min(0.998, step / (step + 10))
        for name, value in model.whisper.state_dict().items():
            average[name].lerp_(value, 1 - keep)
        sums.append([limit, *(float(losses[k].detach()) for k in COLUMNS[3:])])
        every = max(1, args.steps // 120)
        if (step + 1) % every == 0 or step + 1 == end:
            means = np.mean(sums, 0)
            sums = []
            row = [step + 1, round(time.perf_counter() - started), *(f"{v:.4g}" for v in means)]
            with curve.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(row)
            print(" ".join(f"{k} {v}" for k, v in zip(COLUMNS, row, strict=True)), flush=True)
        if (step + 1) % max(1, args.steps // 30) == 0 or step + 1 == end:
            save(step + 1)
    if rank == 0 and end == args.steps:
        export(args, average, dims, used)
    if world > 1:
        dist.destroy_process_group()


def export(args: argparse.Namespace, average: dict[str, Tensor], dims, used: list[int]) -> None:
    """Write the averaged weights as OpenAI's checkpoint, nano.en.pt, and packed, nano.en.pt.xz."""
    size = write_checkpoint(checkpoint(average, dims, used, args.mantissa), args.work / "nano.en.pt")
    print(f"{args.work / 'nano.en.pt.xz'}: {size / 1e6:.2f} MB", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Speech, training, export; then, if asked, installation and evaluation."""
    args = arguments(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    Bank(args.work, args.utterances, args.seed, args.processes)
    world = 1 if args.device != "cpu" else max(1, min(args.processes, *args.batch.values()))
    if world == 1:
        train(0, 1, args, "")
    else:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(train, (world, args, f"{folder}/meeting"), nprocs=world)
    if args.install:
        here = Path(__file__).resolve().parent
        (here.parent / "nano.en.pt.xz").write_bytes((args.work / "nano.en.pt.xz").read_bytes())
        (here / "curve.csv").write_bytes((args.work / "curve.csv").read_bytes())
        subprocess.run([sys.executable, str(here / "evaluate.py")], check=True)


if __name__ == "__main__":
    main()
