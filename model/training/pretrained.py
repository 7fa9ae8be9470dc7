"""Pretrained towers in open_clip's format: their configuration, preprocessing and tokenizer, and where the weights are.

What may be named: a tag of open_clip's for a backbone (`openai` for `ViT-B-32`), `hf-hub:ORG/NAME`, `local-dir:FOLDER`
or a file of weights. All that a checkpoint needs to be served is read here, once: serving needs no hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
from open_clip.pretrained import download_pretrained_from_hf

from model.config import CLIP_MEAN, CLIP_STD, PreprocessConfig, TokenizerConfig
from model.errors import ConfigError
from model.inputs.cleaning import CLEANING
from model.inputs.tokenizer import read_definition
from model.network.towers import BACKBONES, backbone_config, check_towers

HUB, FOLDER = "hf-hub:", "local-dir:"

CONFIG = "open_clip_config.json"

TOKENIZER, TOKENIZER_SETTINGS = "tokenizer.json", ("special_tokens_map.json", "tokenizer_config.json")

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
"""The names of weights in a folder, the first that is there; else the only file of their kind is taken."""

Files = Callable[[str], Path | None]
"""Returns the file of a name that a tokenizer brings along, or None where it has no such file."""


@dataclass(frozen=True, kw_only=True)
class PretrainedTowers:
    """What is known of pretrained towers before their weights are read."""

    name: str
    """What a checkpoint says of its backbone."""
    backbone: Mapping[str, Any]
    """An open_clip configuration, with the activation that the weights were trained with."""
    preprocess: PreprocessConfig


def read_pretrained(backbone: str | None, initial: str) -> PretrainedTowers:
    """Read the configuration of the towers that `initial` names; tags and files are of the open_clip model `backbone`.

    Images are shown whole, resized and normalised as in the towers' own training. A file of weights says nothing of
    its preprocessing: it is that of the backbone's tags where all agree, else CLIP's.
    Raises `ConfigError` for a name that is not known, files that cannot be had, and towers that are not supported.
    """
    if initial.startswith((HUB, FOLDER)):
        if backbone is not None:
            raise ConfigError(f"{initial} says itself what its backbone is; leave {backbone} out")
        content = _read_json(_config_file(initial))
        if not isinstance(content.get("model_cfg"), dict):
            raise ConfigError(f"{CONFIG} of {initial} has no model_cfg")
        config, resizing = content["model_cfg"], content.get("preprocess_cfg") or {}
        name = initial.removeprefix(HUB) if initial.startswith(HUB) else _folder(initial).resolve().name
    else:
        name, (config, resizing) = backbone or "", built_in(backbone, initial)
    config.setdefault("vision_cfg", {}).pop("timm_model_pretrained", None)
    check_towers(config)
    return PretrainedTowers(
        name=name,
        backbone={key: value for key, value in config.items() if key != "custom_text"},
        preprocess=preprocessing(
            config, resizing, _own_tokenizer(config["text_cfg"], _tokenizer_files(initial, config))
        ),
    )


def pretrained_weights(backbone: str, initial: str) -> Path:
    """Return the file of weights that `initial` names, downloaded where it is not here yet.

    `backbone` is the name of the open_clip model. Raises `ConfigError` where there is none.
    """
    if initial.startswith(FOLDER):
        return _weights_in(_folder(initial))
    if Path(initial).is_file():
        return Path(initial)
    try:
        if initial.startswith(HUB):
            return Path(download_pretrained_from_hf(initial.removeprefix(HUB)))
        return Path(open_clip.download_pretrained(_tag(backbone, initial)))
    except ConfigError:
        raise
    except Exception as error:  # whatever goes wrong on the way to a hub
        instead = f"a folder with the repository's files by {FOLDER}FOLDER"
        if not initial.startswith(HUB):
            tag = _tag(backbone, initial)
            whence = tag.get("hf_hub", "").rstrip("/") or tag.get("url", "")
            instead = f"the file of weights by its path (they are those of {whence})"
        raise ConfigError(_not_downloaded(f"the weights of {initial}", error, instead)) from error


@dataclass(frozen=True, kw_only=True)
class BackboneFacts:
    """One of open_clip's model configurations. `refused`: why it is not supported; None where it is."""

    name: str
    image_size: tuple[int, int]
    context_length: int
    tokenizer: str
    tags: tuple[str, ...]
    refused: str | None


def list_backbones() -> list[BackboneFacts]:
    """Return what is known of each configuration that open_clip ships; nothing is built, and no hub asked."""
    return [_facts(name) for name in open_clip.list_models()]


