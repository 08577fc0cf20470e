"""Item-item neighbourhoods in closed form: `ItemKNN` (cosine) and `P3` (three steps of a random walk).

Both score a history h, a 0/1 row over the items, as h S with an item-item operator S, so that a new user with a history
is served as a known one is; they keep nothing about users by name.

Notation: R the binary train matrix; D_U and D_I the diagonal matrices of its row and column sums.
Shapes: B histories, U train users, n items, E entries of R, k neighbours.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import coo_matrix, csr_matrix, dia_matrix, diags, vstack
from torch import Tensor

from features.values import Value
from recsys.models.interface import ClosedForm

CHUNK_SIZE = 1024  # rows of a sparse product at a time


class ItemKNN(ClosedForm):
    """Item-based nearest neighbours with cosine similarity (Sarwar et al. 2001), unknown entries of R taken as 0.

    cos(i, j) = |users of both| / sqrt(|users of i| |users of j|); N(i) are the k items nearest to i, without itself, of
    equally near ones those of lowest position; m_i = |users of i| / U. With h_j = 1 for the items of the history:

        sum       score(i) = sum over j in N(i) of cos(i, j) h_j
        average   that, over the sum of cos(i, j) over j in N(i)
        centred   score(i) = m_i + average of (h_j - m_j) over j in N(i), weighted by cos(i, j)

    Gowalla, recall@20 / nDCG@20, k = 100: sum .1271/.0936, centred .1569/.1213; Open-CF-Benchmark prints .1570/.1214.
    Memory: 8 bytes for each of at most k n similarities, found a chunk of items at a time.
    """

    class Config(Value):
        """neighbours: k; None keeps all similarities that are not 0. prediction: see the class."""

        neighbours: int | None = Field(default=100, ge=1)
        prediction: Literal["sum", "average", "centred"] = "centred"

    config: Config

    def solve(self, interactions: csr_matrix) -> dict[str, Tensor]:
        """S [n, n], where S[j, i] weighs j for i and is 0 for j outside N(i), and the bias [n] of each item's score."""
        unit = csr_matrix(interactions @ inverse_sums(interactions, axis=0, power=0.5))  # columns of length 1
        weights = vstack([self._nearest(unit, start) for start in range(0, unit.shape[1], CHUNK_SIZE)])  # row i: N(i)
        bias = np.zeros(unit.shape[1])
        if self.config.prediction != "sum":
            weights = inverse_sums(weights, axis=1) @ weights
        if self.config.prediction == "centred":
            means = np.asarray(interactions.mean(axis=0)).ravel()
            bias = means - weights @ means
        return csr_tensors("weights", csr_matrix(weights.T)) | {"bias": torch.from_numpy(bias).float()}

    def _nearest(self, unit: csr_matrix, start: int) -> csr_matrix:
        """Rows start.. of the cosines, [up to CHUNK_SIZE, n], each with its k largest."""
        cosines = coo_matrix(unit[:, start : start + CHUNK_SIZE].T @ unit)
        other = cosines.col != cosines.row + start
        rows, columns, values = cosines.row[other], cosines.col[other], cosines.data[other]
        if self.config.neighbours is not None:
            order = np.lexsort((columns, -values, rows))
            rank = np.arange(len(order)) - np.searchsorted(rows[order], rows[order])
            near = order[rank < self.config.neighbours]
            rows, columns, values = rows[near], columns[near], values[near]
        return csr_matrix((values, (rows, columns)), shape=cosines.shape)

    def history_scores(self, histories: csr_matrix) -> Tensor:
        """Scores h S + bias, [B, n] float32."""
        tensors = self.tensors()
        return walk(histories, csr_of("weights", tensors)).add_(tensors["bias"])


class P3(ClosedForm):
    """Three steps of a random walk, user to item to user to item: P3 = R D_I^-1 R^T D_U^-1 R.

    So S = D_I^-1 R^T D_U^-1 R. It is never formed (40,981^2 entries for Gowalla): its two factors are kept, and a chunk
    of histories walks through both. Cooper et al. 2014 also divide a user's scores by the length of the history, which
    changes no order and is left out.
    Memory: 16 bytes for each of E pairs, 4 or 8 for each user and item.
    """

    class Config(Value):
        """P3 has no settings."""

    def solve(self, interactions: csr_matrix) -> dict[str, Tensor]:
        """D_I^-1 R^T [n, U] and D_U^-1 R [U, n]."""
        to_users = csr_matrix((interactions @ inverse_sums(interactions, axis=0)).T)
        to_items = csr_matrix(inverse_sums(interactions, axis=1) @ interactions)
        return csr_tensors("to_users", to_users) | csr_tensors("to_items", to_items)

    def history_scores(self, histories: csr_matrix) -> Tensor:
        """Scores h D_I^-1 R^T D_U^-1 R, [B, n] float32."""
        tensors = self.tensors()
        return walk(histories, csr_of("to_users", tensors), csr_of("to_items", tensors))


def inverse_sums(matrix: csr_matrix, axis: int, power: float = 1.0) -> dia_matrix:
    """The diagonal matrix of (sums over `axis`) ** -power, 0 where the sum is 0, float32."""
    sums = np.asarray(matrix.sum(axis=axis), dtype=np.float64).ravel()
    inverse = np.divide(1.0, sums**power, out=np.zeros_like(sums), where=sums > 0)
    return diags(inverse.astype(np.float32))


def walk(histories: csr_matrix, *operators: csr_matrix) -> Tensor:
    """Histories [B, n] times the operators, left to right, a chunk of rows at a time, [B, n] float32."""
    scores = torch.empty(histories.shape[0], operators[-1].shape[1])
    for start in range(0, len(scores), CHUNK_SIZE):
        product = histories[start : start + CHUNK_SIZE].astype(np.float32)
        for operator in operators:
            product = product @ operator
        scores[start : start + CHUNK_SIZE] = torch.from_numpy(product.toarray())
    return scores


def csr_tensors(name: str, matrix: csr_matrix) -> dict[str, Tensor]:
    """A sparse matrix as named tensors: values (float32) and columns of its entries, offsets of its rows, its shape."""
    values, shape = torch.from_numpy(matrix.data.astype(np.float32)), torch.tensor(matrix.shape)
    columns, offsets = torch.from_numpy(matrix.indices), torch.from_numpy(matrix.indptr)
    parts = {"values": values, "columns": columns, "offsets": offsets, "shape": shape}
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def csr_of(name: str, tensors: Mapping[str, Tensor]) -> csr_matrix:
    """The inverse of `csr_tensors`, over the same memory."""
    values, columns, offsets = (tensors[f"{name}.{part}"].numpy() for part in ("values", "columns", "offsets"))
    return csr_matrix((values, columns, offsets), shape=tuple(tensors[f"{name}.shape"].tolist()), copy=False)
