"""What is called otherwise elsewhere: hints from the names of papers and of other projects."""

import difflib
import re
from collections.abc import Sequence

OTHER_NAMES = {
    # samplers
    "ddim": ("euler", "diffusers"), "ddpm": ("euler", "diffusers", "song_unet", "iddpm"),
    "heun2": ("heun",), "edm": ("heun", "karras", "song_unet"), "rk2": ("midpoint",),
    "rk": ("rk4",), "rk45": ("dopri5",), "rungekutta": ("rk4",), "dpm": ("dpmpp_2m",),
    "dpmpp": ("dpmpp_2m",), "dpmsolver": ("dpmpp_2m",), "dpmsolver++": ("dpmpp_2m",),
    "dpm++": ("dpmpp_2m",), "dpm++2m": ("dpmpp_2m",), "dopri": ("dopri5",), "ode45": ("dopri5",),
    "plms": ("dpmpp_2m",), "pndm": ("dpmpp_2m",), "unipc": ("dpmpp_2m",), "deis": ("dpmpp_2m",),
    # networks, models, importers
    "ddpm++": ("song_unet",), "ddpmpp": ("song_unet",), "ncsnpp": ("song_unet",),
    "ncsn++": ("song_unet",), "songunet": ("song_unet",), "adm": ("dhariwal_unet",),
    "dit": ("transformer",), "vit": ("transformer", "dinov2"), "edm2": ("edm2_unet",),
    "unet2d": ("diffusers_unet",), "unet2dmodel": ("diffusers_unet",), "linear": ("dense",),
    "flow": ("flow_matching",), "fm": ("flow_matching",), "cfm": ("flow_matching", "torchcfm"),
    "rectifiedflow": ("rectified_flow", "flow_matching"), "meanflow": ("mean_flow",),
    "diffusion": ("denoiser", "diffusers"),
    "pickle": ("edm",), "pkl": ("edm",), "pt": ("state_dict",), "safetensors": ("state_dict",),
    "huggingface": ("diffusers",), "hf": ("diffusers",), "hub": ("diffusers",),
    "trained": ("train",), "diagonal": ("factorised",), "koopman": ("dense",),
    # data
    "cifar": ("cifar10",), "cifar100": ("npz", "folder"), "mnist": ("idx", "npz"),
    "fashion": ("idx",), "images": ("folder",), "imagefolder": ("folder",), "png": ("folder",),
    "numpy": ("npz",),
    "npy": ("npz",), "zip": ("edm_zip",), "checker": ("checkerboard",),
    "empirical": ("data",), "natural": ("data",), "balanced": ("uniform",), "equal": ("uniform",),
    # extractors, distances
    "fid": ("inception",), "kid": ("inception",), "is": ("inception",),
    "inceptionv3": ("inception",), "vgg": ("vgg16",), "vgg16": ("vgg",), "dino": ("dinov2",),
    "alexnet": ("alex",), "alex": ("alexnet",), "convolutions": ("paper",), "conv": ("paper",),
    "dcgan": ("paper",), "projected": ("features",), "logistic": ("bce",),
    "nonsaturating": ("bce",), "softplus": ("bce",), "ns": ("bce",), "rpgan": ("relativistic",),
    "diffaugment": ("colour", "translation", "cutout"), "color": ("colour",),
    "fddinov2": ("dinov2",), "l2": ("mse",), "mae": ("l1",),
    "huber": ("pseudo_huber",), "perceptual": ("lpips",),
    # numbers and training
    "float32": ("fp32", "float32"), "fp32": ("float32",), "float": ("fp32", "float32"),
    "32": ("fp32",), "bfloat16": ("bf16",), "float16": ("bf16",), "fp16": ("bf16", "float16"),
    "16": ("bf16", "float16"), "half": ("bf16", "float16"), "amp": ("bf16",), "mixed": ("bf16",),
    "int8": ("uint8",), "byte": ("uint8",), "sgd": ("adam",), "radam": ("adam",),
    "cos": ("cosine",), "cosineannealing": ("cosine",), "none": ("constant", "off", "none"),
    "const": ("constant",), "true": ("on",), "false": ("off",), "eps": ("epsilon",),
    "v": ("v_prediction",), "x0": ("sample",), "cfg": ("classifier_free",),
    "cond": ("classifier_free",),
    # devices
    "gpu": ("cuda",), "nvidia": ("cuda",), "metal": ("mps",), "apple": ("mps",),
    "rocm": ("cuda",), "amd": ("cuda",),
}
"""By a name without case, spaces and dashes: what may be meant, the likeliest first."""


def hint(name: object, allowed: Sequence[str]) -> str:
    """What of `allowed` was probably meant by a name that is none of them; empty if nothing is."""
    word = re.sub(r"[\s_-]", "", str(name).lower())
    known = next((one for one in OTHER_NAMES.get(word, ()) if one in allowed), None)
    same = {re.sub(r"[\s_-]", "", one.lower()): one for one in allowed}
    near = difflib.get_close_matches(word, list(same), n=1)
    meant = same.get(word) or known or (same[near[0]] if near else None)
    return "" if meant is None else f"did you mean {meant}?"
