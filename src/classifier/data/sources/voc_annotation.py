"""One PASCAL VOC XML -> the objects in it.

Source: M. Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010 (the format; no data here).
"""

from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from classifier.data.sources.boxes import FAR, BoxedObject


class VocObject(NamedTuple):
    """An object with its marks: `difficult` to recognise, or `truncated` by the edge of the image."""

    boxed: BoxedObject
    difficult: bool
    truncated: bool


def read_annotation(path: Path) -> list[VocObject]:
    """The objects of one VOC file, boxes 0-based and half-open: (xmin - 1, ymin - 1, xmax, ymax).

    Raises:
        ValueError: Malformed XML, entities or a DTD with them (refused unread), no object, a box that is missing,
            not numeric or empty.
    """
    try:
        root = parse(path).getroot()
    except (ParseError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise ValueError(f"malformed XML ({error})") from error
    except DefusedXmlException as error:
        raise ValueError(f"XML with entity definitions is refused ({type(error).__name__})") from error
    assert root is not None
    objects = [_read_object(element) for element in root.iter("object")]
    if not objects:
        raise ValueError("no <object> with a <bndbox>")
    return objects


def _read_object(element: Element) -> VocObject:
    name = (element.findtext("name") or "").strip()
    corners: list[int] = []
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{tag}")
        if text is None:
            raise ValueError(f"object {name!r} lacks <{tag}> in its <bndbox>")
        try:
            corners.append(max(-FAR, min(FAR, round(float(text)))))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"object {name!r} has <{tag}>{text}</{tag}>, which is not a number") from error
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        raise ValueError(f"object {name!r} has an empty box: x {x1} to {x2}, y {y1} to {y2}")
    # other values occur, as `Unspecified` in VOC 2007
    difficult, truncated = ((element.findtext(mark) or "").strip() == "1" for mark in ("difficult", "truncated"))
    return VocObject(BoxedObject(name, (x1 - 1, y1 - 1, x2, y2)), difficult, truncated)
