"""What a round trains: which adapter it goes on from, which datasets it teaches, and which it leaves for later.

Without instruction groups that is the champion's only adapter, and everything that waits. With them a round trains the
adapter of one group, that of its first dataset; datasets of other groups stay queued. Servers have room for so many
adapters: when no further group fits, what resembles none is learned by the group it resembles most. It reads, and
changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.groups import Codebook, assign
from serving.router import read_codebook
from storage.generations import BASE
from storage.records import Dataset, Generation, text_of
from storage.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """The instruction groups of the generation that a round makes."""

    group: int
    """The one that the round teaches, counted from 0."""
    codebook: Codebook
    adapters: tuple[Generation | None, ...]
    """Whose adapter each group has; None for the one that the round trains."""
    datasets: tuple[tuple[int, ...], ...]
    """What each group has learned once the round is over."""
    origin: int
    """The generation whose adapter the round goes on from, 0 for the bare base model."""
    floor: float
    """How much a request must resemble a group to be answered by its adapter."""

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of it; `storage.records.Generation.groups` reads it."""
        return {
            "origin": self.origin,
            "adapters": [
                {"generation": found and found.number, "sha256": found and found.sha256}
                for found in self.adapters
            ],
            "datasets": self.datasets,
            "floor": self.floor,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a round trains."""

    parent: Generation | None
    """Whose adapter it goes on from; None for the bare base model."""
    earlier: tuple[Dataset, ...]
    """What that adapter has learned."""
    left: tuple[Dataset, ...] = ()
    """Datasets that belong to other groups and wait for a round of their own."""
    grouping: Grouping | None = None


def plan_round(
    store: Store,
    champion: int,
    new: Sequence[Dataset],
    earlier: Sequence[Dataset],
    *,
    threshold: float,
    floor: float,
    most_groups: int,
) -> Plan:
    """Decide what a round over the datasets `new` trains, after a champion that has learned `earlier`.

    With a threshold of 0 no group is ever opened: a champion without groups stays without, and in one that has some a
    dataset goes on with the nearest, as it does when there are `most_groups` already. Raises AdapterChanged if the
    champion's codebook is not whole.
    """
    parent = None if champion == BASE else store.generations.get(champion)
    if not threshold and (parent is None or parent.groups is None):
        return Plan(parent=parent, earlier=tuple(earlier))
    codebook, adapters, datasets = _groups_of(store, parent, earlier)
    texts = {dataset.id: instructions_of(store, dataset) for dataset in new}
    group, codebook, taught = join(texts, codebook, threshold, most_groups)
    begun = adapters[group] if group < len(adapters) else None
    learned = datasets[group] if group < len(datasets) else ()
    return Plan(
        parent=begun,
        earlier=tuple(dataset for dataset in earlier if dataset.id in learned),
        left=tuple(dataset for dataset in new if dataset.id not in taught),
        grouping=Grouping(
            group=group,
            codebook=codebook,
            adapters=(*adapters[:group], None, *adapters[group + 1 :]),
            datasets=(*datasets[:group], (*learned, *taught), *datasets[group + 1 :]),
            origin=begun.number if begun else BASE,
            floor=floor,
        ),
    )


def join(
    instructions: Mapping[int, Sequence[str]], codebook: Codebook, threshold: float, most_groups: int
) -> tuple[int, Codebook, tuple[int, ...]]:
    """Return the group of the first dataset, the codebook with all that belong to it, and the ids of those.

    Done again with these alone it gives the same.
    """

    def joins(texts: Sequence[str]) -> int:
        return assign(texts, codebook, threshold if len(codebook.groups) < most_groups else 0.0)

    (first, texts), *others = instructions.items()
    group = joins(texts)
    codebook, taught = codebook.extended(group, texts), [first]
    for dataset_id, texts in others:
        if joins(texts) == group:
            codebook = codebook.extended(group, texts)
            taught.append(dataset_id)
    return group, codebook, tuple(taught)


def instructions_of(store: Store, dataset: Dataset) -> list[str]:
    """Return what people say in a dataset's training rows."""
    return [
        text_of(turn)
        for row in store.datasets.rows(dataset.id, "train")
        for turn in row.messages
        if turn["role"] == "user"
    ]


def _groups_of(
    store: Store, champion: Generation | None, earlier: Sequence[Dataset]
) -> tuple[Codebook, tuple[Generation, ...], tuple[tuple[int, ...], ...]]:
    """Return instructions, adapter and datasets of each group: one group of everything if it was trained without."""
    if champion is None:
        return Codebook(), (), ()
    groups = champion.groups
    if groups is None:
        learned = [text for dataset in earlier for text in instructions_of(store, dataset)]
        return Codebook().extended(0, learned), (champion,), (tuple(d.id for d in earlier),)
    adapters = tuple(store.generations.get(number) for number in groups.adapters)
    return read_codebook(champion.directory), adapters, groups.datasets