def _facts(name: str) -> BackboneFacts:
    config, refused = backbone_config(name), None
    try:
        check_towers(config)
    except ConfigError as error:
        refused = str(error)
    text, preprocess = config["text_cfg"], preprocessing(config, {}, None)
    return BackboneFacts(
        name=name,
        image_size=preprocess.image_size,
        context_length=preprocess.context_length,
        tokenizer=text.get("hf_tokenizer_name") or "CLIP",
        tags=tuple(open_clip.list_pretrained_tags_by_model(name)),
        refused=refused,
    )


def built_in(backbone: str | None, initial: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the configuration of an open_clip model and the preprocessing of its weights, a tag's or a file's."""
    if backbone is None or backbone in BACKBONES:
        raise ConfigError(_which_backbone(initial))
    config = backbone_config(backbone)
    if not Path(initial).is_file():
        tag = _tag(backbone, initial)
        return config | {"quick_gelu": bool(tag.get("quick_gelu"))}, tag
    tags = [open_clip.get_pretrained_cfg(backbone, tag) for tag in open_clip.list_pretrained_tags_by_model(backbone)]
    kinds = {json.dumps([tag.get(key) for key in _RESIZING]): tag for tag in tags}
    return config, next(iter(kinds.values())) if len(kinds) == 1 else {}


_RESIZING = ("mean", "std", "interpolation", "resize_mode", "fill_color")
"""What open_clip says of preprocessing, besides the image's size."""


def _tag(backbone: str, tag: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = open_clip.get_pretrained_cfg(backbone, tag)
    if not found:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(backbone)) or "none"
        raise ConfigError(f"{tag!r} is neither a file nor a pretrained tag of {backbone} (tags: {tags})")
    return found


def _which_backbone(initial: str) -> str:
    models = open_clip.list_pretrained_models_by_tag(initial)
    if not models and not Path(initial).is_file():
        return (
            f"{initial!r} is neither a checkpoint folder, nor a file of weights, nor a pretrained tag of open_clip's; "
            f"others are named {HUB}ORG/NAME or {FOLDER}FOLDER"
        )
    known = ", ".join(models) or "ViT-B-32, ViT-B-16 and others (--list-backbones)"
    return f"{initial} needs the name of its open_clip model as the backbone: {known}"


# --- files -------------------------------------------------------------------------------------------------


def _folder(initial: str) -> Path:
    folder = Path(initial.removeprefix(FOLDER))
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}")
    return folder


def _config_file(initial: str) -> Path:
    if initial.startswith(FOLDER):
        return _folder(initial) / CONFIG
    return _from_hub(initial.removeprefix(HUB), CONFIG)


def _from_hub(repository: str, file: str) -> Path:
    try:
        return Path(download_pretrained_from_hf(repository, filename=file))
    except Exception as error:  # whatever goes wrong on the way to a hub
        instead = f"a folder with the repository's files by {FOLDER}FOLDER"
        raise ConfigError(_not_downloaded(f"{file} of {repository}", error, instead)) from error


def _not_downloaded(what: str, error: Exception, instead: str) -> str:
    """Say in one sentence that something can't be downloaded, and what to do instead."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
    return (
        f"{what} cannot be downloaded ({reason}); where there is no network, bring it here from where there is one, "
        f"and name {instead}"
    )


def _tokenizer_files(initial: str, config: Mapping[str, Any]) -> Files:
    """Return where a tokenizer's files are: in the folder, or in the repository that the configuration names."""
    if initial.startswith(FOLDER):
        folder = _folder(initial)
        return lambda file: folder / file if (folder / file).is_file() else None
    repository = str(config["text_cfg"].get("hf_tokenizer_name"))

    def find(file: str) -> Path | None:
        try:
            return _from_hub(repository, file)
        except ConfigError:
            if file == TOKENIZER:
                raise
            return None

    return find


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold an object")
    return content


def _weights_in(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in {".safetensors", ".bin", ".pt", ".pth"})
    if len(found) != 1:
        raise ConfigError(f"{folder} holds {len(found)} files of weights; call the one to use {WEIGHTS[0]}")
    return found[0]


# --- what they say -----------------------------------------------------------------------------------------


RESIZE_MODES: Mapping[str, Literal["longest", "shortest", "squash"]] = {
    "longest": "longest",
    "shortest": "shortest",
    "squash": "squash",
}

