"""Train the shipped vision-language model on scenes composed of Fashion-MNIST's training photographs.

    python examples/train_vlm.py --out runs/vlm            # resumes where it stopped
    python examples/train_vlm.py --out runs/vlm --finish   # test scenes, once, and the shipped file

The vision tower starts from the shipped segmenter's first eight blocks, with patches of 8 instead of 5 pixels. First it
learns alone, from pixel labels, what stands where; then all of the model learns from questions, while the tower keeps
its first task at a smaller weight. A scene is encoded once for all its questions, which do not see each other. No token
is ever dropped or merged in training. 5,000 training photographs are held out for the scenes that watch progress;
`--finish` alone reads the test photographs. A checkpoint is written after every epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn
from torch.nn import functional as F
from training import optimizers, split_photos

from tokenreduce.lab.data import fashion_mnist, scene_questions, scenes
from tokenreduce.lab.shipped import scene_vlm as shipped
from tokenreduce.lab.shipped.scene_words import BOS, EOS, SIDE, WORDS
from tokenreduce.lab.shipped.scenes import scene_segmenter

WORD = {word: index for index, word in enumerate(WORDS)}
NAMED = torch.tensor([0, *(1 + scene_questions.NAMES.index(name) for name in scene_questions.NAME_OF)])
PREFIX = 1 + SIDE**2  # the first word and the image
FINE = 2  # predictions along a side of a patch
HARD = (scene_questions.how_many,) * 2 + (scene_questions.what_is,) * 3  # asked more often in training
TRAINED = (scene_questions.are_there, scene_questions.where, scene_questions.what_shade, *HARD)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--tower-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=52, help="with the tower's own")
    parser.add_argument("--epoch-size", type=int, default=2048, help="scenes in an epoch, all new")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--questions", type=int, default=16, help="of each scene")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--held-out", type=int, default=500, help="held-out scenes that watch progress")
    parser.add_argument("--finish", action="store_true")
    return parser.parse_args()


class Student(nn.Module):
    """The model with two heads that its tower has in training only: what each quarter of a patch shows, and what there
    is, from the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.vlm = shipped.build_scene_vlm()
        self.vlm.set_attn_implementation("eager")  # fused attention's backward takes longer on a CPU
        names = len(scene_questions.NAMES)
        self.dense = nn.Linear(shipped.WIDTH, (1 + names) * FINE**2)
        self.shown = nn.Linear(shipped.WIDTH, names)

    def encode(self, images: Tensor) -> Tensor:
        return self.vlm.model.vision_tower(scenes.normalise(images), output_hidden_states=True).hidden_states[-1]

    def dense_loss(self, states: Tensor, made: scenes.Scenes) -> Tensor:
        states = self.vlm.model.vision_tower.post_layernorm(states)
        maps = self.dense(states[:, 1:]).mT.unflatten(-1, (SIDE, SIDE))
        truth = F.interpolate(NAMED[made.masks][:, None].float(), (SIDE * FINE,) * 2, mode="nearest")[:, 0].long()
        there = F.one_hot(NAMED[made.labels], 1 + self.shown.out_features).amax(1)[:, 1:].float()
        dense = F.cross_entropy(F.pixel_shuffle(maps, FINE).float(), truth)
        return dense + 0.2 * F.binary_cross_entropy_with_logits(self.shown(states[:, 0]).float(), there)

    def read(self, states: Tensor, packed: Packed) -> Tensor:
        """Logits at every place that has an answer's word before it or is one but the last."""
        inner = self.vlm.model
        words = inner.get_input_embeddings()(packed.ids)
        rows = torch.cat([words[:, :1], inner.multi_modal_projector(states[:, 1:]), words[:, 1:]], 1)
        out = inner.language_model(inputs_embeds=rows, attention_mask=packed.mask, position_ids=packed.positions)
        return self.vlm.lm_head(out.last_hidden_state[packed.labels >= 0])


