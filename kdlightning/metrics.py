"""Metrics that torchmetrics does not have in the form needed here."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class WeightedMean(Metric):
    """Σ weight·value / Σ weight; NaN values stay visible, and nothing is read back from the device.

    torchmetrics' own `MeanMetric` either looks for NaNs in each update, which waits for the device, or, with
    `nan_strategy="disable"`, silently drops the weights (seen in 1.9).
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor | float = 1.0) -> None:
        """Adds values, each with the same weight or its own."""
        value = value.detach().float()
        weights = torch.as_tensor(weight, dtype=torch.float32, device=value.device).broadcast_to(value.shape)
        # A weight of zero leaves a value out, whatever it is.
        self.total += torch.where(weights == 0, 0.0, value * weights).sum()
        self.weight += weights.sum()

    def compute(self) -> Tensor:
        """The mean."""
        return self.total / self.weight


class PerplexityFromLoss(WeightedMean):
    """exp of the mean negative log-likelihood; updated with means (or values) and their token counts as weights.

    torchmetrics' own perplexity wants full probabilities `(B, T, V)`, which a language model need not have made.
    """

    def compute(self) -> Tensor:
        """exp(Σ nll / Σ tokens)."""
        return super().compute().exp()


class LinearCKA(Metric):
    """Linear centred kernel alignment of two sets of embeddings (Kornblith et al., ICML 2019), from 0 to 1.

    ‖X̃ᵀỸ‖²_F / (‖X̃ᵀX̃‖_F · ‖ỸᵀỸ‖_F) with the means of all samples taken off. It does not change with rotation, scale and
    offset of either, and their widths may differ. Sums are kept, in float64 where the device has it; no embeddings.
    """

    full_state_update = False
    count: Tensor
    sums: Tensor
    products: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "sums", "products"):
            self.add_state(name, default=torch.zeros(()), dist_reduce_fx="sum")
        self._width = 0

    def update(self, first: Tensor, second: Tensor) -> None:
        """Adds embeddings `(B, D)` and `(B, E)` of the same samples."""
        self._width = first.shape[1]
        both = torch.cat([first.detach(), second.detach()], dim=1)
        both = both.to(torch.float32 if both.device.type == "mps" else torch.float64)
        self.count = self.count + len(both)
        self.sums = self.sums + both.sum(dim=0)
        self.products = self.products + both.T @ both

    def compute(self) -> Tensor:
        """The alignment; 0 if one of the two is constant."""
        mean = self.sums / self.count
        products = self.products - self.count * mean.outer(mean)
        own, other = slice(0, self._width), slice(self._width, None)
        shared = products[own, other].square().sum()
        # Of a constant set only rounding is left.
        sizes = [products[part, part].norm() for part in (own, other)]
        floors = [1e-9 * self.products[part, part].norm() for part in (own, other)]
        known = torch.stack([size > floor for size, floor in zip(sizes, floors, strict=True)]).all()
        return torch.where(known, shared / (sizes[0] * sizes[1]).clamp(min=1e-30), 0.0).float()


class NearestNeighbourAccuracy(Metric):
    """Accuracy of naming each sample after its nearest neighbours among all the others, which needs no training.

    The weighted vote of Wu et al. (CVPR 2018), as DINO takes it: of the k samples of highest cosine similarity s, each
    votes for its class with exp(s / 0.07). The embeddings of all samples are kept, in float32.

    Args:
        neighbours: k; fewer where there are fewer samples.
    """

    full_state_update = False
    embeddings: list[Tensor]
    labels: list[Tensor]

    def __init__(self, neighbours: int = 20) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Adds embeddings `(B, D)` and class numbers `(B,)`."""
        self.embeddings.append(torch.nn.functional.normalize(embeddings.detach().float()))
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """The share of samples that are named right."""
        embeddings, labels = dim_zero_cat(self.embeddings), dim_zero_cat(self.labels)
        if len(labels) < 2:
            return embeddings.new_zeros(())
        rows = torch.arange(len(labels), device=labels.device)
        right = [
            vote(embeddings[part], embeddings, labels, self.neighbours, leave_out=part) == labels[part]
            for part in rows.split(1024)
        ]
        return torch.cat(right).float().mean()


class PairScores(Metric):
    """How a classifier fares on counterfactual pairs, from a row for each original and for each counterfactual.

    The first row of a pair (by its number) is the original x with label y; each further row is a counterfactual x' with
    y' and makes a pair with it. Gives, as means over these pairs,

    * `consistency`: the share of pairs of which both are named right (Gardner et al., 2020, for contrast sets; Chen et
      al., ACL 2023);
    * `sensitivity`: ½·[P(y|x) − P(y|x') + P(y'|x') − P(y'|x)], from -1 to 1, how clearly the two are told apart. This
      form is how we know the measure of Chen et al.; it could not be checked against the paper.

    Without any pair both are NaN.
    """

    full_state_update = False
    rows: list[Tensor]
    probabilities: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("probabilities", default=[], dist_reduce_fx="cat")

    def update(self, pair: Tensor, index: Tensor, probabilities: Tensor, target: Tensor) -> None:
        """Adds pair numbers, row numbers, class probabilities `(B, C)` and class numbers of some rows, `(B,)` each."""
        self.rows.append(torch.stack([pair, index, target], dim=1))
        self.probabilities.append(probabilities.detach().float())

    def compute(self) -> dict[str, Tensor]:
        """`consistency` and `sensitivity`."""
        rows, probabilities = dim_zero_cat(self.rows), dim_zero_cat(self.probabilities)
        # In the order of pairs, and of rows within each; loaders of several processes repeat some rows.
        places = {(pair, index): place for place, (pair, index, _) in enumerate(rows.tolist())}
        originals: dict[int, int] = {}
        both = [
            (originals[pair], place)
            for (pair, _), place in sorted(places.items())
            if originals.setdefault(pair, place) != place
        ]
        if not both:
            nothing = probabilities.new_full((), torch.nan)
            return {"consistency": nothing, "sensitivity": nothing}
        old, new = torch.tensor(both, device=rows.device).T
        label, other = rows[old, 2], rows[new, 2]
        right = probabilities.argmax(dim=1) == rows[:, 2]
        shift = probabilities[old, label] - probabilities[new, label]
        shift = shift + probabilities[new, other] - probabilities[old, other]
        return {"consistency": (right[old] & right[new]).float().mean(), "sensitivity": 0.5 * shift.mean()}


def vote(embeddings: Tensor, bank: Tensor, labels: Tensor, neighbours: int, leave_out: Tensor | None = None) -> Tensor:
    """The class `(B,)` for which the nearest neighbours of each sample vote; see `NearestNeighbourAccuracy`.

    Args:
        embeddings: `(B, D)`, of unit length.
        bank: `(N, D)`, of unit length.
        labels: `(N,)`, classes of the bank.
        neighbours: how many vote.
        leave_out: `(B,)`, for each sample the row of the bank that is itself.
    """
    similarity = embeddings @ bank.T
    if leave_out is not None:
        similarity.scatter_(1, leave_out[:, None], -torch.inf)
    most = min(neighbours, len(bank) - (leave_out is not None))
    nearest, places = similarity.topk(most, dim=1)
    votes = torch.zeros(len(embeddings), int(labels.max()) + 1, device=embeddings.device)
    return votes.scatter_add_(1, labels[places], (nearest / 0.07).exp()).argmax(dim=1)
