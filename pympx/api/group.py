"""Groups: ordered sets of processes (MPI 4.1, section 7.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .constants import IDENT, PROC_NULL, SIMILAR, UNDEFINED, UNEQUAL
from .error_classes import CLASSES
from .errors import Exception
from .handles import Handled, Table
from .unsupported import complete


@complete
class Group(Handled):
    """An ordered set of world ranks; `members[i]` is the world rank of rank i, `own` this process's world rank."""

    __slots__ = ("_members", "_own", "_null")
    _table: Table[Any] = Table(0x08000000)

    def __init__(self, group: Group | None = None) -> None:
        if group is not None and not isinstance(group, Group):
            raise TypeError(f"group: expecting Group, not {type(group).__name__}")
        self._members: tuple[int, ...] = group._members if group is not None else ()
        self._own: int = group._own if group is not None else -1
        self._null: bool = group._null if group is not None else True

    @classmethod
    def _of(cls, members: Iterable[int], own: int) -> Group:
        group = cls()
        group._members, group._own, group._null = tuple(members), own, False
        return group

    def _check(self) -> None:
        if self._null:
            raise Exception(CLASSES["ERR_GROUP"][0], "the group is GROUP_NULL or was freed")

    def Get_size(self) -> int:
        """Return the number of processes."""
        self._check()
        return len(self._members)

    def Get_rank(self) -> int:
        """Return the rank of this process, UNDEFINED if it is not a member."""
        self._check()
        return self._members.index(self._own) if self._own in self._members else UNDEFINED

    size = property(Get_size, doc="Number of processes.")
    rank = property(Get_rank, doc="Rank of this process.")

    def _pick(self, ranks: Sequence[int]) -> list[int]:
        self._check()
        for rank in ranks:
            if not 0 <= rank < len(self._members):
                size = len(self._members)
                raise Exception(CLASSES["ERR_RANK"][0], f"rank is {rank}, must be 0..{size - 1} in a group of {size}")
        if len(set(ranks)) != len(ranks):
            raise Exception(CLASSES["ERR_RANK"][0], f"ranks {list(ranks)} name a process twice")
        return [self._members[rank] for rank in ranks]

    def Incl(self, ranks: Sequence[int]) -> Group:
        """Return the group of the members `ranks`, in that order."""
        return Group._of(self._pick(ranks), self._own)

    def Excl(self, ranks: Sequence[int]) -> Group:
        """Return the group without the members `ranks`."""
        gone = set(self._pick(ranks))
        return Group._of([m for m in self._members if m not in gone], self._own)

    def _expand(self, ranges: Sequence[tuple[int, int, int]]) -> list[int]:
        ranks: list[int] = []
        for first, last, stride in ranges:
            if stride == 0:
                raise Exception(CLASSES["ERR_ARG"][0], f"range ({first}, {last}, {stride}): stride must not be 0")
            ranks.extend(range(first, last + (1 if stride > 0 else -1), stride))
        return ranks

    def Range_incl(self, ranks: Sequence[tuple[int, int, int]]) -> Group:
        """Return the group of the members in the ranges (first, last, stride)."""
        return self.Incl(self._expand(ranks))

    def Range_excl(self, ranks: Sequence[tuple[int, int, int]]) -> Group:
        """Return the group without the members in the ranges (first, last, stride)."""
        return self.Excl(self._expand(ranks))

    @classmethod
    def Union(cls, group1: Group, group2: Group) -> Group:
        """Return the members of group1, then those of group2 that are not in it."""
        group1._check()
        group2._check()
        return cls._of([*group1._members, *(m for m in group2._members if m not in group1._members)], group1._own)

    @classmethod
    def Intersection(cls, group1: Group, group2: Group) -> Group:
        """Return the members of group1 that are in group2."""
        group1._check()
        group2._check()
        return cls._of([m for m in group1._members if m in group2._members], group1._own)

    Intersect = Intersection

    @classmethod
    def Difference(cls, group1: Group, group2: Group) -> Group:
        """Return the members of group1 that are not in group2."""
        group1._check()
        group2._check()
        return cls._of([m for m in group1._members if m not in group2._members], group1._own)

    def Translate_ranks(self, ranks: Sequence[int] | None = None, group: Group | None = None) -> list[int]:
        """Return the ranks in `group` of this group's members `ranks` (default: all); UNDEFINED for those not in it."""
        self._check()
        target = group._members if group is not None else ()
        out: list[int] = []
        for rank in range(len(self._members)) if ranks is None else ranks:
            if rank == PROC_NULL:
                out.append(PROC_NULL)
                continue
            member = self._pick([rank])[0]
            out.append(target.index(member) if member in target else UNDEFINED)
        return out

    def Compare(self, group: Group) -> int:
        """Return IDENT, SIMILAR (other order) or UNEQUAL."""
        self._check()
        group._check()
        if self._members == group._members:
            return IDENT
        return SIMILAR if set(self._members) == set(group._members) else UNEQUAL

    def Dup(self) -> Group:
        """Return a copy."""
        self._check()
        return Group(self)

    def Free(self) -> None:
        """Become GROUP_NULL."""
        self._check()
        self._members, self._null = (), True

    def free(self) -> None:
        """Become GROUP_NULL, if it is not that already."""
        if not self._null:
            self.Free()

    def __reduce__(self) -> Any:
        return (Group, ()) if self._null else (Group._of, (self._members, self._own))

    def __bool__(self) -> bool:
        return not self._null

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Group):
            return NotImplemented
        return self._null == other._null and self._members == other._members

    def __hash__(self) -> int:
        return hash(self._members)


GROUP_NULL = Group()
GROUP_EMPTY = Group._of((), -1)