class Packed(NamedTuple):
    """All questions of each scene in one row: `ids (n, 1 + m)` without the image, the rest `(n, PREFIX + m)`."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor


def pack(asked: list[list[scene_questions.Question]]) -> Packed:
    rows = []
    for questions in asked:
        ids, labels, positions, parts = [], [], [], []
        for part, question in enumerate(questions, 1):
            asks, answer = question.text.split(), [*question.answer.split(), EOS]
            ids += [WORD[word] for word in asks + answer]
            labels += [-1] * (len(asks) - 1) + [WORD[word] for word in answer] + [-1]
            positions += range(PREFIX, PREFIX + len(asks + answer))
            parts += [part] * len(asks + answer)
        rows.append((ids, labels, positions, parts))
    longest = max(len(row[0]) for row in rows)
    fill = (0, -1, PREFIX, -1)
    fields = [torch.tensor([row[k] + [fill[k]] * (longest - len(row[k])) for row in rows]) for k in range(4)]
    ids, labels, positions, parts = fields
    parts, labels = F.pad(parts, (PREFIX, 0)), F.pad(labels, (PREFIX, 0), value=-1)
    positions = torch.cat([torch.arange(PREFIX).expand(len(rows), -1), positions], 1)
    seen = (parts[:, :, None] == parts[:, None]) | (parts[:, None] == 0)
    mask = torch.where(seen.tril(), 0.0, torch.finfo(torch.bfloat16).min)[:, None]
    return Packed(F.pad(ids, (1, 0), value=WORD[BOS]), labels, positions, mask)


def warm_start(student: Student, images: Tensor) -> None:
    """The segmenter's first blocks as CLIP's tower, which has a normalisation more, in front of its layers: that one
    starts as the mean scale of what it normalises. All else in the tower takes no notice of a token's mean."""
    taught: Any = scene_segmenter().backbone
    tower = student.vlm.model.vision_tower
    state = taught.state_dict()
    patch = tower.config.patch_size
    places = resample_abs_pos_embed(state["pos_embed"], [SIDE, SIDE], num_prefix_tokens=1)[0]
    places[1:] += state["patch_embed.proj.bias"]
    new = {
        "embeddings.class_embedding": state["cls_token"].flatten(),
        "embeddings.patch_embedding.weight": resample_patch_embed(state["patch_embed.proj.weight"], [patch, patch]),
        "embeddings.position_embedding.weight": places,
    }
    for layer in range(len(tower.encoder.layers)):
        theirs, ours = f"blocks.{layer}.", f"encoder.layers.{layer}."
        pairs = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        for kind in ("weight", "bias"):
            for name, ours_name in (pairs | {"attn.proj": "self_attn.out_proj"}).items():
                new[f"{ours}{ours_name}.{kind}"] = state[f"{theirs}{name}.{kind}"]
            for name, part in zip("qkv", state[f"{theirs}attn.qkv.{kind}"].chunk(3), strict=True):
                new[f"{ours}self_attn.{name}_proj.{kind}"] = part
    tower.load_state_dict(new, strict=False)
    with torch.no_grad():
        embedded = tower.embeddings(scenes.normalise(images))
        nn.init.constant_(tower.pre_layrnorm.weight, embedded.std(-1).mean().item())


def is_matrix(name: str) -> bool:
    return ".layers." in name


def loss_of(student: Student, made: scenes.Scenes, questions: int, seed: int) -> dict[str, Tensor]:
    """The losses of the tower and of the answers; without questions the tower's alone."""
    with torch.autocast("cpu", torch.bfloat16):
        states = student.encode(made.images)
        losses = {"tower": student.dense_loss(states, made)}
        if questions:
            packed = pack(scene_questions.ask_all(made, questions, seed, TRAINED))
            logits = student.read(states, packed)
            losses["answers"] = F.cross_entropy(logits.float(), packed.labels[packed.labels >= 0])
    return losses


