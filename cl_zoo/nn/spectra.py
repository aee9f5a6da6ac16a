"""What directions a layer's inputs lie in: the second moment of all that it has seen, kept small, and its principal directions.

    C = 1/n Σ x xᵀ  ≈  V diag(σ) Vᵀ                 x (d,), V (d, m), σ (m,), largest first

C itself would be as large as the layer. Kept is Y = (Σ x xᵀ) Ω for m fixed directions Ω (d, m): what further inputs, another
process or another task add to it is a sum. C follows by Nyström's approximation Y (Ωᵀ Y)⁺ Yᵀ (Tropp et al., "Fixed-Rank
Approximation of a Positive-Semidefinite Matrix from Streaming Data", NeurIPS 2017), exact where m = d or the inputs span no more
than m directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cl_zoo.processes import total


class Sketch:
    """Y of one layer, fed by what its forwards see on this process and taken in once per step on all of them.

    Args:
        omega: Ω (d, m), see `directions`; layers of one width may share it.

    Attributes:
        moments, count: Y (d, m), and n, a 0-dim tensor, of all that was taken in.
    """

    def __init__(self, omega: Tensor) -> None:
        self.omega, self.moments, self.count = omega, torch.zeros_like(omega), omega.new_zeros(())
        self._new: Tensor | None = None

    def clear(self) -> None:
        """Forget what was added and not taken in."""
        self._new = None

    def add(self, x: Tensor, real: Tensor) -> None:
        """Look at inputs x (n, d); of those for which `real` (n, 1) is zero nothing counts."""
        x, real = (x * real).to(self.omega), real.to(self.omega)
        new = self._added()
        new[:-1, :-1] += x.T @ (x @ self.omega)
        new[:-1, -1] += x.sum(0)
        new[-1, -1] += real.sum()

    def _added(self) -> Tensor:
        """Y, behind it Σ x as a column, and n in the corner: one tensor to add up over processes."""
        if self._new is None:
            self._new = self.omega.new_zeros([size + 1 for size in self.omega.shape])
        return self._new

    def take_in(self, *, anew: bool = False) -> None:
        """Let C know what all processes have added; `anew` forgets what was before, and takes the covariance about the mean."""
        new = total(self._added()).to(self.omega)
        moments, sums, count = new[:-1, :-1], new[:-1, -1], new[-1, -1]
        if anew:
            self.moments = moments - torch.outer(sums, sums @ self.omega) / count.clamp(min=1)
            self.count = count - 1
        else:
            self.moments, self.count = self.moments + moments, self.count + count
        self.clear()

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """V (d, m) and σ (m,) of C; directions in which nothing was seen have a σ of zero."""
        return spectrum(self.moments / self.count.clamp(min=1), self.omega)


def directions(
    width: int, number: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Ω (d, m): orthonormal directions at random, the same ones for a width on every machine; m is at most d."""
    shape = (width, min(number, width))
    if torch.device(device).type == "meta":
        return torch.empty(shape, device=device, dtype=dtype)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(drawn).Q
    return basis.to(device, dtype)


def spectrum(sketch: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    """V (d, m) and σ (m,), largest first, of the C whose C Ω (d, m) is given; taken in fp64."""
    if sketch.is_meta:
        return sketch, sketch[0]
    Y = sketch.double()
    core = omega.double().T @ Y
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    seen = values > values[-1] * len(values) * torch.finfo(sketch.dtype).eps  # the rest is rounding
    root = Y @ (vectors * torch.where(seen, values, torch.inf).rsqrt())  # C ≈ root rootᵀ
    sigma, turns = torch.linalg.eigh(root.T @ root)
    sigma = sigma.flip(0).clamp(min=0)
    V = root @ turns.flip(1) / sigma.clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    return V.to(sketch), sigma.to(sketch)


def principal(V: Tensor, sigma: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The first k directions and their σ, with the smallest k whose Σ σ² reaches that share of the whole."""
    reached = sigma.square().cumsum(0) / sigma.square().sum()
    k = min(int((reached < share).sum()) + 1, len(sigma))
    return V[:, :k].clone(), sigma[:k].clone()


def along(gradient: Tensor, V: Tensor, inside: Tensor, outside: float = 1.0) -> Tensor:
    """G V diag(inside) Vᵀ + outside · G (I − V Vᵀ), for G (..., d), V (d, k) of orthonormal columns and inside (k,)."""
    within = (gradient @ V * (inside - outside)) @ V.T
    return (gradient if outside == 1 else outside * gradient) + within
