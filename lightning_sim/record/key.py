"""What one measured number is about, and the name under which loggers have it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Key", "parse_name"]


class _Parts(NamedTuple):
    measure: str
    representation: str | None = None
    layer: str | None = None
    condition: str = ""


class Key(_Parts):
    """What one number is about: a measure, of a representation of a layer, under a condition of the input.

    Args:
        measure: for instance ``"cka"``.
        representation: what of the layer is compared, for instance ``"features"``; None for measures of outputs and of
            whole networks.
        layer: of the network; None likewise.
        condition: what was done to the samples; empty for the samples as they are.

    Raises:
        ValueError: for a ``/`` in anything but the layer, or an ``@`` in the representation: logged names could not be
            read back.

    Example:
        >>> from lightning_sim.measures import Key
        >>> Key("cka", "features", "encoder/layer3").name, Key("jsd").name, Key("jsd", condition="fog").name
        ('cka/features/encoder/layer3', 'jsd', 'jsd/fog')
    """

    __slots__ = ()

    def __new__(
        cls, measure: str, representation: str | None = None, layer: str | None = None, condition: str = ""
    ) -> Key:
        """A key that its logged name gives back."""
        if "/" in f"{measure}{representation}{condition}" or "@" in (representation or ""):
            raise ValueError(
                "measure, representation and condition of a key must not hold '/', nor the representation '@', or its "
                f"logged name could not be read back; got {measure!r}, {representation!r} and {condition!r}"
            )
        return super().__new__(cls, measure, representation, layer, condition)

    @property
    def title(self) -> str:
        """Measure, representation and condition as a title."""
        return ", ".join(filter(None, (self.measure, self.representation, self.condition)))

    @property
    def name(self) -> str:
        """As it is logged, without the monitor's name; a layer's name may hold any character, also ``/``."""
        if self.layer is None:
            return f"{self.measure}/{self.condition}" if self.condition else self.measure
        under = f"@{self.condition}" if self.condition else ""
        return f"{self.measure}/{self.representation}{under}/{self.layer}"


def parse_name(name: str) -> Key:
    """The key of a logged name, for what loggers and records of the first schema keep.

    Example:
        >>> parse_name("cka/features@fog/encoder/layer3")
        Key(measure='cka', representation='features', layer='encoder/layer3', condition='fog')
    """
    measure, *rest = name.split("/", 2)
    if len(rest) < 2:
        return Key(measure, condition="".join(rest))
    representation, _, condition = rest[0].partition("@")
    return Key(measure, representation, rest[1], condition)
