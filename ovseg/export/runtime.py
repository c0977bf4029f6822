"""Segment images with an exported model: NumPy, Pillow and ONNX Runtime, without PyTorch and without this package.

``ovseg export --format onnx`` copies this file into its folder::

    python FOLDER/runtime.py FOLDER photo.jpg labels.png

It combines the graphs of systems of proposed masks and crops (OVSeg, SimBaseline, SCAN; masks from elsewhere and
crops), and of the model ``photo``, as ``recipe`` in ``export.json`` says.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

CROPS_AT_A_TIME, CLASSES_AT_A_TIME = 8, 64
UNLABELLED = -1
BILINEAR = Image.Resampling.BILINEAR  # with antialiasing
CUBIC = -0.75  # of the bicubic kernel
EPSILON, TINY = 1e-8, np.finfo(np.float32).tiny


class Runtime:
    """An exported model.

    Args:
        folder: of ``ovseg export --format onnx``.
        threads: of ONNX Runtime; 0 for all cores.

    Raises:
        ValueError: the folder has no recipe that this file can follow.
    """

    def __init__(self, folder: str | Path, threads: int = 0):
        import onnxruntime

        self.about: dict[str, Any] = json.loads(Path(folder, "export.json").read_text(encoding="utf-8"))
        self.recipe, self.input = self.about["recipe"], self.about["input"]
        if self.about["format"] != "onnx" or self.recipe is None:
            raise ValueError(f"{folder} cannot be run by this file: {self.about.get('no_recipe') or 'it is not ONNX'}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = {
            graph["name"]: onnxruntime.InferenceSession(
                str(Path(folder, graph["file"])), options, providers=["CPUExecutionProvider"]
            )
            for graph in self.about["graphs"]
        }
        self.text = np.load(Path(folder, self.about["text"]), allow_pickle=False)
        self.names: list[str] = self.about["words"]["names"]

    def __call__(self, image: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Segment one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            masks: float (Q, H, W), 0 .. 1, for models whose proposer is not exported.

        Returns:
            (H, W) int32, the index of the word in :attr:`names`; -1 for pixels of background words or no word.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"the image is {image.dtype} {image.shape}: give uint8 (height, width, 3) RGB")
        if (masks is None) != ("masks" in self.sessions):
            raise ValueError("this model has a graph of masks" if masks is not None else "this model needs masks")
        pixels = self._resized(image)  # (3, h, w) uint8
        if masks is None:
            probabilities, embeddings = self._propose(pixels)
        else:
            probabilities, embeddings = resize(masks.astype(np.float32), pixels.shape[1:]), None
        tokens = None
        if "calibration" in self.sessions:
            embeddings, tokens = self._calibrate(pixels, embeddings)
        if self.recipe["regions"]:
            clip = self._of_regions(pixels, probabilities)
        else:
            clip = self._of_crops(pixels, probabilities, tokens)
        fused = self._fuse(self._own(embeddings), *clip)
        return self._render(fused, probabilities, image.shape[:2])

    def run(self, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
        """Return the outputs of a graph."""
        return self.sessions[name].run(None, inputs)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        scale = self.input["min_size"] / min(height, width) if self.input["min_size"] > 0 else 1.0
        if self.input["min_size"] > 0 and max(height, width) * scale > self.input["max_size"]:
            scale = self.input["max_size"] / max(height, width)
        if fixed := self.input["size"]:
            scale = min(scale, fixed[0] / height, fixed[1] / width)
        new = [max(1, int(side * scale + 0.5)) for side in (height, width)]
        resized = Image.fromarray(image).resize(new[::-1], BILINEAR)
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))

    def _padded(self, pixels: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
        """Return the normalised image, with zeros at the right and the bottom, (1, 3, H, W)."""
        multiple = self.input["divisibility"]
        size = self.input["size"] or [-(-side // multiple) * multiple for side in pixels.shape[1:]]
        padded = np.zeros((1, 3, *size), np.float32)
        padded[0, :, : pixels.shape[1], : pixels.shape[2]] = normalised(pixels, mean, std)
        return padded

    def _propose(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mask probabilities (Q, h, w) and class embeddings (1, Q, D)."""
        padded = self._padded(pixels, self.input["mean"], self.input["std"])
        logits, embeddings = self.run("masks", image=padded)
        logits = resize(logits[0], padded.shape[2:])[:, : pixels.shape[1], : pixels.shape[2]]
        return 1 / (1 + np.exp(-logits)), embeddings

    def _calibrate(self, pixels: np.ndarray, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        crops = self.recipe["crops"]
        padded = self._padded(pixels, crops["mean"], crops["std"])[0]
        size = (crops["size"], crops["size"])
        rows, columns = nearest(padded.shape[1:], size)
        whole = resize(padded, size) if crops["whole"] == "bilinear" else padded[:, rows, columns]
        return tuple(self.run("calibration", embeddings=embeddings, image=whole[None]))

    def _own(self, embeddings: np.ndarray | None) -> np.ndarray | None:
        """Return the probabilities of words by the class embeddings (Q, K)."""
        own = self.recipe["own"]
        if own is None or embeddings is None:
            return None
        logits = self._of_words(own["scale"] * unit(embeddings[0]) @ self.text.T)
        return softmax(logits[:, :-1]) if own["drop_no_object"] else softmax(logits)[:, :-1]

    def _of_words(self, logits: np.ndarray) -> np.ndarray:
        """Return the best logit of the texts of each word, "no object" last, (n, S + 1) -> (n, K + 1)."""
        best = np.full((len(logits), self.about["words"]["count"] + 1), -np.inf, np.float32)
        for column, word in enumerate([*self.about["words"]["of_texts"], self.about["words"]["count"]]):
            best[:, word] = np.maximum(best[:, word], logits[:, column])
        return best

    def _of_crops(
        self, pixels: np.ndarray, probabilities: np.ndarray, tokens: np.ndarray | None
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Return the probabilities of words by CLIP (V, K), and which masks have a pixel, (Q,)."""
        crops = self.recipe["crops"]
        if crops is None:
            return None, np.ones(len(probabilities), bool)
        seen = probabilities.max((1, 2)) > crops["threshold"]
        shares = probabilities[seen]
        binary = shares > crops["threshold"]
        boxes = [box_of(mask, crops["expand"]) for mask in binary]
        if not crops["masked"]:
            shares = np.ones_like(shares)
        elif not crops["matting"]:
            shares = binary.astype(np.float32)
        size, background = (
            crops["size"],
            normalised(np.array(crops["fill"])[:, None, None], crops["mean"], crops["std"]),
        )
        image = normalised(pixels, crops["mean"], crops["std"]) - background
        cut = [
            (share[top:bottom, left:right], image[:, top:bottom, left:right])
            for share, (left, top, right, bottom) in zip(shares, boxes, strict=True)
        ]
        of_masks = np.stack([share[nearest(share.shape, (size, size))] for share, _ in cut])[:, None] if cut else None
        inputs: dict[str, np.ndarray] = {}
        if tokens is not None and cut:
            inputs["drawn"] = self._draw(pixels, of_masks[:, 0])
            inputs["class_tokens"] = np.repeat(tokens[None], len(cut), 0)
        elif crops["prompts"] and cut:
            inputs["masks"] = of_masks
        features = [np.zeros((0, self.text.shape[1]), np.float32)]
        for start in range(0, len(cut), CROPS_AT_A_TIME):
            few = slice(start, start + CROPS_AT_A_TIME)
            regions = [resize(region * share, (size, size), crops["interpolation"]) for share, region in cut[few]]
            given = {name: rows[few] for name, rows in inputs.items()}
            features += self.run("crops", crops=np.stack(regions) + background, **given)
        logits = self._of_words(crops["scale"] * np.concatenate(features) @ self.text.T)
        return softmax(logits[:, :-1]), seen

    def _of_regions(self, pixels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what :meth:`_of_crops` does, by the trained function of regions."""
        regions, fixed = self.recipe["regions"], self.input["size"]
        if fixed and pixels.shape[1:] != tuple(fixed):
            raise ValueError(f"the image becomes {pixels.shape[1:]} pixels, and the graphs are for {tuple(fixed)}")
        seen = probabilities.max((1, 2)) > regions["threshold"]
        shape = next(graph for graph in self.about["graphs"] if graph["name"] == "maps")["inputs"]["image"]["shape"]
        resized = [Image.fromarray(row.astype(np.float32)).resize(shape[:1:-1], BILINEAR) for row in pixels]
        image = normalised(np.stack([np.asarray(row) for row in resized]), regions["mean"], regions["std"])
        names = [output.name for output in self.sessions["maps"].get_outputs()]
        maps = dict(zip(names, self.run("maps", image=image[None]), strict=True))
        masks = (probabilities[seen] > regions["threshold"]).astype(np.float32)
        logits = self.run("regions", masks=masks, text=self.text[:-1], **maps)[0]
        for column, text in enumerate(self.about["words"]["texts"]):
            if text in regions["others"]:
                logits[:, column] = regions["others_logit"]
        return softmax(self._of_words(np.pad(logits, ((0, 0), (0, 1))))[:, :-1]), seen

    def _draw(self, pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Return the background patches that take the class token of the whole image, bool (V, blocks, P)."""
        context, patch = self.recipe["crops"]["context"], self.recipe["crops"]["patch"]
        grid = masks.shape[1] // patch
        foreground = masks.reshape(-1, grid, patch, grid, patch).max((2, 4)).reshape(len(masks), -1) > 0
        source = random.Random(f"{context['seed']} {hashlib.sha256(pixels.tobytes()).hexdigest()}")
        drawn = np.zeros((len(masks), context["blocks"], foreground.shape[1]), bool)
        for block in range(context["blocks"]):
            for row, of_mask in zip(drawn[:, block], foreground, strict=True):
                places = np.flatnonzero(~of_mask)
                row[places[source.sample(range(len(places)), int(context["ratio"] * len(places)))]] = True
        return drawn

    def _fuse(self, own: np.ndarray | None, clip: np.ndarray | None, seen: np.ndarray) -> np.ndarray:
        """Return the scores of words for masks (Q, K)."""
        if clip is None:
            return own
        others = {fill: np.full((len(seen), clip.shape[1]), fill, np.float32) for fill in (0, 1)}
        for filled in others.values():
            filled[seen] = clip
        fusion = self.recipe["fusion"]
        if own is None or fusion["weight"] <= 0:
            return others[0]
        if fusion["void"]:
            objects = own.sum(1, keepdims=True)
            less = np.maximum(1 - objects, 0) * (1 - fusion["void"] * others[0].max(1, keepdims=True))
            own = own * np.where(objects > 0, (1 - less) / np.maximum(objects, TINY), 1)
        fused = own ** (1 - fusion["weight"]) * others[1] ** fusion["weight"]
        if not fusion["normalised"]:
            return fused
        objects = own.sum(1, keepdims=True)
        fused = fused / np.maximum(fused.sum(1, keepdims=True), TINY) * objects + EPSILON
        return fused / (fused.sum(1, keepdims=True) + (1 - objects) + EPSILON)

    def _render(self, scores: np.ndarray, masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return the best word of each pixel (H, W)."""
        rendering = self.recipe["rendering"]
        if rendering["name"] == "class_winner":
            threshold, seen = rendering["threshold"], masks.max((1, 2)) > rendering["threshold"]
            scores, masks = scores[seen], (masks[seen] > threshold).astype(np.float32)
            words = self.about["words"]
            against_others = words["count"] == 2 and words["texts"][-1] == "others"  # which selects no mask
            selecting = scores[:, :-1] if against_others else scores
            kept = np.zeros(len(scores), bool)
            if len(scores) and rendering["granularity"] < 1:
                kept = (selecting > rendering["granularity"] * selecting.max(0)).any(1)
            elif len(scores):
                kept[selecting.argmax(0)] = True
            scores = scores * kept[:, None]
        total = None
        if rendering["name"] == "area_weighted_sum":
            weights = np.maximum(masks.mean((1, 2)), 1e-6)[:, None] ** -min(0.5, 5 / scores.shape[1])
            scores, total = scores * weights, np.maximum(resize(np.tensordot(weights.T, masks, 1), size)[0], 1e-6)
        best, labels = np.full(size, -np.inf, np.float32), np.zeros(size, np.int32)
        for start in range(0, scores.shape[1], CLASSES_AT_A_TIME):
            few = scores[:, start : start + CLASSES_AT_A_TIME]
            maps = resize(np.tensordot(few.T, masks, 1).astype(np.float32), size)
            labels = np.where(maps.max(0) > best, maps.argmax(0).astype(np.int32) + start, labels)
            best = np.maximum(best, maps.max(0))
        best = best if total is None else best / total
        unlabelled = (best == 0) | (labels >= len(self.names))
        if (limit := rendering["min_score"]) is not None:
            unlabelled |= best < limit
        return np.where(unlabelled, np.int32(UNLABELLED), labels)


def normalised(pixels: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    """Return (3, H, W), 0 .. 255, minus the mean, divided by the deviation; float32."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
    return (pixels.astype(np.float32) - mean) / std


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (n, D) of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True)) if logits.size else logits
    return powers / powers.sum(-1, keepdims=True)


def box_of(mask: np.ndarray, ratio: float) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom, exclusive, of the box of a mask, scaled about its centre."""
    ends = []
    for occupied in (mask.any(0), mask.any(1)):
        places, limit = np.flatnonzero(occupied), len(occupied)
        low, high = float(places[0]), float(places[-1] + 1)
        centre, half = (low + high) / 2, (high - low) * ratio / 2
        first = min(max(int(centre - half), 0), limit - 1)
        ends.append((first, max(min(int(centre + half), limit), first + 1)))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def nearest(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns that PyTorch's nearest neighbour takes."""
    rows, columns = (
        np.minimum((np.arange(n, dtype=np.float32) * (np.float32(o) / np.float32(n))).astype(np.int64), o - 1)
        for o, n in zip(old, new, strict=True)
    )
    return rows[:, None], columns


def resize(maps: np.ndarray, size: tuple[int, int], mode: str = "bilinear") -> np.ndarray:
    """Resize (n, h, w) as PyTorch does, without antialiasing and with ``align_corners=False``."""
    for axis, length in zip((1, 2), size, strict=True):
        if (old := maps.shape[axis]) == length:
            continue
        source = (np.arange(length) + 0.5) * (old / length) - 0.5
        if mode == "bilinear":
            source = np.maximum(source, 0)
        first = np.floor(source)
        part, places, shape = source - first, first.astype(np.int64), [1, 1, 1]
        shape[axis] = length
        taps = ((0, 1 - part), (1, part)) if mode == "bilinear" else zip((-1, 0, 1, 2), cubic(part), strict=True)
        maps = sum(
            np.take(maps, np.clip(places + offset, 0, old - 1), axis) * weight.astype(np.float32).reshape(shape)
            for offset, weight in taps
        )
    return maps


def cubic(part: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the weights of four neighbours at a distance ``part`` behind the second."""
    inner = [((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1 for x in (part, 1 - part)]
    outer = [((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC for x in (part + 1, 2 - part)]
    return outer[0], inner[0], inner[1], outer[1]


def main(folder: str, source: str, target: str) -> None:
    """Write the labels of an image, plus 1, as an 8-bit or 16-bit PNG file; 0 is unlabelled."""
    runtime = Runtime(folder)
    labels = runtime(np.asarray(ImageOps.exif_transpose(Image.open(source)).convert("RGB")))
    Image.fromarray((labels + 1).astype(np.uint8 if len(runtime.names) < 255 else np.uint16)).save(target)
    for index, name in enumerate(runtime.names):
        if (share := (labels == index).mean()) > 0:
            print(f"{name} {share:.1%}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python runtime.py FOLDER IMAGE LABELS.png")
    main(*sys.argv[1:])