@torch.no_grad()
def exact(student: Student, made: scenes.Scenes, questions: int, seed: int) -> dict[str, float]:
    """The share of answers all of whose words are right, of each kind of question and of all."""
    asked = scene_questions.ask_all(made, questions, seed)
    right = defaultdict(list)
    for start in range(0, len(made), 50):
        some = asked[start : start + 50]
        packed = pack(some)
        found = student.read(student.encode(made.images[start : start + 50]), packed).argmax(-1)
        hits = iter((found == packed.labels[packed.labels >= 0]).tolist())
        for question in (question for row in some for question in row):
            words = [next(hits) for _ in range(len(question.answer.split()) + 1)]
            right[question.kind].append(all(words))
    every = [hit for hits in right.values() for hit in hits]
    return {kind: round(sum(hits) / len(hits), 4) for kind, hits in sorted(right.items())} | {
        "all": sum(every) / len(every)
    }


def train(args: argparse.Namespace, photos: dict[str, tuple[Tensor, Tensor]]) -> None:
    torch.manual_seed(0)
    path = args.out / "vlm.pt"
    saved = torch.load(path) if path.exists() else {"epoch": 0, "log": [], "seconds": 0.0}
    held_out = scenes.compose(*photos["val"], args.held_out, seed=0)
    student = Student()
    if "model" in saved:
        student.load_state_dict(saved["model"])
    else:
        warm_start(student, held_out.images)
    opts = optimizers(student, args.lr, is_matrix)
    for opt, state in zip(opts, saved.get("opts", ()), strict=False):
        opt.load_state_dict(state)
    for epoch in range(saved["epoch"], args.epochs):
        began = time.time()
        row: dict[str, Any] = {"epoch": epoch, **run_epoch(args, student, opts, photos["train"], epoch)}
        if epoch >= args.tower_epochs:
            row["exact"] = exact(student.eval(), held_out, 4, 0)
        saved["seconds"] += time.time() - began
        row["seconds"] = round(saved["seconds"])
        saved["log"].append(row)
        saved |= {"epoch": epoch + 1, "model": student.state_dict(), "opts": [opt.state_dict() for opt in opts]}
        torch.save(saved | {"args": {k: str(v) for k, v in vars(args).items()}}, path)
        print(json.dumps(row), flush=True)


def run_epoch(
    args: argparse.Namespace, student: Student, opts: list[Any], photos: tuple[Tensor, Tensor], epoch: int
) -> dict[str, float]:
    student.train()
    totals: dict[str, float] = defaultdict(float)
    steps, alone = args.epoch_size // args.batch_size, epoch < args.tower_epochs
    for step in range(steps):
        seed = 1 + epoch * steps + step
        made = scenes.compose(*photos, args.batch_size, seed)
        losses = loss_of(student, made, 0 if alone else args.questions, seed)
        (losses["tower"] * (1.0 if alone else 0.3) + losses.get("answers", 0.0)).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        done = epoch + step / steps
        begun = done if alone else done - args.tower_epochs
        for opt in opts:
            opt.param_groups[0]["lr"] = args.lr * min(1.0, begun) * (1 - done / args.epochs)
            opt.step()
            opt.zero_grad(set_to_none=True)
        for name, value in losses.items():
            totals[name] += value.item() / steps
    return {name: round(value, 4) for name, value in totals.items()}


def finish(args: argparse.Namespace, folder: Path) -> None:
    """Write the weights in half precision; read them once on scenes of the test photographs."""
    saved = torch.load(args.out / "vlm.pt")
    student = Student()
    student.load_state_dict(saved["model"])
    weights = {name: value.half().contiguous() for name, value in student.vlm.state_dict().items()}
    student.vlm.load_state_dict({name: value.float() for name, value in weights.items()})
    figures = exact(student.eval(), scenes.load(2000, "test", folder, seed=1), 4, 1)
    written = {"test_exact": figures, "log": saved["log"], "args": saved["args"]}
    (args.out / "vlm.json").write_text(json.dumps(written, indent=1))
    save_file(weights, str(args.out / shipped.FILE.name))
    print(f"{figures} on 2,000 test scenes; files in {args.out}")


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = fashion_mnist.find(args.data_dir)
    if args.finish:
        finish(args, folder)
    else:
        train(args, split_photos(folder))


if __name__ == "__main__":
    main()
