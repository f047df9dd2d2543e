"""A number as a reader writes it."""

import math

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def digits(value: float, count: int = 3) -> str:
    """So many digits of a number; a power of ten where it is very small or very large, a comma between thousands.

    >>> digits(1297.4), digits(0.0229), digits(2.9e-5), digits(8.4e-6, 1)
    ('1,300', '0.0229', '2.9·10⁻⁵', '8·10⁻⁶')
    """
    short = f"{value:.{count}g}"
    if "e" not in short:
        return short
    mantissa, power = short.split("e")
    if 0 < int(power) < 6 and math.isfinite(value):
        return f"{float(short):,.0f}"
    return f"{mantissa}·10{str(int(power)).translate(RAISED)}"
