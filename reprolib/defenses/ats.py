"""Automatic transformation search: the client trains on transformed images. Gao et al., CVPR 2021."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from reprolib.defenses.base import Defense
from reprolib.federated import client
from reprolib.federated.observation import by_trial

LIBRARY: tuple[tuple[str, int], ...] = tuple(
    (operation, int(level))
    for operation, level in re.findall(
        r"(\S+) (\d)",
        """
        invert 7, contrast 6, rotate 2, translateX 9, sharpness 1, sharpness 3, shearY 2, translateY 2, autocontrast 5,
        equalize 2, shearY 5, posterize 5, color 3, brightness 5, sharpness 9, brightness 9, equalize 5, equalize 1,
        contrast 7, sharpness 5, color 5, translateX 5, equalize 7, autocontrast 8, translateY 3, sharpness 6,
        brightness 6, color 8, solarize 0, invert 0, equalize 0, autocontrast 0, equalize 8, equalize 4, color 5,
        equalize 5, autocontrast 4, solarize 4, brightness 3, color 0, solarize 1, autocontrast 0, translateY 3,
        translateY 3, autocontrast 1, solarize 1, equalize 5, invert 0, translateY 3, autocontrast 1
        """,
    )
)
"""The released library: operation and level (0 to 9), without its probabilities, which the released code ignores."""

_WITH_LEVELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    # of an image [C, H, W] in [0, 1] and a signed share of the operation's full range, in [-1, 1]
    "contrast": lambda x, m: TF.adjust_contrast(x, 1 + 0.5 * m),
    "color": lambda x, m: TF.adjust_saturation(x, 1 + 0.5 * m) if len(x) == 3 else x,
    "brightness": lambda x, m: TF.adjust_brightness(x, 1 + 0.5 * m),
    "sharpness": lambda x, m: TF.adjust_sharpness(x, 1 + 0.5 * m),
    "rotate": lambda x, m: TF.rotate(x, 30 * abs(m), fill=0.5),
    "translateX": lambda x, m: _affine(x, translate=[round(150 / 331 * m * x.shape[-1]), 0]),
    "translateY": lambda x, m: _affine(x, translate=[0, round(150 / 331 * m * x.shape[-2])]),
    "shearY": lambda x, m: _affine(x, shear=[0.0, float(torch.tensor(0.3 * m).atan().rad2deg())]),
    "posterize": lambda x, m: TF.posterize(_bytes(x), round(8 - 4 * abs(m))) / 255,
    "solarize": lambda x, m: TF.solarize(x, 1 - abs(m)),
}
_WITHOUT: dict[str, Callable[[Tensor], Tensor]] = {
    "invert": TF.invert,
    "autocontrast": TF.autocontrast,
    "equalize": lambda x: TF.equalize(_bytes(x)) / 255,
}

LEAST_ACCURACY_SCORE = -85.0
"""Of policies that the released search keeps.

