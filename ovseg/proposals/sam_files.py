"""Reading of Segment Anything: folders of transformers, the Hugging Face hub, and files of the original repository."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.checkpoint.state_dicts import read_state_dict
from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import expand_user, file_digest

logger = logging.getLogger(__name__)

KEY = "MODEL.PROPOSER.SAM.MODEL"

# network and image processor of transformers, by the kind in a folder's config.json
KINDS = {
    "sam": ("SamModel", "SamImageProcessor"),
    "sam2": ("Sam2Model", "Sam2ImageProcessor"),
    "sam2_video": ("Sam2Model", "Sam2ImageProcessor"),
    "sam3_tracker": ("Sam3TrackerModel", "Sam3ImageProcessor"),
    "sam3_video": ("Sam3TrackerModel", "Sam3ImageProcessor"),
}
# names of the point decoder in a whole SAM 3 (facebook/sam3), as regular expressions, and alone
SAM3 = {
    r"^detector_model\.vision_encoder\.backbone\.": "vision_encoder.backbone.",
    r"^tracker_neck\.": "vision_encoder.neck.",
    r"^tracker_model\.(.+)": r"\1",
}
FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")
WANTED = "give the folder of a SAM, SAM 2 or SAM 3 (facebook/sam-vit-large, say) with config.json and model.safetensors"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load_sam(model: str) -> tuple[nn.Module, Any]:
    """Read Segment Anything, and log the sha256 of its weights.

    Args:
        model: a folder with ``config.json`` and safetensors; a name on the Hugging Face hub, such as
            facebook/sam-vit-large, facebook/sam2.1-hiera-large or facebook/sam3; or a weight file of the original
            repository segment_anything, such as sam_vit_l_0b3195.pth.

    Returns:
        The network, float32 on the CPU, and its image processor.

    Raises:
        OvsegError: there is no such file, the hub cannot be reached, or the files are damaged, incomplete or of another
            kind of model.
    """
    path = expand_user(model) if model else None
    with torch.device("cpu"):  # not on the meta device, where a model may be built: these weights are constants
        if path is not None and path.is_file():
            if not (path.parent / "config.json").is_file():
                return _from_original(path)
            path = path.parent
        if path is not None and path.is_dir():
            return _from_folder(path)
        return _from_folder(_fetched(model))


def _from_folder(folder: Path) -> tuple[nn.Module, Any]:
    transformers, kind = _transformers(), _kind(folder)
    network, processor = (getattr(transformers, name) for name in KINDS[kind])
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise OvsegError(f"{folder} has no weights, *.safetensors: {WANTED}")
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        settings = {"config": config, "use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
        if kind == "sam3_video":
            settings["key_mapping"] = SAM3
        with _no_progress_bar(transformers):
            loaded, about = network.from_pretrained(folder, **settings)
    except Exception as error:  # transformers, safetensors and PyTorch each raise their own kinds
        raise OvsegError(f"{folder} cannot be read as a model of {kind} ({reason_of(error)}): {WANTED}") from error
    if absent := sorted(about["missing_keys"]):
        raise OvsegError(f"{folder} lacks {len(absent)} tensors, such as {absent[0]}: download it again")
    for file in weights:
        logger.info("Segment Anything (%s): %s, sha256 %s", kind, file, file_digest(file))
    return loaded, _processor(processor, loaded, folder if (folder / FILES[1]).is_file() else None)


def _processor(kind: type, network: nn.Module, folder: Path | None = None) -> Any:
    """Return the image processor, of the network's input size, with the other settings of a folder."""
    side = network.config.prompt_encoder_config.image_size
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    square = {"height": height, "width": width}
    sizes = {"size": {"longest_edge": side}, "pad_size": square} if kind.do_pad else {"size": square}
    try:
        return kind.from_pretrained(folder, **sizes) if folder else kind(**sizes)
    except (OSError, ValueError, TypeError) as error:
        raise OvsegError(f"{folder / FILES[1]} cannot be read ({reason_of(error)}): remove or replace it") from error


def _kind(folder: Path) -> str:
    file = folder / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content.get("model_type")
    except FileNotFoundError as error:
        raise OvsegError(f"{folder} has no config.json: {WANTED}") from error
    except (OSError, ValueError, AttributeError) as error:
        raise OvsegError(f"{file} cannot be read ({reason_of(error)}): {WANTED}") from error
    if kind not in KINDS:
        raise OvsegError(
            f"{folder} is a model of the kind {kind!r}, not Segment Anything ({', '.join(KINDS)}): {WANTED}"
        )
    return kind


