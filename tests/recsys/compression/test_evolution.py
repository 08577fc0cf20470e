"""The search finds the best of a small world, scores each tuple once, and leaves parents as they are."""

import random

from recsys.compression.evolution import Evolution, Genes, crossed, mutated


def test_evolution_finds_the_best_and_scores_each_tuple_once() -> None:
    seen: list[Genes] = []

    def score(genes: Genes) -> float:
        seen.append(genes)
        return -abs(genes[0] - 2.0) - abs(genes[1] - 5.0)

    found = Evolution(mutated=8, crossed=8, parents=8, generations=12, mutation_rate=0.5).run(score, [4, 6], seed=1)
    assert found == (2, 5)
    assert len(seen) == len(set(seen))
    assert seen[:3] == [(4, 6), (2, 3), (1, 1)]
    assert all(1 <= first <= 4 and 1 <= second <= 6 for first, second in seen)


def test_evolution_is_a_function_of_scores_and_seed() -> None:
    def run(seed: int) -> Genes:
        return Evolution(generations=2).run(
            lambda genes: sum(37**place * gene for place, gene in enumerate(genes)) % 1009, [16] * 5, seed
        )

    assert run(3) == run(3)
    assert len({run(seed) for seed in range(5)}) > 1


def test_evolution_without_generations_takes_the_best_of_the_first() -> None:
    assert Evolution(generations=0).run(lambda genes: float(sum(genes)), [3, 3], seed=0) == (3, 3)


def test_children_are_new_and_parents_stay() -> None:
    """The published code alters parents in place, and may cut beyond the last gene, which copies the first parent."""
    first, second, draw = (1, 1, 1, 1), (2, 2, 2, 2), random.Random(0)
    assert {mutated(first, [9] * 4, 1.0, draw) for _ in range(3)} != {first}
    cuts = {crossed(first, second, draw) for _ in range(50)}
    assert cuts == {(1, 2, 2, 2), (1, 1, 2, 2), (1, 1, 1, 2)}
    assert (first, second) == ((1, 1, 1, 1), (2, 2, 2, 2))