INTERPOLATIONS: Mapping[str, Literal["bicubic", "bilinear"]] = {
    "bicubic": "bicubic",
    "bilinear": "bilinear",
    "random": "bicubic",  # in training alone
}


def preprocessing(
    config: Mapping[str, Any], resizing: Mapping[str, Any], tokenizer: TokenizerConfig | None
) -> PreprocessConfig:
    """Return what open_clip does with images for a model, `resizing` being its `preprocess_cfg`, or a tag's.

    Raises `ConfigError` for a way of resizing that is not known.
    """
    size = config["vision_cfg"].get("image_size", 224)
    try:
        resize = RESIZE_MODES[resizing.get("resize_mode") or "shortest"]
        interpolation = INTERPOLATIONS[resizing.get("interpolation") or "bicubic"]
    except KeyError as error:
        raise ConfigError(f"images that are resized by {error} are not supported") from None
    return PreprocessConfig(
        image_size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
        context_length=config["text_cfg"].get("context_length", 77),
        resize=resize,
        # What else is padded has no colour of its own: parts that an explanation covers are white, as most grounds are.
        fill=int(resizing.get("fill_color") or 0) if resize == "longest" else 255,
        interpolation=interpolation,
        mean=_channels(resizing.get("mean") or CLIP_MEAN),
        std=_channels(resizing.get("std") or CLIP_STD),
        tokenizer=tokenizer,
    )


def _channels(value: Any) -> tuple[float, float, float]:
    red, green, blue = [value] * 3 if isinstance(value, int | float) else value
    return float(red), float(green), float(blue)


def _own_tokenizer(text: Mapping[str, Any], files: Files) -> TokenizerConfig | None:
    """Return the tokenizer that a text tower's configuration names; None for CLIP's own.

    Its end is what it adds to an empty title, and its padding what its settings call so, as Hugging Face's reader has
    it.
    """
    name, options = text.get("hf_tokenizer_name"), dict(text.get("tokenizer_kwargs") or {})
    clean, strip_end = options.pop("clean", "whitespace" if name else "lower"), options.pop("strip_sep_token", False)
    like_clip = clean == "lower" and not strip_end
    if options or text.get("tokenizer_mode") or clean not in CLEANING or not (name or like_clip):
        raise ConfigError(f"titles that are tokenized as {json.dumps(text, default=str)} says are not supported")
    if not name:
        return None
    definition = files(TOKENIZER)
    if definition is None:
        raise ConfigError(
            f"there is no {TOKENIZER} of {name}; transformers writes one: "
            f"AutoTokenizer.from_pretrained({str(name)!r}).save_pretrained(FOLDER)"
        )
    settings: dict[str, Any] = {}
    for path in map(files, TOKENIZER_SETTINGS):
        settings |= _read_json(path) if path else {}
    tokenizer = read_definition(definition.read_text(encoding="utf-8"))
    _add_ends(tokenizer, settings)
    ends, padding = tokenizer.encode("").ids, _token(tokenizer, settings, "pad_token")
    if not ends or padding is None:
        raise ConfigError(f"the tokenizer {name} has no token that {'pads titles' if ends else 'ends a title'}")
    largest = max(tokenizer.get_vocab(with_added_tokens=False).values())
    if largest >= text.get("vocab_size", 49408):
        raise ConfigError(f"the tokenizer {name} has tokens up to {largest}, and its text tower fewer embeddings")
    return TokenizerConfig(
        definition=tokenizer.to_str(), clean=clean, end=0 if strip_end else ends[-1], padding=padding
    )


def _add_ends(tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Let a tokenizer add what its settings say, as Gemma's and Llama's do; most say it in their definition alone."""
    if "add_eos_token" not in settings:
        return
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415 - optional, and read by now

    kinds = [kind for kind in ("bos_token", "eos_token") if settings.get(f"add_{kind}")]
    tokens = {kind: _text(settings.get(kind)) for kind in kinds}
    template = [tokens.get("bos_token"), "$A", tokens.get("eos_token")]
    tokenizer.post_processor = TemplateProcessing(
        single=[part for part in template if part],
        special_tokens=[(each, tokenizer.token_to_id(each)) for each in tokens.values() if each],
    )


def _token(tokenizer: Any, settings: Mapping[str, Any], kind: str) -> int | None:
    text = _text(settings.get(kind))
    found: int | None = None if text is None else tokenizer.token_to_id(text)
    return found


def _text(token: Any) -> str | None:
    """Return a token's text: settings have it as such, or inside an object."""
    return token.get("content") if isinstance(token, dict) else token
