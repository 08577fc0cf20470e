"""A small evolutionary search over tuples of whole numbers, by a score that is costly: each tuple is scored once."""

import random
from collections.abc import Callable, Sequence

from pydantic import Field

from features.values import Value

Genes = tuple[int, ...]


class Evolution(Value):
    """The size of the search: generations of `mutated` + `crossed` children of the best `parents` of all so far.

    A mutated child has each number drawn anew with probability mutation_rate; a crossed one has the first numbers of
    one parent and the last of another. The first generation is `largest` itself, all of it halved, quartered, down to
    one, and as many random tuples as a generation has children. The search of OptEmbed, which starts with random ones
    alone, is Evolution(mutated=10, crossed=10, parents=15, generations=30, mutation_rate=0.1).
    """

    mutated: int = Field(default=4, ge=1)
    crossed: int = Field(default=4, ge=0)
    parents: int = Field(default=6, ge=2)
    generations: int = Field(default=3, ge=0)
    mutation_rate: float = Field(default=0.2, gt=0, le=1)

    def run(self, score: Callable[[Genes], float], largest: Sequence[int], seed: int) -> Genes:
        """The best tuple found, each number in 1..largest.

        score: higher is better. Of equals the one found first. A pure function of the scores and the seed.
        """
        draw = random.Random(seed)
        scores: dict[Genes, float] = {}
        halvings = range(max(largest).bit_length())
        children = [tuple(max(1, most >> times) for most in largest) for times in halvings]
        for _ in range(self.mutated + self.crossed):
            children.append(tuple(draw.randint(1, most) for most in largest))
        for generation in range(self.generations + 1):
            scores |= {genes: score(genes) for genes in dict.fromkeys(children) if genes not in scores}
            best = sorted(scores, key=lambda genes: -scores[genes])[: self.parents]
            if generation < self.generations:
                children = self._children(best, largest, draw)
        return best[0]

    def _children(self, parents: Sequence[Genes], largest: Sequence[int], draw: random.Random) -> list[Genes]:
        children = [mutated(draw.choice(parents), largest, self.mutation_rate, draw) for _ in range(self.mutated)]
        if len(parents) > 1 and len(largest) > 1:
            for _ in range(self.crossed):
                first, second = draw.sample(parents, 2)
                children.append(crossed(first, second, draw))
        return children


def mutated(parent: Genes, largest: Sequence[int], rate: float, draw: random.Random) -> Genes:
    """A copy with some numbers drawn anew; the parent, a tuple, stays as it is."""
    pairs = zip(parent, largest, strict=True)
    return tuple(draw.randint(1, most) if draw.random() < rate else gene for gene, most in pairs)


def crossed(first: Genes, second: Genes, draw: random.Random) -> Genes:
    """The first numbers of one, the others of the other, at least one of each."""
    cut = draw.randint(1, len(first) - 1)
    return first[:cut] + second[cut:]