It belongs to the images that its code takes, one for each class that turns up among 100 of CIFAR-100, about 63: a score
of N images is at most -N, so that no policy reaches -85 with 100 images.
"""


@dataclass(frozen=True)
class ATS(Defense):
    """Train on images that a policy transformed; of several policies, each image draws one.

    policies: such as "21-13-3", up to three places in LIBRARY applied in order. The default is the released hybrid one
    for ConvNet and CIFAR-10. augment: before it, crop at random after a zero padding of 4 pixels, and flip every other
    image, as the released training does. What an attack finds is the transformed image: compare it with that one and,
    separately, with the original.
    Errors: ValueError for no policy, one that does not read so, and a place outside the library.
    Source: Gao et al. 2021 (arXiv:2011.12505); the released code, ATSPrivacy, policy.py.
    """

    policies: Sequence[str] = ("21-13-3", "7-4-15")
    augment: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.policies, str) or not self.policies:
            raise ValueError(f"policies must be a sequence such as ('21-13-3',), got {self.policies!r}")
        for policy in self.policies:
            if not isinstance(policy, str) or not re.fullmatch(r"\d+(-\d+){0,2}", policy):
                raise ValueError(f"a policy is one to three places in the library such as '21-13-3', got {policy!r}")
            if any(int(place) >= len(LIBRARY) for place in policy.split("-")):
                raise ValueError(f"policy {policy!r} names a place outside 0..{len(LIBRARY) - 1}")
        object.__setattr__(self, "policies", tuple(self.policies))  # equal settings compare equal

    def __str__(self) -> str:
        return f"ATS {'+'.join(self.policies)}"

    def encode(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.stack([self.transform(image, generator) for image in images]), targets

    def transform(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """One image [C, H, W] in [0, 1] as the client would see it. Errors: ValueError but for 1 or 3 channels."""
        if image.ndim != 3 or len(image) not in (1, 3):
            raise ValueError(f"{self} transforms images [C, H, W] of 1 or 3 channels, got {list(image.shape)}")
        dtype, device = image.dtype, image.device
        image = image.cpu().float()
        if self.augment:
            height, width = image.shape[-2:]
            top, left, flip = (int(torch.randint(n, (), generator=generator)) for n in (9, 9, 2))
            image = F.pad(image, (4, 4, 4, 4))[:, top : top + height, left : left + width]
            image = image.flip(-1) if flip else image
        policy = self.policies[int(torch.randint(len(self.policies), (), generator=generator))]
        for place in policy.split("-"):
            operation, level = LIBRARY[int(place)]
            sign = 2 * int(torch.randint(2, (), generator=generator)) - 1
            if operation in _WITHOUT:
                image = _WITHOUT[operation](image)
            else:
                image = _WITH_LEVELS[operation](image, sign * level / 9)
        return image.clamp(0, 1).to(device, dtype)


def privacy_score(
    model: nn.Module, images: Tensor, labels: Tensor, policy: str, generator: torch.Generator, steps: int = 20
) -> float:
    """S_pri: how near the gradient comes to the transformed image's on the way there from noise; low is private.

    The mean, over images [N, C, H, W] and points x_j = (j/steps) x + (1 - j/steps) u on the line from a uniform u, by
    the trapezoidal rule, of the mean over parameters of the cosine between the gradients at x_j and at x.
    model: briefly trained. Source: Gao et al. 2021; ATSPrivacy, searchalg/search_best.py.
    """
    ats = ATS((policy,), augment=False)
    scores = []
    for image, label in zip(images, labels, strict=True):
        x = ats.transform(image, generator)
        noise = torch.rand(x.shape, generator=generator).to(x)
        line = torch.stack([(j / steps) * x + (1 - j / steps) * noise for j in range(steps + 1)])
        gradients = client.image_gradients(model, line, label.expand(steps + 1))
        cosines = [F.cosine_similarity(by_trial(g), by_trial(g[-1:])) for g in gradients.values()]
        scores.append(torch.trapezoid(torch.stack(cosines).mean(0), dx=1 / steps))
    return torch.stack(scores).mean().item()


def accuracy_score(model: nn.Module, images: Tensor, policy: str, generator: torch.Generator) -> float:
    """S_acc: how differently a network reacts to different transformed images, which predicts accuracy; high is good.

    -sum over eigenvalues v of log(v + k) + 1 / (v + k), k = 1e-5, of the correlation matrix of the input Jacobians (of
    the summed logits) of images [N, C, H, W]; at most -N, where all are uncorrelated. model: untrained.
    Source: Gao et al. 2021, after Mellor et al.; ATSPrivacy, searchalg/search_best.py.
    """
    ats = ATS((policy,), augment=False)
    x = torch.stack([ats.transform(image, generator) for image in images]).detach().requires_grad_()
    (jacobian,) = torch.autograd.grad(client.worker(model, "eval")(x).sum(), x)
    values = torch.linalg.eigvalsh(torch.corrcoef(jacobian.flatten(1).double()))
    return float(-((values + 1e-5).log() + 1 / (values + 1e-5)).sum())


def draw_policies(count: int, seed: int) -> list[str]:
    """`count` different policies of one to three places in LIBRARY, each place drawn anew: candidates for `search`."""
    found: dict[str, None]
    random, found = client.generator(seed, 0), {}
    while len(found) < count:
        length = 1 + int(torch.randint(3, (), generator=random))
        found["-".join(map(str, torch.randint(len(LIBRARY), (length,), generator=random).tolist()))] = None
    return list(found)


def search(
    trained: nn.Module,
    untrained: nn.Module,
    images: Tensor,
    labels: Tensor,
    candidates: Sequence[str],
    seed: int,
    least: float = LEAST_ACCURACY_SCORE,
) -> list[tuple[str, float, float]]:
    """Candidates with an accuracy score of at least `least`, most private first: (policy, S_pri, S_acc).

    images: [N, C, H, W], labels: [N]; the first five enter the privacy score, as in the released search. The released
    code draws 1,600 candidates at random and names a place that its library does not have.
    """
    found = []
    for number, policy in enumerate(candidates):
        accuracy = accuracy_score(untrained, images, policy, client.generator(seed, number, 0))
        if accuracy >= least:
            privacy = privacy_score(trained, images[:5], labels[:5], policy, client.generator(seed, number, 1))
            found.append((policy, privacy, accuracy))
    return sorted(found, key=lambda row: row[1])


def _affine(image: Tensor, translate: Sequence[int] = (0, 0), shear: Sequence[float] = (0.0, 0.0)) -> Tensor:
    return TF.affine(
        image, 0.0, list(translate), 1.0, list(shear), interpolation=InterpolationMode.BILINEAR, center=[0.0, 0.0]
    )


def _bytes(image: Tensor) -> Tensor:
    return (image * 255).round().clamp(0, 255).to(torch.uint8)
