"""GGL's priors, which map a latent vector to an image: the generator of a WGAN with its critic, and a VAE."""

from __future__ import annotations

from torch import Tensor, nn


class WGAN(nn.Module):
    """Latent vectors [N, latent_dim], standard normal, to images [N, C, H, W] in [0, 1].

    A linear layer to a map of an eighth of the image's sides, rounded up, then three transposed convolutions whose 2x2
    kernels do not overlap, with batch norm and ReLU, and tanh, shifted from [-1, 1] to [0, 1]; what is beyond the image
    is cut off. width: of the last hidden layer; the paper's is 128 (1,731,203 parameters at 32 x 32 x 3). data: the set
    it was trained on ("" for none).
    Source: Li et al. 2022, Fig. 11 and the released notebook, wgan-gp_celeba.ipynb.
    Errors: ValueError for sizes below 1.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, latent_dim: int = 128, width: int = 128, data: str = ""
    ) -> None:
        super().__init__()
        low = _low(image_shape, latent_dim, width)
        self.latent_dim, self.data, self.sides = latent_dim, data, image_shape[1:]
        channels = 4 * width * low[0] * low[1]
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, channels),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            nn.Unflatten(1, (4 * width, *low)),
            *_doubled(4 * width, 2 * width),
            *_doubled(2 * width, width),
            nn.ConvTranspose2d(width, image_shape[0], 2, stride=2),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        height, breadth = self.sides
        return (self.layers(latent)[..., :height, :breadth] + 1) / 2


class Critic(nn.Module):
    """Images [N, C, H, W] in [0, 1] to a score each, [N]: the WGAN's opponent, without norms.

    Source: as `WGAN`; 1,487,105 parameters at width 128 and 32 x 32 x 3.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int = 128) -> None:
        super().__init__()
        low = _low(image_shape, 1, width)
        self.layers = nn.Sequential(
            *_halved(image_shape[0], width),
            *_halved(width, 2 * width),
            *_halved(2 * width, 4 * width),
            nn.Flatten(),
            nn.Linear(4 * width * low[0] * low[1], 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(2 * images - 1)[:, 0]


class VAE(nn.Module):
    """The WGAN's generator as the decoder of a variational autoencoder: latent [N, latent_dim] to images in [0, 1].

    `encode` is its other half. Source: Kingma and Welling 2014; the sizes are what a CPU can train in minutes.
    Errors: as `WGAN`.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, latent_dim: int = 64, width: int = 32, data: str = ""
    ) -> None:
        super().__init__()
        self.decoder = WGAN(image_shape, latent_dim=latent_dim, width=width)
        self.latent_dim, self.data = latent_dim, data
        low = _low(image_shape, latent_dim, width)
        norms = (nn.BatchNorm2d(width), nn.BatchNorm2d(2 * width), nn.BatchNorm2d(4 * width))
        halved = (_halved(image_shape[0], width), _halved(width, 2 * width), _halved(2 * width, 4 * width))
        layers = [layer for (conv, act), norm in zip(halved, norms, strict=True) for layer in (conv, norm, act)]
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * low[0] * low[1], 2 * latent_dim))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, [N, latent_dim] each, of the latent vectors of images in [0, 1]."""
        mean, log_variance = self.encoder(2 * images - 1).chunk(2, dim=1)
        return mean, log_variance

    def forward(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)


def _low(image_shape: tuple[int, int, int], latent_dim: int, width: int) -> tuple[int, int]:
    if latent_dim < 1 or width < 1:
        raise ValueError(f"latent_dim={latent_dim}, width={width}: expected integers of at least 1")
    _, height, breadth = image_shape
    return -(-height // 8), -(-breadth // 8)


def _doubled(into: int, out: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(into, out, 2, stride=2), nn.BatchNorm2d(out), nn.ReLU()]


def _halved(into: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(into, out, 3, stride=2, padding=1), nn.LeakyReLU()]