def _fetched(name: str) -> Path:
    """Return the folder with the files of a name on the hub, from its cache or downloaded."""
    if not HUB_NAME.fullmatch(name):
        raise OvsegError(f"{KEY} is {name!r}, and there is no such file or folder: {WANTED}")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client, the network and the disk each raise their own kinds
        raise OvsegError(
            f"{KEY} is {name}, which is no folder here and cannot be fetched from the Hugging Face hub "
            f"({reason_of(error)}): on a machine with network, run `hf download {name} --local-dir sam`, copy the "
            "folder here and give it"
        ) from error


@contextlib.contextmanager
def _no_progress_bar(transformers: Any) -> Iterator[None]:
    """Let transformers load weights without a progress bar."""
    was_enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers.utils.logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise OvsegError(
            "the proposer SAM needs the package transformers: `pip install 'ovseg[sam]'` (INSTALL.md)"
        ) from error
    return transformers


def _from_original(file: Path) -> tuple[nn.Module, Any]:
    """Read a weight file of the repository segment_anything, whose sizes follow from the shapes of its tensors."""
    transformers, state = _transformers(), read_state_dict(file)
    if "image_encoder.patch_embed.proj.weight" not in state or "mask_decoder.iou_token.weight" not in state:
        raise OvsegError(
            f"{file} is not a weight file of segment_anything: give one such as sam_vit_l_0b3195.pth, or the folder of "
            "another SAM, with its config.json"
        )
    try:
        with torch.device("meta"):
            network = transformers.SamModel(transformers.SamConfig(**original_sizes(state)))
        renamed = {new_name(name): tensor.float() for name, tensor in state.items()}
        shared = "shared_image_embedding.positional_embedding"
        renamed[f"prompt_encoder.{shared.replace('_image', '')}"] = renamed[shared]
        network.load_state_dict(renamed, assign=True)
    except (RuntimeError, KeyError, ValueError) as error:
        raise OvsegError(f"{file} is not a complete SAM ({reason_of(error)}): download it again") from error
    logger.info("Segment Anything (original file): %s, sha256 %s", file, file_digest(file))
    return network, _processor(transformers.SamImageProcessor, network)


# parts of names in the original file, as regular expressions, and in transformers
_NAMES = (
    (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", "shared_image_embedding.positional_embedding"),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.2\.", r"\1.proj_out."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
)


def new_name(name: str) -> str:
    """Return the name in transformers of a tensor of segment_anything."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def original_sizes(state: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Return the arguments of ``SamConfig`` for the tensors of a file of segment_anything."""
    encoder, decoder = "image_encoder.", "mask_decoder."
    _, grid, _, width = state[f"{encoder}pos_embed"].shape
    patch = state[f"{encoder}patch_embed.proj.weight"].shape[2]
    blocks = _count(state, f"{encoder}blocks.")
    tables = [state[f"{encoder}blocks.{block}.attn.rel_pos_h"].shape for block in range(blocks)]
    of_windows = [(rows + 1) // 2 for rows, _ in tables if rows != 2 * grid - 1]
    hidden = state[f"{encoder}neck.0.weight"].shape[0]
    inner = state[f"{decoder}transformer.layers.0.cross_attn_token_to_image.q_proj.weight"].shape[0]
    sizes = {"image_size": grid * patch, "patch_size": patch}
    return {
        "vision_config": {
            **sizes,
            "hidden_size": width,
            "num_hidden_layers": blocks,
            "num_attention_heads": width // tables[0][1],
            "mlp_dim": state[f"{encoder}blocks.0.mlp.lin1.weight"].shape[0],
            "output_channels": hidden,
            "window_size": of_windows[0] if of_windows else grid,
            "global_attn_indexes": [block for block, (rows, _) in enumerate(tables) if rows == 2 * grid - 1],
            "num_pos_feats": state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"].shape[1],
        },
        "prompt_encoder_config": {
            **sizes,
            "hidden_size": hidden,
            "mask_input_channels": state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        },
        "mask_decoder_config": {
            "hidden_size": hidden,
            "mlp_dim": state[f"{decoder}transformer.layers.0.mlp.lin1.weight"].shape[0],
            "num_hidden_layers": _count(state, f"{decoder}transformer.layers."),
            "num_multimask_outputs": state[f"{decoder}mask_tokens.weight"].shape[0] - 1,
            "attention_downsample_rate": hidden // inner,
            "iou_head_hidden_dim": state[f"{decoder}iou_prediction_head.layers.0.weight"].shape[0],
        },
    }


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of modules of a list, whose names have this prefix and a number."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})
